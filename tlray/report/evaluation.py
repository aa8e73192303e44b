"""The page of an evaluation: `report.html` beside `evaluation.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from tlray.report import charts, measurement
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
_ODD_SHARE = 0.05


def render_evaluation(result: dict[str, Any], read: Reader[str]) -> bytes:
    """The page as UTF-8.

    Args:
        result: `evaluation.json`.
        read: brings the images of mistakes and label_errors by uri.
    """
    shown = measurement.pick_label_errors(result["label_errors"])
    worst = result["worst"][:_MAX_MISTAKES]
    uris = [mistake["uri"] for mistake in worst] + measurement.list_label_error_uris(shown)
    thumbnails = make_thumbnails(uris, read)
    headline = measurement.describe_accuracy(result, "labelled")
    before = result["uncalibrated"]
    counts = {name: values["images"] for name, values in result["by_class"].items()}
    return render(
        "evaluation.html",
        title=f"Evaluation: {shorten(clean(result['data']), 80)}",
        version=__version__,
        data=result["data"],
        headline=headline,
        points=_list_points(result),
        classes=measurement.list_classes(result),
        confusion=measurement.make_confusion(result, result["classes"]),
        reliability=charts.draw_reliability(result["bins"], before["bins"] if before else None),
        ece_before=before["ece"] if before else None,
        confidences=charts.draw_confidences(result["confidences"]),
        thresholds=measurement.list_thresholds(result["thresholds"], result),
        distribution=charts.draw_class_bars(counts),
        more_classes=max(0, len(counts) - MAX_CLASSES),
        failed=result["failed_by_code"],
        worst=worst,
        label_errors=shown,
        picture=thumbnails.get,
        thumbnails_full=thumbnails.full,
        facts=_list_facts(result),
    )


def _list_points(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """How far to trust the number above them."""
    points = measurement.point_at_threshold(result["thresholds"])
    points += measurement.list_points(result, result["label_errors"])
    odd = result["ood_score"]
    if odd is not None and odd["above_1"] > _ODD_SHARE:
        text = (
            f"{format_percent(odd['above_1'])} of the images look like nothing the model was trained on; "
            "1% would be usual."
        )
        points.append({"tone": "bad", "text": text})
    failed = sum(result["failed_by_code"].values())
    if failed:
        text = f"{failed:,} {'image' if failed == 1 else 'images'} could not be measured."
        points.append({"tone": "bad", "text": text})
    return points


def _list_facts(result: Mapping[str, Any]) -> list[tuple[str, Any]]:
    facts: list[tuple[str, Any]] = [
        ("Data", format_name(result["data"], 90)),
        ("Images", f"{result['images']:,} in {len(result['classes']):,} classes"),
        ("Macro F1", format_decimal(result["macro_f1"])),
        (f"Top-{result['top_k']} accuracy", format_percent(result["top_k_accuracy"])),
        ("Log loss", format_decimal(result["log_loss"])),
    ]
    if result["failed_by_code"]:
        failed = ", ".join(f"{code} {count:,}" for code, count in result["failed_by_code"].items())
        facts.append(("Not measured", clean(failed)))
    if result["ood_score"] is not None:
        odd = result["ood_score"]
        text = f"median {format_decimal(odd['median'], 2)}; {format_percent(odd['above_1'])} of the images above 1"
        facts.append(("Out-of-distribution score", text))
    facts.append(("Measured", format_moment(result["measured"])))
    facts.append(("Model id", Markup("<code>{}</code>").format(result["model_id"])))
    return facts
