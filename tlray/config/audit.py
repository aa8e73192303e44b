"""Options of `tlray audit` and `compare`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import tyro

from tlray.config.shared import Faults, S3Config, arrange_help, check_store

MAX_SAMPLE = 10_000
"""Most rows of a sample, over all its rounds."""


@arrange_help
@dataclass(frozen=True, kw_only=True)
class AuditConfig(S3Config):
    """Estimate how many images of each class an output holds, and how good its labels are, from rows that a person
    reviews.

    First, --sample N draws N labelled rows into OUTPUT/audit, uncertain labels and rare classes more often: review them
    in review.html, which saves sample.csv, or fill in its column correct_label in a spreadsheet, with a full stop if
    the label is right, the name of the right class if not, or ? if no class fits or nobody can tell. Rows without an
    answer don't count.

    Then, --answers FILE reads the filled-in CSV and writes to OUTPUT/audit: audit.json and report.html, the count,
    precision and recall of each class with 95% intervals, and corrections.csv, a manifest for train --data.

    A larger --sample adds rows as sample-2.csv; give all forms to --answers. With --until the next round is drawn where
    the intervals are still too wide.
    """

    labels: Annotated[str, tyro.conf.Positional]
    """OUTPUT of a finished `predict`."""

    sample: int | None = None
    """Rows to draw, those of earlier rounds included."""

    answers: str | tuple[str, ...] = ()
    """The filled-in sample.csv, and those of further rounds: paths or s3:// addresses."""

    until: float | None = None
    """With --answers: draw another round unless the 95% interval of every class's share is at most this wide."""

    seed: int = 0
    """Seed of the sample; the same seed and rounds draw the same rows."""

    output: str | None = None
    """Folder or s3:// prefix for the sample and the results; default OUTPUT/audit."""

    verbose: bool = False
    """Show tracebacks."""

    def list_answers(self) -> list[str]:
        """List the addresses of the filled-in forms."""
        return [self.answers] if isinstance(self.answers, str) else list(self.answers)

    def check(self) -> None:
        """Raise one `ConfigError` naming every value that is not allowed."""
        faults = Faults()
        for name in ("labels", "output"):
            faults.check_uri(name, getattr(self, name))
        for uri in self.list_answers():
            faults.check_uri("answers", uri)
        check_store(faults, self)
        if (self.sample is None) == (not self.list_answers()):
            came = "neither" if self.sample is None else "both"
            faults.add(f"tlray audit takes --sample N, to draw rows, or --answers FILE, to measure them; got {came}")
        if self.sample is not None:
            faults.check_range("sample", self.sample, 1, MAX_SAMPLE)
        if self.until is not None:
            faults.check_range("until", self.until, 0.0001, 0.9)
            if self.sample is not None:
                faults.add("--until goes with --answers; got it with --sample")
        faults.check_range("seed", self.seed, 0, 2**32 - 1)
        faults.report()


@arrange_help
@dataclass(frozen=True, kw_only=True)
class CompareConfig(S3Config):
    """Compare two outputs of `predict` over the same inputs: which labels change with a new model or another precision.

    Rows are matched by their addresses. With --output, a folder gets report.html, with a table of the transitions and
    pictures of the surest changes, compare.json, and changes.parquet, the changed rows.
    """

    old: Annotated[str, tyro.conf.Positional]
    """OUTPUT of a finished `predict`."""

    new: Annotated[str, tyro.conf.Positional]
    """OUTPUT of another, over the same inputs."""

    output: str | None = None
    """New folder or s3:// prefix for the result; without it, it is only printed."""

    max_changed: float = 1.0
    """Most labels that may change, as a share (up to 1) or a count (above 1); with more, the command ends with 1."""

    verbose: bool = False
    """Show tracebacks."""

    def check(self) -> None:
        """Raise one `ConfigError` naming every value that is not allowed."""
        faults = Faults()
        for name in ("old", "new", "output"):
            faults.check_uri(name, getattr(self, name))
        check_store(faults, self)
        if not 0 <= self.max_changed < math.inf:
            faults.add(f"--max-changed takes a share up to 1 or a count above 1; got {self.max_changed:g}")
        faults.report()
