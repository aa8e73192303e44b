"""The page of a labelling run: `report.html` in its output. `gather_labelling` reads, `render_labelling` writes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from markupsafe import Markup

from tlray import storage
from tlray.prediction.parts import FOLDER
from tlray.prediction.receipt import Receipt
from tlray.reader import OK
from tlray.report import charts
from tlray.report.page import (
    MAX_CLASSES,
    clean,
    format_count,
    format_duration,
    format_moment,
    format_name,
    format_percent,
    keep_frequent,
    render,
    shorten,
)
from tlray.report.thumbnails import Reader, make_thumbnails

MAX_PARTS = 512
"""Parts that are read back; of more, so many spread evenly."""

_COLUMNS = ["row_id", "uri", "status", "error", "class_name", "probability", "needs_review", "oddness"]
_BINS = 20
_MAX_FAILURES = 8
_MAX_EXAMPLES = 6
_MAX_ODD = 12
_ODD = 1.0

_LEAST_DISTANCE = 0.1  # a tenth of the images in other classes: less is not worth a warning
_LEAST_DIFFERENCE = 0.05  # of the mean confidence
_SURE = 0.01  # how often noise alone may look like a difference
_SURE_DEVIATIONS = 2.576  # the same, two-sided, of a normal distribution
_USUAL_ODD_SHARE = 0.01  # of validation images, by construction
_MANY_ODD = 0.05


@dataclass(frozen=True)
class Example:
    """A labelled row to look at.

    Attributes:
        row_id: its number in the plan.
        uri: where it lies.
        class_name: what it was taken for.
        probability: of that class.
        oddness: above 1 it is odder than 99% of the validation images; None where that isn't known.
    """

    row_id: int
    uri: str
    class_name: str
    probability: float
    oddness: float | None


@dataclass(frozen=True)
class Failure:
    """A row without a label: where it lies, and why."""

    uri: str
    error: str


@dataclass(frozen=True)
class Validation:
    """What the bundle's validation images were answered.

    Attributes:
        images: how many there were.
        shares: of them, by predicted class.
        confidence: mean probability of the predicted class.
        confidences: `[20]`, images by that probability over [0, 1].
    """

    images: int
    shares: dict[str, float]
    confidence: float
    confidences: list[int]


@dataclass(frozen=True)
class Shift:
    """How far an archive's answers are from validation's, and from where on that counts.

    Attributes:
        distance: total variation distance of the class shares, in [0, 1]: the share of images in other classes.
        distance_limit: more is neither small nor noise.
        difference: the archive's mean confidence less validation's.
        difference_limit: more, either way, is neither small nor noise.
        class_name: the class whose share differs most.
    """

    distance: float
    distance_limit: float
    difference: float
    difference_limit: float
    class_name: str

    @property
    def fits(self) -> bool:
        """Whether neither is beyond its limit."""
        return self.distance <= self.distance_limit and abs(self.difference) <= self.difference_limit


@dataclass(frozen=True)
class LabellingFacts:
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
        odd: rows with an oddness above 1, None where it isn't known.
        failures: up to 8 rows of each code.
        surest, least_sure: up to 6 rows of each class, in that order.
        oddest: up to 12 rows, the oddest first.
        timeline: samples of `seconds` since the start, rows `answered` and `written` until then.
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
        return compare_with_validation(self)


def gather_labelling(
    output: str, receipt: Receipt, manifest: dict[str, Any], timeline: list[dict[str, float]]
) -> LabellingFacts:
    """Read the labels of a finished run back, at most `MAX_PARTS` parts; memory holds one part and the examples.

    Args:
        output: of the run, with its parts in `labels/`.
        receipt: names the parts.
        manifest: `bundle.json` of the model.
        timeline: samples of `seconds`, `answered`, `written`.

    Raises:
        FetchError: a part cannot be read.
        ArrowException, OSError: it is damaged.
    """
    names = _spread([part["name"] for part in receipt.parts], MAX_PARTS)
    tally = _Tally()
    for name in names:
        for table in _read_part(storage.join(output, FOLDER, name)):
            tally.add(table)
    return LabellingFacts(
        receipt=asdict(receipt),
        classes=tuple(manifest["classes"]),
        class_counts={name: tally.counts[name] for name in manifest["classes"] if tally.counts[name]},
        confidences=tally.confidences.tolist(),
        confidence=tally.confidence / tally.confidences.sum() if tally.confidences.any() else None,
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


def _read_part(address: str) -> Iterator[pa.Table]:
    """The columns of a part that the page needs, a row group at a time."""
    with storage.open_arrow(address) as source:
        file = pq.ParquetFile(source)
        for group in range(file.num_row_groups):
            # Arrow's own threads could outlive the call; see `parts.from_parquet`
            yield file.read_row_group(group, _COLUMNS, use_threads=False)


def read_validation(manifest: Mapping[str, Any]) -> Validation | None:
    """What a bundle knows of its validation images, None where it had none or its tlray didn't measure them."""
    measured = manifest["metrics"].get("validation", {})
    if not measured.get("images") or not {"by_class", "bins", "confidences"} <= measured.keys():
        return None
    images = measured["images"]
    return Validation(
        images=images,
        shares={name: values["predicted"] / images for name, values in measured["by_class"].items()},
        confidence=sum(entry["images"] * entry["confidence"] for entry in measured["bins"]) / images,
        confidences=list(measured["confidences"]),
    )


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
        review, oddness = table["needs_review"], table["oddness"]
        if review.null_count < len(review):
            self.needs_review = (self.needs_review or 0) + (pc.sum(review).as_py() or 0)
        odd = np.nan_to_num(oddness.to_numpy(), nan=-math.inf)
        if oddness.null_count < len(oddness):
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
            for row in np.flatnonzero(codes == code)[: _MAX_FAILURES - len(kept)].tolist():
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
        self.oddest = sorted([*self.oddest, *more], key=lambda row: -(row.oddness or 0.0))[:_MAX_ODD]


