"""The page of a prediction run, `report.html` in its output."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tlray.metrics.thresholds import Thresholds
from tlray.output.receipt import Receipt
from tlray.report import charts
from tlray.report.measurement import Point
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
from tlray.report.prediction_facts import MAX_FAILURES, Example, PredictionFacts
from tlray.report.thumbnails import Reader, make_thumbnails

_USUAL_OOD_SHARE = 0.01  # of validation images, by construction
_MANY_OOD = 0.05
_MANY_FAILED = 0.01
_PER_PAGE = 12
_MAX_PICTURE_BYTES = 6 * 2**20
_LEAST_SHIFT = 0.03  # of the images; less is not worth a table


def render_prediction(facts: PredictionFacts, read: Reader[int]) -> bytes:
    """Return the page as UTF-8.

    Args:
        facts: result of `gather_prediction_facts`.
        read: reader of images by row id; called once, with ascending ids.
    """
    names = sorted(facts.class_counts, key=lambda name: -facts.class_counts[name])
    shown = keep_frequent(names, [facts.class_counts[name] for name in names])
    examples = [ClassExamples(name, facts.surest[name], facts.least_sure[name], _browse(facts, name)) for name in shown]
    row_ids = {row.row_id for row in facts.most_ood}
    for one in examples:
        row_ids |= {row.row_id for row in [*one.surest, *one.least_sure, *itertools.chain(*one.pages)]}
    groups = facts.duplicates.shown if facts.duplicates else []
    row_ids |= {row.row_id for group in groups for row in group.examples}
    thumbnails = make_thumbnails(sorted(row_ids), read, _MAX_PICTURE_BYTES)
    reference = facts.validation
    counts = {name: facts.class_counts.get(name, 0) for name in facts.classes}
    return render(
        "prediction.html",
        title=f"Prediction report: {shorten(clean(_name_input(facts.receipt)), 80)}",
        version=facts.receipt.versions.get("tlray", ""),
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
        shifted=_list_shifted(facts),
        more_shifted=max(0, len(facts.corrected or ()) - MAX_CLASSES),
        throughput=charts.draw_throughput(facts.timeline),
        failures=[
            {"code": code, "count": count, "examples": facts.failures.get(code, [])}
            for code, count in sorted(facts.receipt.failed_by_code.items(), key=lambda item: -item[1])
        ],
        max_failures=MAX_FAILURES,
        most_ood=facts.most_ood,
        duplicates=facts.duplicates,
        promise=facts.promise,
        verdict=facts.verdict,
        validated=reference.images if reference else 0,
        examples=examples,
        more_examples=len(names) - len(shown),
        class_counts=facts.class_counts,
        picture=thumbnails.get,
        thumbnails_full=thumbnails.full,
        facts=_list_facts(facts),
    )


@dataclass(frozen=True)
class ClassExamples:
    """Rows of a class: the most and the least confident ones, and pages of rows drawn at random."""

    name: str
    surest: list[Example]
    least_sure: list[Example]
    pages: list[list[Example]]


def _browse(facts: PredictionFacts, name: str) -> list[list[Example]]:
    """Return pages of rows; none where the others show nearly all of the class."""
    rows = facts.browsed[name]
    if facts.class_counts[name] <= _PER_PAGE:
        return []
    return [rows[start : start + _PER_PAGE] for start in range(0, len(rows), _PER_PAGE)]


@dataclass(frozen=True)
class ShiftedClass:
    """A class with its share of the labels, and its share corrected for label shift."""

    name: str
    labels: float
    corrected: float


def _list_shifted(facts: PredictionFacts) -> list[ShiftedClass]:
    """List the classes whose shares change most, where they change enough to matter."""
    if facts.corrected is None or _measure_distance(facts) < _LEAST_SHIFT:
        return []
    shares = {name: count / facts.labelled_read for name, count in facts.class_counts.items()}
    names = list(facts.corrected)
    names = keep_frequent(names, [abs(shares.get(name, 0.0) - facts.corrected[name]) for name in names])
    rows = [ShiftedClass(name, shares.get(name, 0.0), facts.corrected[name]) for name in names]
    return sorted(rows, key=lambda row: -row.labels)


def _measure_distance(facts: PredictionFacts) -> float:
    """Return the share of the rows that would be in other classes after the correction."""
    corrected = facts.corrected or {}
    return 0.5 * sum(
        abs(facts.class_counts.get(name, 0) / facts.labelled_read - share) for name, share in corrected.items()
    )


def _name_input(receipt: Receipt) -> str:
    given = receipt.config.get("input", "")
    return given if isinstance(given, str) else ", ".join(given)


def _describe_sample(facts: PredictionFacts) -> str:
    if not facts.is_sample:
        return ""
    return (
        f"Class counts, confidence and review counts are from a sample: {facts.rows_read:,} of "
        f"{facts.receipt.planned:,} rows, in parts spread evenly over the archive."
    )


def _list_figures(facts: PredictionFacts) -> list[tuple[str, str]]:
    """List the numbers at the top of the page."""
    receipt = facts.receipt
    figures = [("labelled", format_count(receipt.labelled)), ("failed", format_count(receipt.failed))]
    for count, heading in ((facts.needs_review, "need review"), (facts.ood, "out of distribution")):
        if count is not None:
            share = count / max(facts.labelled_read, 1)
            figures.append((heading, format_percent(share) if facts.is_sample else format_count(count)))
    return figures


def _list_points(facts: PredictionFacts) -> list[Point]:
    """List sentences on how far to trust the labels."""
    receipt = facts.receipt
    points: list[Point] = []
    share = receipt.failed / max(receipt.planned, 1)
    if receipt.failed:
        codes = receipt.failed_by_code
        most = max(codes, key=lambda code: codes[code])
        text = f"{format_percent(share)} of the rows have no label, most of them {clean(most)} ({codes[most]:,})."
        points.append(Point("bad" if share > _MANY_FAILED else "", text))
    else:
        points.append(Point("good", "Every row has its label."))
    if facts.needs_review is not None and facts.labelled_read:
        review = format_percent(facts.needs_review / facts.labelled_read)
        text = f"{review} of the labels need a review, as --min-probability or --max-ood asked."
        points.append(Point("", text))
    if facts.promise is not None:
        points.append(Point("", _describe_promise(facts.promise), "promise"))
    if facts.shift is not None and facts.verdict is not None:
        points.append(Point("good" if facts.shift.fits else "bad", facts.verdict, "classes"))
    if facts.corrected is not None and (distance := _measure_distance(facts)) >= _LEAST_SHIFT:
        text = (
            f"Counts of labels may mislead: corrected for label shift, {format_percent(distance)} of the images would "
            "be counted in other classes. tlray audit measures the counts."
        )
        points.append(Point("", text, "shift"))
    if facts.duplicates is not None and facts.duplicates.surplus:
        surplus, compared = format_count(facts.duplicates.surplus), format_count(facts.duplicates.compared)
        text = f"{surplus} of {compared} compared images are nearly the same as another one; counts include them."
        points.append(Point("", text, "duplicates"))
    if facts.ood is not None and facts.labelled_read:
        ood = facts.ood / facts.labelled_read
        text = (
            f"{format_percent(ood)} of the images are less like the training images than 99% of the validation images; "
            f"{format_percent(_USUAL_OOD_SHARE, 0)} is expected."
        )
        points.append(Point("bad" if ood > _MANY_OOD else "good", text, "ood" if facts.most_ood else ""))
    return points


def _describe_promise(thresholds: Thresholds) -> str:
    target, confidence = f"{100 * thresholds.target_precision:g}%", f"{100 * thresholds.confidence:g}%"
    return (
        f"Of the labels that no probability marks for review, at least {target} are right with {confidence} "
        "confidence, if this archive resembles the validation images."
    )


def _list_facts(facts: PredictionFacts) -> list[tuple[str, Any]]:
    """List the facts of the run."""
    receipt = facts.receipt
    listed: list[tuple[str, Any]] = [
        ("Input", format_name(_name_input(receipt), 90)),
        ("Rows", f"{receipt.planned:,} in {len(receipt.parts):,} part{'' if len(receipt.parts) == 1 else 's'}"),
    ]
    if receipt.excluded:
        listed.append(("Excluded", f"{receipt.excluded:,} files that are not images or were not selected"))
    if receipt.update is not None:
        told = Markup("{}; from {}").format(str(receipt.update), format_name(receipt.update.earlier, 60))
        listed.append(("Update", told))
    listed += [("Started", format_moment(receipt.started)), ("Finished", format_moment(receipt.finished))]
    speed = f"{receipt.images_per_s:,.1f} images/s overall"
    if receipt.first_label_s is not None:
        speed += f", first label after {receipt.first_label_s:.1f} s"
    if receipt.images_per_s_steady != receipt.images_per_s:
        speed += f"; {receipt.images_per_s_steady:,.1f} images/s from then on"
    listed.append(("Speed", speed))
    if receipt.engines:
        engines = "; ".join(f"{count:,} in {form}" for form, count in receipt.engines.items())
        listed.append(("Engines", clean(engines)))
    if receipt.stages:
        stages = ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in receipt.stages.items())
        listed.append(("Time", clean(stages)))
    if receipt.retries:
        listed.append(("Retries", f"{receipt.retries:,} requests were repeated"))
    listed.append(("Versions", clean(", ".join(f"{name} {number}" for name, number in receipt.versions.items()))))
    listed.append(("Model id", Markup("<code>{}</code>").format(receipt.model_id)))
    listed.append(("Run id", Markup("<code>{}</code>").format(receipt.run_id)))
    return listed
