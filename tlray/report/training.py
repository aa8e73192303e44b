"""The page of a training: `report.html` in the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tlray.report import charts, measurement
from tlray.report.page import (
    MAX_CLASSES,
    clean,
    format_duration,
    format_moment,
    format_name,
    format_percent,
    render,
    shorten,
)
from tlray.report.thumbnails import Reader, make_thumbnails

_PHASES = {"head": "the head phase", "finetune": "fine-tuning"}


def render_training(
    manifest: dict[str, Any],
    history: list[dict[str, Any]],
    label_errors: dict[str, Any] | None,
    read: Reader[str],
    finished: str | None = None,
) -> bytes:
    """The page as UTF-8.

    Args:
        manifest: `bundle.json`.
        history: one record an epoch.
        label_errors: what was found among the labels, None where nobody looked.
        read: brings the images of the label_errors by uri.
        finished: when, in UTC, ISO 8601.
    """
    metrics, training = manifest["metrics"], manifest["training"]
    roles = [role for role in ("test", "validation") if role in metrics]
    best = metrics[roles[0]] if roles else None
    shown = measurement.pick_label_errors(label_errors)
    thumbnails = make_thumbnails(measurement.list_label_error_uris(shown), read)
    validated = any(record["val_loss"] is not None for record in history)
    before = metrics.get("uncalibrated")
    values: dict[str, Any] = {
        "title": f"Training report: {shorten(clean(training['data']), 80)}",
        "version": manifest["versions"].get("tlray", ""),
        "data": training["data"],
        "headline": measurement.describe_accuracy(best, roles[0]) if best else None,
        "points": _list_points(manifest, roles, label_errors),
        "curves": [(name, _draw_curve(history, name, metrics)) for name in ("accuracy", "loss")] if history else [],
        "kept": _describe_kept(metrics),
        "validated": validated,
        "measured": [measurement.describe_accuracy(metrics[role], role) for role in roles],
        "thresholds": measurement.list_thresholds(manifest["thresholds"], metrics["validation"])
        if "validation" in metrics
        else None,
        "label_errors": shown,
        "picture": thumbnails.get,
        "thumbnails_full": thumbnails.full,
        "distribution": None,
        "distribution_of": " and ".join(reversed(roles)),
        "more_classes": max(0, len(manifest["classes"]) - MAX_CLASSES),
        "facts": _list_facts(manifest, history, finished),
    }
    if best:
        shaped = metrics["validation"] if before else best  # before and after belong to the same images
        counts = {
            name: sum(metrics[role]["by_class"][name]["images"] for role in roles) for name in manifest["classes"]
        }
        values |= {
            "classes": measurement.list_classes(best),
            "confusion": measurement.make_confusion(best, manifest["classes"]),
            "reliability": charts.draw_reliability(shaped["bins"], before["bins"] if before else None),
            "reliability_of": "validation" if before else roles[0],
            "ece": shaped["ece"],
            "ece_before": before["ece"] if before else None,
            "confidences": charts.draw_confidences(shaped["confidences"]),
            "distribution": charts.draw_class_bars(counts),
        }
    return render("training.html", **values)


def _draw_curve(history: Sequence[dict[str, Any]], name: str, metrics: Mapping[str, Any]) -> Markup:
    return charts.draw_learning_curve(history, name, metrics["kept"]["epoch"])


def _list_points(
    manifest: Mapping[str, Any], roles: Sequence[str], label_errors: Mapping[str, Any] | None
) -> list[dict[str, str]]:
    """How far to trust the number above them."""
    points = []
    if not roles:
        text = "Give --val-data or --test-data, or a larger --val-fraction, to learn how good the model is."
        return [{"tone": "bad", "text": text}]
    if roles[0] == "test":
        text = "Measured on test images, which had no part in training."
        points.append({"tone": "good", "text": text})
    else:
        text = (
            "Measured on validation images, which also chose the epoch and set the probabilities: a little too "
            "hopeful. Give --test-data for a number that is not."
        )
        points.append({"tone": "bad", "text": text})
    if "validation" in roles:
        points += measurement.point_at_threshold(manifest["thresholds"])
    points += measurement.list_points(manifest["metrics"][roles[0]], label_errors)
    left_out = manifest["training"]["left_out"]
    if left_out:
        points.append(
            {"tone": "bad", "text": f"{_count_images(left_out)} could not be decoded and left out of training."}
        )
    return points


def _describe_kept(metrics: Mapping[str, Any]) -> str:
    kept = metrics["kept"]
    text = f"Epoch {kept['epoch']} was kept, of {_PHASES[kept['phase']]}."
    best = [
        f"{format_percent(record['val_accuracy'])} in {_PHASES[phase]} (epoch {record['epoch']})"
        for phase, record in metrics["phases"].items()
        if record["val_accuracy"] is not None
    ]
    return f"{text} The best validation accuracy was {' and '.join(best)}." if best else text


def _count_images(count: int) -> str:
    return f"{count:,} {'image' if count == 1 else 'images'}"


def _list_facts(
    manifest: Mapping[str, Any], history: Sequence[Mapping[str, Any]], finished: str | None
) -> list[tuple[str, Any]]:
    """What was done, with what."""
    architecture, calibration = manifest["architecture"], manifest["calibration"]
    training = {**manifest["training"], **manifest["training"]["resolved"]}
    counts = training["counts"]
    images = [f"{count:,} {role}" for role, count in counts.items() if count]
    if training["left_out"]:
        images.append(f"{training['left_out']:,} left out")
    head = " \N{RIGHTWARDS ARROW} ".join(map(str, [*architecture["head_units"], len(manifest["classes"])]))
    size = manifest["preprocessing"]["image_size"]
    facts: list[tuple[str, Any]] = [("Data", format_name(training["data"], 90))]
    for option, heading in (("val_data", "Validation data"), ("test_data", "Test data")):
        if training[option]:
            facts.append((heading, format_name(training[option], 90)))
    facts += [
        ("Images", ", ".join(images)),
        ("Classes", f"{len(manifest['classes']):,}"),
        ("Network", f"{clean(architecture['backbone'])} \N{RIGHTWARDS ARROW} {head}, from {size} x {size} pixels"),
        ("Weights", format_name(str(training["weights"]), 90)),
    ]
    for phase, heading in (("head", "Phase 1"), ("finetune", "Phase 2")):
        epochs = sum(record["phase"] == phase for record in history)
        if epochs:
            rate = f"{training[f'{phase}_optimizer']} at {training[f'lr_{phase}']:g}"
            part = "the head" if phase == "head" else f"from {clean(training['finetune_from'])} on"
            facts.append((heading, f"{part}; {epochs:,} {'epoch' if epochs == 1 else 'epochs'}, {rate}"))
    facts += [
        ("Batch", f"{training['batch_size']:,} a worker, {training['num_workers']:,} workers"),
        ("Precision", clean(training["precision"])),
        ("Seed", str(training["seed"])),
    ]
    if calibration["images"]:
        facts.append(
            ("Calibration", f"temperature {calibration['temperature']:.3f}, from {calibration['images']:,} images")
        )
    seconds = sum(record["seconds"] for record in history)
    facts.append(("Time", f"{format_duration(seconds)} in {len(history):,} epochs"))
    if finished is not None:
        facts.append(("Finished", format_moment(finished)))
    facts.append(("Versions", clean(", ".join(f"{name} {number}" for name, number in manifest["versions"].items()))))
    facts.append(("Model id", Markup("<code>{}</code>").format(manifest["model_id"])))
    return facts
