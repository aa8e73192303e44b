"""What a labelling run's page tells, read back from its labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tlray.errors import OK
from tlray.output.reader import LabelsReader
from tlray.output.receipt import Receipt
from tlray.report.shift import Shift, Validation, compare_with_validation, measure_shift, read_validation

MAX_PARTS = 512
"""Parts that are read back; of more, so many spread evenly."""

MAX_FAILURES = 8
"""Rows that are kept of each code."""

_COLUMNS = ["row_id", "uri", "status", "error", "class_name", "probability", "needs_review", "ood_score"]
_BINS = 20
_MAX_EXAMPLES = 6
_MAX_ODD = 12
_ODD = 1.0


@dataclass(frozen=True)
class Example:
    """A labelled row to look at.

    Attributes:
        row_id: its number in the plan.
        uri: where it lies.
        class_name: what it was taken for.
        probability: of that class.
        ood_score: above 1 it is odder than 99% of the validation images; None where that isn't known.
    """

    row_id: int
    uri: str
    class_name: str
    probability: float
    ood_score: float | None


@dataclass(frozen=True)
class Failure:
    """A row without a label: where it lies, and why."""

    uri: str
    error: str


@dataclass(frozen=True)
class PredictionFacts:
    """What the page says of a labelling run; all but the receipt is of the rows that were read back.

    Attributes:
        receipt: `Receipt` as a dict.
        classes: the bundle's class names by index.
        class_counts: labelled rows by class.
        confidences: `[20]`, labelled rows by probability over [0, 1].
        confidence: mean probability, None without labelled rows.
        rows_read: how many rows were read back.
        is_sample: whether there are more.
        needs_review: rows below the asked probability, None where none was asked.
        odd: rows with an ood_score above 1, None where it isn't known.
        failures: up to 8 rows of each code.
        surest, least_sure: up to 6 rows of each class, in that order.
        oddest: up to 12 rows, the oddest first.
        timeline: samples of `seconds` since the start, rows `fetched` and `answered` until then.
        validation: what the bundle knows of its validation images, None where it had none.
    """

    receipt: dict[str, Any]
    classes: tuple[str, ...]
    class_counts: dict[str, int]
    confidences: list[int]
    confidence: float | None
    rows_read: int
    is_sample: bool
    needs_review: int | None
    odd: int | None
    failures: dict[str, list[Failure]]
    surest: dict[str, list[Example]]
    least_sure: dict[str, list[Example]]
    oddest: list[Example]
    timeline: list[dict[str, float]]
    validation: Validation | None

    @property
    def labelled_read(self) -> int:
        """Rows read back that have a label."""
        return sum(self.class_counts.values())

    @property
    def verdict(self) -> str | None:
        """One sentence on whether the answers look like validation's."""
        return compare_with_validation(self.class_counts, self.confidences, self.confidence, self.validation)

    @property
    def shift(self) -> Shift | None:
        """The measures behind the verdict."""
        return measure_shift(self.class_counts, self.confidences, self.confidence, self.validation)


def gather_prediction_facts(
    output: str, receipt: Receipt, manifest: dict[str, Any], timeline: list[dict[str, float]]
) -> PredictionFacts:
    """Read the labels of a finished run back, at most `MAX_PARTS` parts; memory holds a few parts and the examples.

    Args:
        output: of the run, with its parts in `labels/`.
        receipt: names the parts.
        manifest: `bundle.json` of the model.
        timeline: samples of `seconds`, `fetched`, `answered`.

    Raises:
        OutputError: a part cannot be read.
    """
    names = _spread([part["name"] for part in receipt.parts], MAX_PARTS)
    tally = _Tally()
    for table in LabelsReader(output, names).read(_COLUMNS):
        tally.add(table)
    return PredictionFacts(
        receipt=asdict(receipt),
        classes=tuple(manifest["classes"]),
        class_counts={name: tally.counts[name] for name in manifest["classes"] if tally.counts[name]},
        confidences=tally.confidences.tolist(),
        confidence=tally.confidence / int(tally.confidences.sum()) if tally.confidences.any() else None,
        rows_read=tally.rows,
        is_sample=len(names) < len(receipt.parts),
        needs_review=tally.needs_review,
        odd=tally.odd,
        failures=dict(sorted(tally.failures.items())),
        surest=tally.surest,
        least_sure=tally.least_sure,
        oddest=tally.oddest,
        timeline=timeline,
        validation=read_validation(manifest),
    )