def _find_largest(values: npt.NDArray[np.floating[Any]], most: int) -> npt.NDArray[np.intp]:
    return np.argsort(-values, kind="stable")[:most]


def _make_examples(table: pa.Table, rows: Iterable[int]) -> list[Example]:
    names = ["row_id", "uri", "class_name", "probability", "oddness"]
    return [Example(*(table[name][int(row)].as_py() for name in names)) for row in rows]


def measure_shift(facts: LabellingFacts) -> Shift | None:
    """Compare class shares and confidence with validation's; None where there is nothing to compare.

    Shares differ by more than noise where their total variation distance is above the one expected of two samples of
    one distribution (half the sum of the mean absolute deviations of normal variables) by more than McDiarmid's
    inequality allows in 1% of cases; means, where they are more than 2.576 standard errors apart.
    """
    validation, labelled = facts.validation, facts.labelled_read
    if validation is None or facts.confidence is None or not labelled:
        return None
    names = list(dict.fromkeys([*validation.shares, *facts.class_counts]))
    here = np.array([facts.class_counts.get(name, 0) / labelled for name in names])
    there = np.array([validation.shares.get(name, 0.0) for name in names])
    parts = 1 / labelled + 1 / validation.images
    together = (here * labelled + there * validation.images) / (labelled + validation.images)
    expected = 0.5 * float(np.sqrt(2 / math.pi * together * (1 - together) * parts).sum())
    noise = math.sqrt(-math.log(_SURE) / 2 * parts)
    variances = _measure_variance(facts.confidences) / labelled
    variances += _measure_variance(validation.confidences) / validation.images
    return Shift(
        distance=0.5 * float(np.abs(here - there).sum()),
        distance_limit=expected + max(_LEAST_DISTANCE, noise),
        difference=facts.confidence - validation.confidence,
        difference_limit=max(_LEAST_DIFFERENCE, _SURE_DEVIATIONS * math.sqrt(variances)),
        class_name=names[int(np.abs(here - there).argmax())],
    )


