"""The contents of a prediction run's page, read back from its labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tlray.errors import OK
from tlray.metrics.label_shift import correct_shares
from tlray.metrics.near_duplicates import MAX_IMAGES, group_near_duplicates
from tlray.metrics.thresholds import Thresholds
from tlray.model.manifest import Manifest
from tlray.output.reader import LabelsReader
from tlray.output.receipt import Receipt
from tlray.output.schema import EMBEDDING
from tlray.report.charts import Throughput
from tlray.report.page import MAX_CLASSES
from tlray.report.shift import Shift, Validation, compare_with_validation, measure_shift, read_validation

MAX_PARTS = 512
"""Maximum number of parts read back; of more, evenly spread ones are read."""

MAX_FAILURES = 8
"""Maximum number of rows kept per error code."""

MAX_CORRECTED = 200
"""Maximum number of classes whose shares are corrected: the time grows with their square."""

_COLUMNS = ["row_id", "uri", "status", "error", "class_name", "probability", "needs_review", "ood_score"]
_BINS = 20
_SHOWN_GROUPS = 12
_SHOWN_OF_GROUP = 8
_MAX_EXAMPLES = 6
_MAX_BROWSED = 60  # of a class
_MAX_BROWSED_IN_ALL = 360
_MAX_BROWSED_CLASSES = 1_000  # of more, too many rows would be in memory
_MAX_OOD = 12
_OOD = 1.0


@dataclass(frozen=True)
class Example:
    """A labelled row to show.

    Attributes:
        row_id: row number in the plan.
        uri: address of the image.
        class_name: predicted class.
        probability: probability of that class.
        ood_score: above 1 for images less like the training images than 99% of the validation images; None where
            unknown.
    """

    row_id: int
    uri: str
    class_name: str
    probability: float
    ood_score: float | None


@dataclass(frozen=True)
class DuplicateGroup:
    """Images that are nearly the same: their number, and some of them."""

    images: int
    examples: list[Example]


@dataclass(frozen=True)
class DuplicateFacts:
    """Near-duplicates among the rows that were compared by their features.

    Attributes:
        compared: number of rows compared.
        surplus: rows that would be left out if one of each group were kept.
        groups: number of groups.
        shown: the largest groups.
    """

    compared: int
    surplus: int
    groups: int
    shown: list[DuplicateGroup]


@dataclass(frozen=True)
class Failure:
    """A row without a label: its address and the error."""

    uri: str
    error: str


@dataclass(frozen=True)
class PredictionFacts:
    """The contents of the page; all but the receipt covers only the rows that were read back.

    Attributes:
        receipt: receipt of the run.
        classes: the bundle's class names by index.
        class_counts: labelled rows by class.
        confidences: `[20]`, labelled rows by probability over [0, 1].
        confidence: mean probability, None without labelled rows.
        rows_read: number of rows read back.
        is_sample: True if the run has more rows.
        needs_review: rows below `--min-probability` or above `--max-ood`, None without these options.
        ood: rows with an ood_score above 1, None where unknown.
        failures: up to 8 rows of each code.
        surest, least_sure: up to 6 rows of each class, the most and the least confident first.
        browsed: up to 60 rows of each class, drawn at random, the most confident first; fewer with many classes.
        most_ood: up to 12 rows, the highest ood_score first.
        timeline: throughput samples over the run.
        validation: predictions on the bundle's validation images, None without any.
        corrected: shares of the labelled rows by class, corrected for label shift; None where the classes are
            distributed as among the validation images, or it cannot be told.
        duplicates: near-duplicates; None without `--embeddings`.
        promise: the bundle's thresholds, if `--min-probability auto` applied them and they promise something.
    """

    receipt: Receipt
    classes: tuple[str, ...]
    class_counts: dict[str, int]
    confidences: list[int]
    confidence: float | None
    rows_read: int
    is_sample: bool
    needs_review: int | None
    ood: int | None
    failures: dict[str, list[Failure]]
    surest: dict[str, list[Example]]
    least_sure: dict[str, list[Example]]
    browsed: dict[str, list[Example]]
    most_ood: list[Example]
    timeline: Sequence[Throughput]
    validation: Validation | None
    corrected: dict[str, float] | None
    duplicates: DuplicateFacts | None
    promise: Thresholds | None

    @property
    def labelled_read(self) -> int:
        """Number of rows read back that have a label."""
        return sum(self.class_counts.values())

    @property
    def verdict(self) -> str | None:
        """One sentence comparing the predictions with those on validation images; None without such."""
        return compare_with_validation(self.class_counts, self.confidences, self.confidence, self.validation)

    @property
    def shift(self) -> Shift | None:
        """The measures behind the verdict."""
        return measure_shift(self.class_counts, self.confidences, self.confidence, self.validation)


def gather_prediction_facts(
    output: str, receipt: Receipt, manifest: Manifest, timeline: Sequence[Throughput]
) -> PredictionFacts:
    """Read back the labels of a finished run, at most `MAX_PARTS` parts, with a few parts in memory at a time.

    Args:
        output: address of the run's output, with its parts in `labels/`.
        receipt: receipt of the run, which lists the parts.
        manifest: `bundle.json` of the model.
        timeline: throughput samples over the run.

    Raises:
        OutputError: a part cannot be read.
    """
    names = _spread([part.name for part in receipt.parts], MAX_PARTS)
    embedded = bool(receipt.config.get("embeddings"))
    max_browsed = min(_MAX_BROWSED, _MAX_BROWSED_IN_ALL // min(len(manifest.classes), MAX_CLASSES))
    if len(manifest.classes) > _MAX_BROWSED_CLASSES:
        max_browsed = 0
    tally = _Tally(-(-MAX_IMAGES // len(names)) if names else 0, max_browsed)
    for table in LabelsReader(output, names).read([*_COLUMNS, *([EMBEDDING] if embedded else [])]):
        tally.add(table)
    counts = {name: tally.counts[name] for name in manifest.classes if tally.counts[name]}
    confidence = tally.confidence / int(tally.confidences.sum()) if tally.confidences.any() else None
    validation = read_validation(manifest)
    shift = measure_shift(counts, tally.confidences.tolist(), confidence, validation)
    return PredictionFacts(
        receipt=receipt,
        classes=manifest.classes,
        class_counts=counts,
        confidences=tally.confidences.tolist(),
        confidence=confidence,
        rows_read=tally.rows,
        is_sample=len(names) < len(receipt.parts),
        needs_review=tally.needs_review,
        ood=tally.ood,
        failures=dict(sorted(tally.failures.items())),
        surest=tally.surest,
        least_sure=tally.least_sure,
        browsed=tally.list_browsed(),
        most_ood=tally.most_ood,
        timeline=timeline,
        validation=validation,
        corrected=_correct_shares(tally, manifest, shift),
        duplicates=_find_duplicates(tally) if embedded else None,
        promise=_find_promise(receipt, manifest),
    )


def _find_promise(receipt: Receipt, manifest: Manifest) -> Thresholds | None:
    applied = str(receipt.config.get("min_probability", "")).startswith("auto")
    return manifest.thresholds if applied and manifest.thresholds is not None and manifest.thresholds.kept else None


def _find_duplicates(tally: _Tally) -> DuplicateFacts | None:
    if not tally.features:
        return None
    found = group_near_duplicates(np.concatenate(tally.features))
    shown = [
        DuplicateGroup(len(group), [tally.compared[row] for row in group[:_SHOWN_OF_GROUP].tolist()])
        for group in found.groups[:_SHOWN_GROUPS]
    ]
    return DuplicateFacts(found.compared, found.surplus, len(found.groups), shown)


def _correct_shares(tally: _Tally, manifest: Manifest, shift: Shift | None) -> dict[str, float] | None:
    """Correct the classes' shares where they differ from those of the validation images by more than noise.

    Without that, counting labels is the better estimate. The model's probabilities follow the training images: with
    balanced class weights, as if all classes occurred alike; nothing is known of an imported model.
    """
    measured, training = manifest.metrics.validation, manifest.training
    if shift is None or shift.distance <= shift.distance_limit or measured is None or training is None:
        return None
    if len(manifest.classes) > MAX_CORRECTED:
        return None
    rows, confidence = (
        np.array([sums.get(name, np.zeros(_BINS)) for name in manifest.classes])
        for sums in (tally.rows_by_bin, tally.confidence_by_bin)
    )
    images = np.array([measured.by_class[name].images for name in manifest.classes], np.int64)
    balanced = training.options.get("class_weights") == "balanced"
    prior = np.full(len(images), 1 / len(images)) if balanced else (images + 0.5) / (images + 0.5).sum()
    shares = correct_shares(rows.astype(np.int64), confidence, measured.confusion, prior)
    return dict(zip(manifest.classes, shares.tolist(), strict=True))


def _spread(names: Sequence[str], most: int) -> list[str]:
    """Return all names, or `most` of them, evenly spread."""
    if len(names) <= most:
        return list(names)
    return [names[index * len(names) // most] for index in range(most)]


class _Tally:
    """Counts over tables of labels, and the few rows to show.

    Args:
        max_compared: rows of each table whose features are kept.
        max_browsed: rows of each class to draw at random.
    """

    def __init__(self, max_compared: int, max_browsed: int) -> None:
        self._max_compared = max_compared
        self._max_browsed = max_browsed
        self._random = np.random.default_rng(0)
        self._browsed: dict[str, list[tuple[float, Example]]] = {}
        self.features: list[npt.NDArray[np.float32]] = []
        self.compared: list[Example] = []
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self.confidences = np.zeros(_BINS, np.int64)
        self.confidence = 0.0
        self.rows_by_bin: dict[str, npt.NDArray[np.float64]] = {}
        self.confidence_by_bin: dict[str, npt.NDArray[np.float64]] = {}
        self.needs_review: int | None = None
        self.ood: int | None = None
        self.failures: dict[str, list[Failure]] = {}
        self.surest: dict[str, list[Example]] = {}
        self.least_sure: dict[str, list[Example]] = {}
        self.most_ood: list[Example] = []

    def add(self, table: pa.Table) -> None:
        """Add a table with `_COLUMNS`."""
        self.rows += table.num_rows
        labelled = pc.equal(table["status"], OK)
        self._add_failures(table.filter(pc.invert(labelled)))
        table = table.filter(labelled)
        if not table.num_rows:
            return
        review, ood_score = table["needs_review"], table["ood_score"]
        if review.null_count < len(review):
            self.needs_review = (self.needs_review or 0) + (pc.sum(review).as_py() or 0)
        ood = np.nan_to_num(ood_score.to_numpy(), nan=-math.inf)
        if ood_score.null_count < len(ood_score):
            self.ood = (self.ood or 0) + int((ood > _OOD).sum())
            best = _find_largest(ood, _MAX_OOD)
            self._merge_most_ood(_make_examples(table, best[np.isfinite(ood[best])]))
        probability = table["probability"].to_numpy().astype(np.float64)
        bins = np.clip((probability * _BINS).astype(np.int64), 0, _BINS - 1)
        self.confidences += np.bincount(bins, minlength=_BINS)
        self.confidence += float(probability.sum())
        self._add_classes(table, probability, bins)
        if EMBEDDING in table.column_names:
            first = table.slice(0, min(self._max_compared, MAX_IMAGES - len(self.compared)))
            values = first[EMBEDDING].combine_chunks().flatten().to_numpy()
            self.features.append(values.reshape(first.num_rows, -1) if first.num_rows else np.zeros((0, 1), np.float32))
            self.compared += _make_examples(first, range(first.num_rows))

    def _add_failures(self, failed: pa.Table) -> None:
        codes = np.array(failed["status"].to_pylist(), dtype=object)
        for code in dict.fromkeys(codes.tolist()):
            kept = self.failures.setdefault(code, [])
            for row in np.flatnonzero(codes == code)[: MAX_FAILURES - len(kept)].tolist():
                kept.append(Failure(failed["uri"][row].as_py(), failed["error"][row].as_py() or ""))

    def _add_classes(self, table: pa.Table, probability: npt.NDArray[np.float64], bins: npt.NDArray[np.int64]) -> None:
        encoded = table["class_name"].combine_chunks().dictionary_encode()
        codes = encoded.indices.to_numpy()
        order = np.lexsort((-probability, codes))  # by class, the most confident first
        starts = np.searchsorted(codes[order], np.arange(len(encoded.dictionary) + 1))
        for code, name in enumerate(encoded.dictionary.to_pylist()):
            rows = order[starts[code] : starts[code + 1]]
            self.counts[name] += len(rows)
            for sums, weights in ((self.rows_by_bin, None), (self.confidence_by_bin, probability[rows])):
                added = np.bincount(bins[rows], weights, _BINS)
                sums[name] = sums.get(name, np.zeros(_BINS)) + added
            for kept, best, sign in ((self.surest, rows, 1), (self.least_sure, rows[::-1], -1)):
                have = kept.setdefault(name, [])
                best = best[:_MAX_EXAMPLES]
                if len(have) == _MAX_EXAMPLES:
                    best = best[sign * probability[best] > sign * have[-1].probability]
                have += _make_examples(table, best)
                have.sort(key=attrgetter("probability"), reverse=sign > 0)
                del have[_MAX_EXAMPLES:]
            self._draw_browsed(table, name, rows)

    def _draw_browsed(self, table: pa.Table, name: str, rows: npt.NDArray[np.intp]) -> None:
        """Keep the rows with the smallest random keys."""
        keys = self._random.random(len(rows))
        have = self._browsed.setdefault(name, [])
        best = np.argsort(keys)[: self._max_browsed]
        if have and len(have) == self._max_browsed:
            best = best[keys[best] < have[-1][0]]
        have += zip(keys[best].tolist(), _make_examples(table, rows[best]), strict=True)
        have.sort(key=itemgetter(0))
        del have[self._max_browsed :]

    def list_browsed(self) -> dict[str, list[Example]]:
        """List the rows drawn of each class, the most confident first."""
        return {
            name: sorted((row for _, row in have), key=lambda row: -row.probability)
            for name, have in self._browsed.items()
        }

    def _merge_most_ood(self, more: Sequence[Example]) -> None:
        self.most_ood = sorted([*self.most_ood, *more], key=lambda row: -(row.ood_score or 0.0))[:_MAX_OOD]


def _find_largest(values: npt.NDArray[np.floating[Any]], most: int) -> npt.NDArray[np.intp]:
    return np.argsort(-values, kind="stable")[:most]


def _make_examples(table: pa.Table, rows: Iterable[int]) -> list[Example]:
    names = ["row_id", "uri", "class_name", "probability", "ood_score"]
    return [Example(*(table[name][int(row)].as_py() for name in names)) for row in rows]
