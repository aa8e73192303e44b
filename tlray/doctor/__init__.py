"""What a cluster has and what would go wrong on it, told before a job finds out.

`answers` is what runs on a machine, `records` what all of them told, `findings` what follows from that, `examination`
joins the cluster and asks.
"""

from tlray.doctor.examine import DoctorSummary, examine
from tlray.doctor.findings import Finding, Level

__all__ = ["DoctorSummary", "Finding", "Level", "examine"]