def _spread(names: Sequence[str], most: int) -> list[str]:
    """All names, or `most` of them at even distances."""
    if len(names) <= most:
        return list(names)
    return [names[index * len(names) // most] for index in range(most)]


class _Tally:
    """Counts over tables of labels, and the few rows that are shown."""

    def __init__(self) -> None:
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self.confidences = np.zeros(_BINS, np.int64)
        self.confidence = 0.0
        self.needs_review: int | None = None
        self.odd: int | None = None
        self.failures: dict[str, list[Failure]] = {}
        self.surest: dict[str, list[Example]] = {}
        self.least_sure: dict[str, list[Example]] = {}
        self.oddest: list[Example] = []

    def add(self, table: pa.Table) -> None:
        """Take a table with `_COLUMNS`."""
        self.rows += table.num_rows
        labelled = pc.equal(table["status"], OK)
        self._add_failures(table.filter(pc.invert(labelled)))
        table = table.filter(labelled)
        if not table.num_rows:
            return
        review, ood_score = table["needs_review"], table["ood_score"]
        if review.null_count < len(review):
            self.needs_review = (self.needs_review or 0) + (pc.sum(review).as_py() or 0)
        odd = np.nan_to_num(ood_score.to_numpy(), nan=-math.inf)
        if ood_score.null_count < len(ood_score):
            self.odd = (self.odd or 0) + int((odd > _ODD).sum())
            best = _find_largest(odd, _MAX_ODD)
            self._merge_oddest(_make_examples(table, best[np.isfinite(odd[best])]))
        probability = table["probability"].to_numpy().astype(np.float64)
        bins = np.clip((probability * _BINS).astype(np.int64), 0, _BINS - 1)
        self.confidences += np.bincount(bins, minlength=_BINS)
        self.confidence += float(probability.sum())
        self._add_classes(table, probability)

    def _add_failures(self, failed: pa.Table) -> None:
        codes = np.array(failed["status"].to_pylist(), dtype=object)
        for code in dict.fromkeys(codes.tolist()):
            kept = self.failures.setdefault(code, [])
            for row in np.flatnonzero(codes == code)[: MAX_FAILURES - len(kept)].tolist():
                kept.append(Failure(failed["uri"][row].as_py(), failed["error"][row].as_py() or ""))

    def _add_classes(self, table: pa.Table, probability: npt.NDArray[np.float64]) -> None:
        encoded = table["class_name"].combine_chunks().dictionary_encode()
        codes = encoded.indices.to_numpy()
        order = np.lexsort((-probability, codes))  # by class, the surest first
        starts = np.searchsorted(codes[order], np.arange(len(encoded.dictionary) + 1))
        for code, name in enumerate(encoded.dictionary.to_pylist()):
            rows = order[starts[code] : starts[code + 1]]
            self.counts[name] += len(rows)
            for kept, best, sign in ((self.surest, rows, 1), (self.least_sure, rows[::-1], -1)):
                have = kept.setdefault(name, [])
                best = best[:_MAX_EXAMPLES]
                if len(have) == _MAX_EXAMPLES:
                    best = best[sign * probability[best] > sign * have[-1].probability]
                have += _make_examples(table, best)
                have.sort(key=attrgetter("probability"), reverse=sign > 0)
                del have[_MAX_EXAMPLES:]

    def _merge_oddest(self, more: Sequence[Example]) -> None:
        self.oddest = sorted([*self.oddest, *more], key=lambda row: -(row.ood_score or 0.0))[:_MAX_ODD]


def _find_largest(values: npt.NDArray[np.floating[Any]], most: int) -> npt.NDArray[np.intp]:
    return np.argsort(-values, kind="stable")[:most]


def _make_examples(table: pa.Table, rows: Iterable[int]) -> list[Example]:
    names = ["row_id", "uri", "class_name", "probability", "ood_score"]
    return [Example(*(table[name][int(row)].as_py() for name in names)) for row in rows]
