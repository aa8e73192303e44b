"""The result of a comparison of two outputs."""

from __future__ import annotations

from dataclasses import dataclass

from tlray.config import count_allowed
from tlray.notebook import Card, Shown

_SHOWN = 5


@dataclass(frozen=True)
class Transition:
    """Rows with one label in the old output and another in the new one."""

    old: str
    new: str
    rows: int


@dataclass(frozen=True)
class ChangedClass:
    """One class of either model, over the rows that both outputs label.

    Attributes:
        old, new: rows with this label in the old and in the new output.
        kept: rows with this label in both.
    """

    old: int
    new: int
    kept: int


@dataclass(frozen=True, repr=False)
class CompareSummary(Shown):
    """Changes from an old output to a new one.

    Attributes:
        old, new: addresses of the outputs.
        old_model_id, new_model_id: of their labels.
        output: address of the folder with compare.json, report.html and changes.parquet; None where none was written.
        compared: rows that both outputs have.
        changed: rows of them with another label, or that one output labels alone.
        labelled_by_both, same: rows that both label, and rows of these with the same label.
        agreement, agreement_low, agreement_high: same / labelled_by_both with Wilson's 95% interval, for more images
            like these; None and (0, 1) if no row has two labels.
        unlabelled: compared rows that neither labels.
        lost, gained: compared rows that only the old, or only the new output labels, by the status in the other.
        only_old, only_new: rows that one output has alone.
        listed: changed rows in changes.parquet.
        transitions: by the labels in both, where these differ, the most frequent first.
        by_class: by class name.
        mean_difference, largest_difference: of the probabilities, over rows with the same label.
        max_changed: the limit that was given: a share of the rows with a label up to 1, a count above.
    """

    old: str
    new: str
    old_model_id: str
    new_model_id: str
    output: str | None
    compared: int
    changed: int
    labelled_by_both: int
    same: int
    agreement: float | None
    agreement_low: float
    agreement_high: float
    unlabelled: int
    lost: dict[str, int]
    gained: dict[str, int]
    only_old: int
    only_new: int
    listed: int
    transitions: list[Transition]
    by_class: dict[str, ChangedClass]
    mean_difference: float
    largest_difference: float
    max_changed: float

    @property
    def labelled(self) -> int:
        """Return the number of compared rows that at least one output labels."""
        return self.compared - self.unlabelled

    @property
    def changed_share(self) -> float:
        """Return the share of them that changed."""
        return self.changed / max(self.labelled, 1)

    @property
    def exceeds(self) -> bool:
        """Return whether more rows changed than `max_changed` allows."""
        return self.changed > count_allowed(self.max_changed, self.labelled)

    def describe(self) -> Card:
        """Return what a notebook shows: how many labels change, and which."""
        figures = [("changed", f"{self.changed:,} of {self.labelled:,} labels ({self.changed_share:.2%})")]
        if self.agreement is not None:
            interval = f"95% interval {self.agreement_low:.4f} to {self.agreement_high:.4f}"
            figures.append(("agreement", f"{self.agreement:.4f} ({interval})"))
        figures += [(f"{one.old} to {one.new}", f"{one.rows:,} rows") for one in self.transitions[:_SHOWN]]
        if self.output is not None:
            figures.append(("report", f"{self.output}/report.html"))
        return Card("Compared", figures)

    @property
    def exit_code(self) -> int:
        """Return 1 if more rows changed than allowed, else 0."""
        return int(self.exceeds)
