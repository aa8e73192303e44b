"""Measurements and label errors ready for the templates of the training page and the evaluation page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tlray.metrics.classification import Measurement, list_confused
from tlray.metrics.label_errors import LIKELY_ERROR, DuplicatePair, LabelError, LabelErrorSummary
from tlray.metrics.thresholds import Threshold, Thresholds, explain_needed
from tlray.report.page import MAX_CLASSES, clean, format_decimal, format_percent, keep_frequent, shorten

MAX_LABEL_ERRORS = 40
MAX_DUPLICATES = 20

_GOOD_ECE = 0.05
_STRONG = 0.75  # from this opacity on, a cell's text takes the page's colour
_WIDE_CLASSES = 8  # with more classes, column names are rotated
_WIDE_COLUMNS = 11


@dataclass(frozen=True)
class Point:
    """A sentence on how far to trust something.

    Attributes:
        tone: "good", "bad" or "".
        text: the sentence.
        section: id of the section of the page that says how it was computed and what it assumes; empty where the
            sentence says so itself.
    """

    tone: Literal["good", "bad", ""]
    text: str
    section: str = ""


@dataclass(frozen=True)
class Headline:
    """A measurement and the name of its images: "test", "validation" or "labelled"."""

    which: str
    measurement: Measurement


@dataclass(frozen=True)
class Bound:
    """A share with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassRow:
    """A row of the table of classes; recall is None without images, precision None without predictions."""

    name: str
    precision: Bound | None
    recall: Bound | None
    f1: float
    images: int
    predicted: int


@dataclass(frozen=True)
class ClassTable:
    """The most frequent classes, and the number of classes not shown."""

    rows: list[ClassRow]
    more: int


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix: its count, opacity, CSS classes and title."""

    count: int
    opacity: float
    kind: str
    title: str


@dataclass(frozen=True)
class MatrixRow:
    """A true class and its cells."""

    name: str
    cells: list[Cell]


@dataclass(frozen=True)
class SharedPair:
    """A confused pair, and its share of the true class's images."""

    true: str
    predicted: str
    images: int
    share: float


@dataclass(frozen=True)
class ConfusionTable:
    """The confusion matrix, and the most confused pairs.

    Attributes:
        rows: empty with more than `MAX_CLASSES` classes.
        classes: names by column.
        tall: True where column names are rotated.
        pairs: confused pairs, most frequent first.
    """

    rows: list[MatrixRow]
    classes: list[str]
    tall: bool
    pairs: list[SharedPair]


@dataclass(frozen=True)
class ThresholdRow:
    """A class and its threshold; `instead` says what applies where it has none."""

    name: str
    threshold: Threshold | None
    instead: str


@dataclass(frozen=True)
class ThresholdTable:
    """The threshold of the classes without one of their own, and the thresholds of the most frequent classes.

    Attributes:
        rows: with the shared threshold first, if a class needs it.
        more: number of classes that are not shown.
    """

    target: float
    confidence: float
    kept: float
    rows: list[ThresholdRow]
    more: int


@dataclass(frozen=True)
class ShownLabelErrors:
    """The label errors that a page shows, and the numbers of those not shown."""

    checked: int
    listed: list[LabelError]
    more_listed: int
    duplicates: list[DuplicatePair]
    more_duplicates: int

    def list_uris(self) -> list[str]:
        """List the addresses of the images to show."""
        pairs = [uri for pair in self.duplicates for uri in (pair.first, pair.second)]
        return [error.uri for error in self.listed] + pairs


def list_points(measurement: Measurement, label_errors: LabelErrorSummary | None) -> list[Point]:
    """List sentences on how far to trust a measurement."""
    points = []
    ece = measurement.ece
    error = f"{ece * 100:.1f} percentage points"
    if ece <= _GOOD_ECE:
        text = f"Probabilities are reliable: on average they differ from the accuracy by {error}."
        points.append(Point("good", text, "reliability"))
    else:
        text = f"Probabilities are not reliable: on average they differ from the accuracy by {error}."
        points.append(Point("bad", text, "reliability"))
    seen = {name: values for name, values in measurement.by_class.items() if values.images}
    if len(seen) > 1:
        name = min(seen, key=lambda name: seen[name].recall)
        worst = seen[name]
        quoted = f"\N{LEFT DOUBLE QUOTATION MARK}{_label(name)}\N{RIGHT DOUBLE QUOTATION MARK}"
        text = (
            f"The class with the lowest recall is {quoted}: "
            f"{format_percent(worst.recall)} of its {worst.images:,} images are recognised."
        )
        points.append(Point("bad" if worst.recall < 0.5 else "", text, "classes"))
    missing = len(measurement.by_class) - len(seen)
    if missing:
        text = f"{_count(missing, 'class has', 'classes have')} no images here and could not be measured."
        points.append(Point("bad", text))
    if label_errors is not None:
        listed, duplicates = label_errors.contradicted, len(label_errors.duplicates)
        if listed or duplicates:
            found = []
            if listed:
                found.append(f"{_count(listed, 'label is', 'labels are')} contradicted by the most similar images")
            if duplicates:
                found.append(
                    _count(duplicates, "pair of images is nearly identical", "pairs of images are nearly identical")
                )
            text = f"{' and '.join(found)}; they are shown below."
            points.append(Point("bad" if listed else "", text, "label_errors"))
        elif label_errors.checked:
            text = f"None of {label_errors.checked:,} checked labels is contradicted by the most similar images."
            points.append(Point("good", text, "label_errors"))
    return points


