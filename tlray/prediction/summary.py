"""The result of a prediction run, and what a notebook shows of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tlray.errors import OK
from tlray.images.limits import MAX_BYTES
from tlray.images.thumbnail import make_thumbnail
from tlray.notebook import Card, Picture, Shown
from tlray.output.plan import open_plan
from tlray.output.reader import LabelsReader
from tlray.output.receipt import Receipt
from tlray.output.shares import read_shares
from tlray.sources.reading import read_rows

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
        """Return what a notebook shows: the counts, the labels by class, and where they lie."""
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
        shares = read_shares(self.output, receipt.run_id)
        title = "Already labelled" if self.already_done else "Labelled"
        return Card(title, figures, {} if shares is None else shares.labels)

    def list_pictures(self) -> list[Picture]:
        """List some images with their labels, spread over the first part."""
        plan = open_plan(self.output)
        if plan is None or not self.receipt.parts:
            return []
        reader = LabelsReader.open(self.output, self.receipt)
        labels = next(reader.read(["row_id", "status", "class_name", "probability"])).to_pylist()
        rows = [row for row in labels if row["status"] == OK]
        rows = rows[:: max(1, len(rows) // _SHOWN)][:_SHOWN]
        planned = plan.take(np.array([row["row_id"] for row in rows], np.int64))
        pictures = []
        for row, fetched in zip(rows, read_rows(planned, MAX_BYTES, plan.image_column), strict=True):
            uri = make_thumbnail(fetched.data) if isinstance(fetched.data, bytes) else None
            if uri is not None:
                pictures.append(Picture(uri, f"{row['class_name']} {row['probability']:.0%}"))
        return pictures
