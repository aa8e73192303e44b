"""What became of a job that was submitted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tlray.progress import say
from tlray.summary.tables import print_facts

if TYPE_CHECKING:
    from tlray.submission import SubmitSummary

_DONE = {"SUCCEEDED", "FAILED", "STOPPED"}


def print_submit(summary: SubmitSummary) -> None:
    """How it ended, or how to follow and to stop it."""
    if summary.status in _DONE:
        say(f"{summary.job_id} {summary.status.lower()}")
        return
    say(f"{summary.job_id} runs on without this terminal")
    print_facts([("follow", summary.follow_command), ("stop", summary.stop_command)])
