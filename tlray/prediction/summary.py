"""The result of a prediction run, and what a notebook shows of it."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow.compute as pc

from tlray.errors import OK
from tlray.images.thumbnail import SIDE_PX, make_thumbnail
from tlray.notebook import Card, Picture, Shown
from tlray.output.finished import get_limits, read_images
from tlray.output.plan import open_plan
from tlray.output.reader import LabelsReader
from tlray.output.receipt import Receipt
from tlray.output.shares import read_shares

_SHOWN = 8


@dataclass(frozen=True, repr=False)
class PredictSummary(Shown):
    """The result of a prediction run.

    Attributes:
        resumed_rows: number of rows that earlier runs had finished.
        already_done: whether the receipt existed before, so that nothing was predicted.
        verdict: sentence that compares the labels with the bundle's validation images; None if unknown.
    """

    output: str
    receipt: Receipt
    resumed_rows: int
    already_done: bool
    verdict: str | None = None

    @property
    def exit_code(self) -> int:
        """1 if no row could be predicted, else 0."""
        return 1 if self.receipt.labelled == 0 else 0

    def describe(self) -> Card:
        """Return what a notebook shows: the counts, and where the labels lie."""
        receipt = self.receipt
        figures = [("labelled", f"{receipt.labelled:,} of {receipt.planned:,} images")]
        if receipt.failed:
            codes = ", ".join(f"{code} {count:,}" for code, count in receipt.failed_by_code.items())
            figures.append(("failed", f"{receipt.failed:,} ({codes})"))
        if receipt.needs_review is not None:
            figures.append(("needs review", f"{receipt.needs_review:,}"))
        figures += [("labels", f"{self.output}/labels"), ("report", f"{self.output}/report.html")]
        if self.verdict is not None:
            figures.append(("beside training", self.verdict))
        return Card("Already labelled" if self.already_done else "Labelled", figures)

    def read_shares(self) -> dict[str, float]:
        """Read the labels' shares by class, as the report counted them."""
        shares = read_shares(self.output, self.receipt.run_id)
        return {} if shares is None else shares.labels

    def read_pictures(self) -> list[Picture]:
        """Read some images with their labels, spread over the first part, without unpacking archives."""
        plan = open_plan(self.output)
        if plan is None or not self.receipt.parts:
            return []
        reader = LabelsReader(self.output, [self.receipt.parts[0].name])
        (labels,) = reader.read(["row_id", "status", "class_name", "probability"])
        rows = labels.filter(pc.equal(labels["status"], OK)).to_pylist()
        rows = rows[:: max(1, len(rows) // _SHOWN)][:_SHOWN]
        limits = get_limits(self.receipt)
        pictures = []
        for row, data in zip(rows, read_images(plan, [row["row_id"] for row in rows], limits), strict=True):
            uri = None if data is None else make_thumbnail(data, SIDE_PX, limits)
            if uri is not None:
                pictures.append(Picture(uri, f"{row['class_name']} {row['probability']:.0%}"))
        return pictures
