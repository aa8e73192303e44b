"""The evaluation record `evaluation.json` and its page, `report.html` beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tlray.metrics.classification import ConfusedPair, Measurement
from tlray.metrics.label_errors import LabelErrorSummary
from tlray.metrics.thresholds import Thresholds
from tlray.report import charts, measurement
from tlray.report.measurement import Headline, Point
from tlray.report.page import (
    MAX_CLASSES,
    clean,
    format_decimal,
    format_moment,
    format_name,
    format_percent,
    render,
    shorten,
)
from tlray.report.thumbnails import Reader, make_thumbnails
from tlray.version import __version__

_MAX_MISTAKES = 60
_OOD_SHARE = 0.05


@dataclass(frozen=True)
class Mistake:
    """An image whose predicted class is not its label."""

    uri: str
    true: str
    predicted: str
    probability: float
    true_probability: float


@dataclass(frozen=True)
class OodShares:
    """Out-of-distribution scores of the images: their median, and the share above 1."""

    median: float
    above_1: float


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord(Measurement):
    """`evaluation.json`: metrics over the images that could be decoded, and their provenance.

    Attributes:
        model_id: the bundle's identity.
        data: address of the images, as given.
        classes: names by index.
        failed_by_code: number of images that could not be measured, by error code.
        measured: time of the evaluation, UTC, ISO 8601.
        most_confused: confused pairs, most frequent first.
        thresholds: chosen on these images.
        ood_score: None where the bundle has no out-of-distribution score.
        worst: mistakes, most confident first.
        label_errors: likely label errors.
    """

    model_id: str
    data: str
    classes: list[str]
    failed_by_code: dict[str, int]
    measured: str
    most_confused: list[ConfusedPair]
    thresholds: Thresholds
    ood_score: OodShares | None
    worst: list[Mistake]
    label_errors: LabelErrorSummary


def render_evaluation(result: EvaluationRecord, read: Reader[str]) -> bytes:
    """Return the page as UTF-8.

    Args:
        result: `evaluation.json`.
        read: reader of the images of mistakes and label errors, by uri.
    """
    shown = measurement.pick_label_errors(result.label_errors)
    worst = result.worst[:_MAX_MISTAKES]
    uris = [mistake.uri for mistake in worst] + (shown.list_uris() if shown else [])
    thumbnails = make_thumbnails(uris, read)
    counts = {name: values.images for name, values in result.by_class.items()}
    return render(
        "evaluation.html",
        title=f"Evaluation: {shorten(clean(result.data), 80)}",
        version=__version__,
        data=result.data,
        headline=Headline("labelled", result),
        points=_list_points(result),
        classes=measurement.list_classes(result),
        confusion=measurement.make_confusion(result, result.classes),
        reliability=charts.draw_reliability(result.bins),
        ece_before=None,
        confidences=charts.draw_confidences(result.confidences),
        thresholds=measurement.list_thresholds(result.thresholds, result),
        distribution=charts.draw_class_bars(counts),
        more_classes=max(0, len(counts) - MAX_CLASSES),
        failed=result.failed_by_code,
        worst=worst,
        label_errors=shown,
        picture=thumbnails.get,
        thumbnails_full=thumbnails.full,
        facts=_list_facts(result),
    )


def _list_points(result: EvaluationRecord) -> list[Point]:
    """List sentences on how far to trust the headline number."""
    points = measurement.point_at_threshold(result.thresholds)
    points += measurement.list_points(result, result.label_errors)
    ood = result.ood_score
    if ood is not None and ood.above_1 > _OOD_SHARE:
        text = (
            f"{format_percent(ood.above_1)} of the images are out of distribution, unlike the training images; "
            "1% is expected."
        )
        points.append(Point("bad", text))
    failed = sum(result.failed_by_code.values())
    if failed:
        points.append(Point("bad", f"{failed:,} {'image' if failed == 1 else 'images'} could not be measured."))
    return points


def _list_facts(result: EvaluationRecord) -> list[tuple[str, Any]]:
    facts: list[tuple[str, Any]] = [
        ("Data", format_name(result.data, 90)),
        ("Images", f"{result.images:,} in {len(result.classes):,} classes"),
        ("Macro F1", format_decimal(result.macro_f1)),
        (f"Top-{result.top_k} accuracy", format_percent(result.top_k_accuracy)),
        ("Log loss", format_decimal(result.log_loss)),
    ]
    if result.failed_by_code:
        failed = ", ".join(f"{code} {count:,}" for code, count in result.failed_by_code.items())
        facts.append(("Not measured", clean(failed)))
    if result.ood_score is not None:
        ood = result.ood_score
        text = f"median {format_decimal(ood.median, 2)}; {format_percent(ood.above_1)} of the images above 1"
        facts.append(("Out-of-distribution score", text))
    facts.append(("Measured", format_moment(result.measured)))
    facts.append(("Model id", Markup("<code>{}</code>").format(result.model_id)))
    return facts