def point_at_threshold(thresholds: Thresholds | None) -> list[Point]:
    """List one sentence on the probability threshold; empty without thresholds."""
    if thresholds is None:
        return []
    overall, target = thresholds.overall, f"{100 * thresholds.target_precision:g}%"
    if not thresholds.kept:
        needed = explain_needed(thresholds.needed)
        text = f"No probability threshold promises a precision of {target}: review all labels; {needed}."
        return [Point("bad", text, "thresholds")]
    shared = len(thresholds.pooled) == len(thresholds.by_class)
    above = (
        f"with a probability of at least {format_decimal(overall.probability)}"
        if overall is not None and shared
        else "above the thresholds of their classes"
    )
    text = (
        f"Keep labels {above}, {format_percent(thresholds.kept)} of them: with "
        f"{100 * thresholds.confidence:g}% confidence, at least {target} are correct."
    )
    return [Point("good", text, "thresholds")]


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def list_classes(measurement: Measurement) -> ClassTable:
    """Return the table of classes."""
    by_class = measurement.by_class
    names = keep_frequent(list(by_class), [values.images for values in by_class.values()])
    rows = []
    for name in names:
        one = by_class[name]
        precision = Bound(one.precision, one.precision_low, one.precision_high) if one.predicted else None
        recall = Bound(one.recall, one.recall_low, one.recall_high) if one.images else None
        rows.append(ClassRow(name, precision, recall, one.f1, one.images, one.predicted))
    return ClassTable(rows, len(by_class) - len(rows))


def make_confusion(measurement: Measurement, classes: Sequence[str]) -> ConfusionTable:
    """Return the confusion matrix and the most confused pairs."""
    counts: dict[int, dict[int, int]] = {row: {} for row in range(len(classes))}
    for true, predicted, images in measurement.confusion:
        counts[true][predicted] = images
    totals = {name: sum(counts[row].values()) for row, name in enumerate(classes)}
    pairs = [
        SharedPair(pair.true, pair.predicted, pair.images, pair.images / totals[pair.true])
        for pair in list_confused(measurement.confusion, classes)
    ]
    return make_matrix(counts, classes, "predicted as", pairs)


def make_matrix(
    counts: Mapping[int, Mapping[int, int]], classes: Sequence[str], verb: str, pairs: Sequence[SharedPair] = ()
) -> ConfusionTable:
    """Return a table of counts by class; of more than `MAX_CLASSES`, without rows.

    Args:
        counts: by row and column.
        classes: names by index.
        verb: says how a row's class became a column's, in the titles of the cells.
        pairs: the most frequent cells beside the diagonal.
    """
    totals = [sum(counts[row].values()) for row in range(len(classes))]
    rows = []
    for row, name in enumerate(classes if len(classes) <= MAX_CLASSES else ()):
        total = totals[row]
        cells = []
        for column in range(len(classes)):
            count = counts[row].get(column, 0)
            share = count / total if total else 0.0
            opacity = share if row == column else math.sqrt(share)  # keeps rare mistakes visible
            kind = "same" if row == column else "other"
            kind += " zero" if not count else " strong" if opacity > _STRONG else ""
            title = f"{_label(name)} {verb} {_label(classes[column])}: {count:,} of {total:,}"
            cells.append(Cell(count, opacity, kind, title if count else ""))
        rows.append(MatrixRow(name, cells))
    wide = len(classes) <= _WIDE_CLASSES and all(len(name) <= _WIDE_COLUMNS for name in classes)
    return ConfusionTable(rows, list(classes), not wide, list(pairs))


def _label(name: str) -> str:
    return shorten(clean(name), 40)


def list_thresholds(thresholds: Thresholds | None, measurement: Measurement) -> ThresholdTable | None:
    """Return the table of thresholds; None without thresholds."""
    if thresholds is None:
        return None
    by_class = thresholds.by_class
    images = {name: values.images for name, values in measurement.by_class.items()}
    names = keep_frequent(list(by_class), [images.get(name, 0) for name in by_class])
    pooled = set(thresholds.pooled)
    rows = []
    if pooled:
        name = "all classes" if len(pooled) == len(by_class) else "classes without their own"
        rows.append(ThresholdRow(name, thresholds.overall, f"review all: {explain_needed(thresholds.needed)}"))
    for name in names:
        instead = "review all: too many are wrong"
        if name in pooled:
            instead = "shared" if thresholds.overall is not None else "review all"
            if (needed := thresholds.needed_by_class.get(name)) is not None:
                instead += f"; for a threshold of its own, {needed}"
        rows.append(ThresholdRow(name, by_class[name], instead))
    target, confidence = thresholds.target_precision, thresholds.confidence
    return ThresholdTable(target, confidence, thresholds.kept, rows, len(by_class) - len(names))


def pick_label_errors(label_errors: LabelErrorSummary | None) -> ShownLabelErrors | None:
    """Pick the label errors that a page shows; None if labels were not checked."""
    if label_errors is None:
        return None
    listed = [error for error in label_errors.listed if error.score >= LIKELY_ERROR]
    return ShownLabelErrors(
        checked=label_errors.checked,
        listed=listed[:MAX_LABEL_ERRORS],
        more_listed=max(0, label_errors.contradicted - MAX_LABEL_ERRORS),
        duplicates=label_errors.duplicates[:MAX_DUPLICATES],
        more_duplicates=max(0, len(label_errors.duplicates) - MAX_DUPLICATES),
    )