def _measure_variance(histogram: Sequence[int]) -> float:
    """Of values in equal bins over [0, 1]."""
    counts = np.array(histogram, np.float64)
    middles = (np.arange(len(counts)) + 0.5) / len(counts)
    total = max(counts.sum(), 1.0)
    mean = (counts * middles).sum() / total
    return float((counts * (middles - mean) ** 2).sum() / total)


def compare_with_validation(facts: LabellingFacts) -> str | None:
    """One sentence on whether the answers look like those on validation images, None where that cannot be told."""
    shift, validation = measure_shift(facts), facts.validation
    if shift is None or validation is None:
        return None
    if shift.fits:
        return "Classes and confidence look like those of the validation images."
    faults = []
    if shift.distance > shift.distance_limit:
        name = shift.class_name
        share = facts.class_counts.get(name, 0) / facts.labelled_read
        faults.append(
            f"the classes are spread otherwise ({shorten(clean(name), 40)} is {format_percent(share)} here and "
            f"{format_percent(validation.shares.get(name, 0.0))} there)"
        )
    if abs(shift.difference) > shift.difference_limit:
        way = "less" if shift.difference < 0 else "more"
        faults.append(
            f"the answers are {way} sure (on average {format_percent(facts.confidence)} here and "
            f"{format_percent(validation.confidence)} there)"
        )
    return f"This archive is not like the validation images: {' and '.join(faults)}. Review a sample of its labels."


def render_labelling(facts: LabellingFacts, read: Reader[int]) -> bytes:
    """The page as UTF-8.

    Args:
        facts: by `gather_labelling`.
        read: brings images by row id; asked once, for ascending ids.
    """
    names = sorted(facts.class_counts, key=lambda name: -facts.class_counts[name])
    shown = keep_frequent(names, [facts.class_counts[name] for name in names])
    examples = [(name, facts.surest[name], facts.least_sure[name]) for name in shown]
    row_ids = {row.row_id for row in facts.oddest}
    row_ids |= {row.row_id for _, surest, least_sure in examples for row in [*surest, *least_sure]}
    thumbnails = make_thumbnails(sorted(row_ids), read)
    reference = facts.validation
    counts = {name: facts.class_counts.get(name, 0) for name in facts.classes}
    return render(
        "labelling.html",
        title=f"Labelling report: {shorten(clean(_name_input(facts.receipt)), 80)}",
        version=facts.receipt["versions"].get("tlray", ""),
        input=_name_input(facts.receipt),
        receipt=facts.receipt,
        figures=_list_figures(facts),
        points=_list_points(facts),
        sample=_describe_sample(facts),
        labelled_read=facts.labelled_read,
        distribution=charts.draw_class_bars(counts, reference.shares if reference else None),
        more_classes=max(0, len(counts) - MAX_CLASSES),
        confidences=charts.draw_confidences(facts.confidences, reference.confidences if reference else None),
        compared=reference is not None,
        throughput=charts.draw_throughput(facts.timeline),
        failures=[
            {"code": code, "count": count, "examples": facts.failures.get(code, [])}
            for code, count in sorted(facts.receipt["failed_by_code"].items(), key=lambda item: -item[1])
        ],
        max_failures=_MAX_FAILURES,
        oddest=facts.oddest,
        examples=examples,
        more_examples=len(names) - len(shown),
        class_counts=facts.class_counts,
        picture=thumbnails.get,
        thumbnails_full=thumbnails.full,
        facts=_list_facts(facts),
    )


def _name_input(receipt: Mapping[str, Any]) -> str:
    given = receipt["config"].get("input", "")
    return given if isinstance(given, str) else ", ".join(given)


def _describe_sample(facts: LabellingFacts) -> str:
    if not facts.is_sample:
        return ""
    return (
        f"Counts of classes, confidence and review are of a sample: {facts.rows_read:,} of "
        f"{facts.receipt['planned']:,} rows, in parts spread evenly over the archive."
    )


