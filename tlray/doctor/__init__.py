"""`tlray doctor`: examine a cluster and report what would fail on it, before a job does.

- `examine`: join the cluster and ask every machine for a report.
- `inspect_node`: the report of one machine, made there.
- `machines`: the reports of all machines, as plain values.
- `findings`: the problems that follow from them.

Importing this package imports Ray, which takes a second: the command line imports it inside a function.
"""

from tlray.doctor.examine import DoctorSummary, examine
from tlray.doctor.findings import Finding, Level

__all__ = ["DoctorSummary", "Finding", "Level", "examine"]
