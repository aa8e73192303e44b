"""What each command prints when it is done."""

from tlray.summary.bundles import print_bundle, print_evaluate, print_import
from tlray.summary.doctor import print_doctor
from tlray.summary.labelling import print_audit, print_plan, print_predict, print_prediction, print_sample, print_verify
from tlray.summary.submission import print_submit
from tlray.summary.training import print_demo, print_train

__all__ = [
    "print_audit",
    "print_bundle",
    "print_demo",
    "print_doctor",
    "print_evaluate",
    "print_import",
    "print_plan",
    "print_predict",
    "print_prediction",
    "print_sample",
    "print_submit",
    "print_train",
    "print_verify",
]