def _list_figures(facts: LabellingFacts) -> list[tuple[str, str]]:
    """The first screen's numbers."""
    receipt = facts.receipt
    figures = [("labelled", format_count(receipt["labelled"])), ("failed", format_count(receipt["failed"]))]
    for count, heading in ((facts.needs_review, "need review"), (facts.odd, "look odd")):
        if count is not None:
            share = count / max(facts.labelled_read, 1)
            figures.append((heading, format_percent(share) if facts.is_sample else format_count(count)))
    return figures


def _list_points(facts: LabellingFacts) -> list[dict[str, str]]:
    """How far to trust the labels."""
    receipt, points = facts.receipt, []
    share = receipt["failed"] / max(receipt["planned"], 1)
    if receipt["failed"]:
        codes = receipt["failed_by_code"]
        most = max(codes, key=lambda code: codes[code])
        text = f"{format_percent(share)} of the rows have no label, most of them {clean(most)} ({codes[most]:,})."
        points.append({"tone": "bad" if share > 0.01 else "", "text": text})
    else:
        points.append({"tone": "good", "text": "Every row has its label."})
    if facts.needs_review is not None and facts.labelled_read:
        text = f"{format_percent(facts.needs_review / facts.labelled_read)} of the labels are too unsure: review them."
        points.append({"tone": "", "text": text})
    shift = measure_shift(facts)
    if shift is not None and facts.verdict is not None:
        points.append({"tone": "good" if shift.fits else "bad", "text": facts.verdict})
    if facts.odd is not None and facts.labelled_read:
        odd = facts.odd / facts.labelled_read
        text = (
            f"{format_percent(odd)} of the images look odder than 99% of the validation images; "
            f"{format_percent(_USUAL_ODD_SHARE, 0)} would be usual."
        )
        points.append({"tone": "bad" if odd > _MANY_ODD else "good", "text": text})
    return points


def _list_facts(facts: LabellingFacts) -> list[tuple[str, Any]]:
    """What was done, with what."""
    receipt = facts.receipt
    listed: list[tuple[str, Any]] = [
        ("Input", format_name(_name_input(receipt), 90)),
        ("Rows", f"{receipt['planned']:,} in {len(receipt['parts']):,} parts"),
    ]
    if receipt["excluded"]:
        listed.append(("Excluded", f"{receipt['excluded']:,} files that are not images, or were not asked for"))
    if receipt["update"] is not None:
        told = ", ".join(f"{receipt['update'][name]:,} {name}" for name in ("kept", "new", "changed", "vanished"))
        listed.append(("Update", Markup("{}; from {}").format(told, format_name(receipt["update"]["from"], 60))))
    listed += [("Started", format_moment(receipt["started"])), ("Finished", format_moment(receipt["finished"]))]
    speed = f"{receipt['images_per_s']:,.1f} images/s over all"
    if receipt["first_label_s"] is not None:
        speed += f", the first label after {receipt['first_label_s']:.1f} s"
    if receipt["images_per_s_steady"] != receipt["images_per_s"]:
        speed += f"; {receipt['images_per_s_steady']:,.1f} images/s from there on"
    listed.append(("Speed", speed))
    if receipt["engines"]:
        engines = "; ".join(f"{count:,} in {form}" for form, count in receipt["engines"].items())
        listed.append(("Engines", clean(engines)))
    if receipt["stages"]:
        stages = ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in receipt["stages"].items())
        listed.append(("Time", clean(stages)))
    if receipt["retries"]:
        listed.append(("Retries", f"{receipt['retries']:,} requests were asked again"))
    listed.append(("Versions", clean(", ".join(f"{name} {number}" for name, number in receipt["versions"].items()))))
    listed.append(("Model id", Markup("<code>{}</code>").format(receipt["model_id"])))
    listed.append(("Run id", Markup("<code>{}</code>").format(receipt["run_id"])))
    return listed
