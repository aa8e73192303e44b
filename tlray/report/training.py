"""The page of a training run, `report.html` in the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from tlray.metrics.label_errors import LabelErrorSummary
from tlray.model.manifest import EpochRecord, Manifest, Metrics, TrainingRecord
from tlray.report import charts, measurement
from tlray.report.measurement import Headline, Point
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
    manifest: Manifest,
    history: Sequence[EpochRecord],
    label_errors: LabelErrorSummary | None,
    read: Reader[str],
    finished: str | None = None,
) -> bytes:
    """Return the page as UTF-8.

    Args:
        manifest: `bundle.json`.
        history: one record per epoch.
        label_errors: likely label errors, None if labels were not checked.
        read: reader of the images of label errors, by uri.
        finished: end of the training, UTC, ISO 8601.
    """
    metrics, training = manifest.metrics, manifest.training
    assert training is not None
    measured = [Headline(metrics.name(role), one) for role, one in reversed(metrics.list_measured())]
    headline = measured[0] if measured else None
    shown = measurement.pick_label_errors(label_errors)
    thumbnails = make_thumbnails(shown.list_uris() if shown else [], read)
    data = training.data
    values: dict[str, Any] = {
        "title": f"Training report: {shorten(clean(data), 80)}",
        "version": manifest.versions.get("tlray", ""),
        "data": data,
        "headline": headline,
        "points": _list_points(manifest, training, measured, label_errors),
        "curves": [(name, _draw_curve(history, name, metrics)) for name in ("accuracy", "loss")] if history else [],
        "kept": _describe_kept(metrics),
        "validated": any(record.val_loss is not None for record in history),
        "measured": measured,
        "thresholds": measurement.list_thresholds(manifest.thresholds, metrics.validation)
        if metrics.validation
        else None,
        "label_errors": shown,
        "picture": thumbnails.get,
        "thumbnails_full": thumbnails.full,
        "distribution": None,
        "distribution_of": " and ".join(metrics.name(role) for role, _ in metrics.list_measured()),
        "validation": metrics.name("validation"),
        "curve": "out-of-fold" if metrics.out_of_fold else "validation",
        "more_classes": max(0, len(manifest.classes) - MAX_CLASSES),
        "facts": _list_facts(manifest, training, history, finished),
    }
    if headline:
        before = metrics.uncalibrated if manifest.calibration.images else None
        # before and after calibration must cover the same images
        shaped = metrics.validation if before and metrics.validation else headline.measurement
        counts = {name: sum(one.measurement.by_class[name].images for one in measured) for name in manifest.classes}
        values |= {
            "classes": measurement.list_classes(headline.measurement),
            "confusion": measurement.make_confusion(headline.measurement, manifest.classes),
            "reliability": charts.draw_reliability(shaped.bins, before.bins if before else None),
            "reliability_of": metrics.name("validation") if before else headline.which,
            "ece": shaped.ece,
            "ece_before": before.ece if before else None,
            "confidences": charts.draw_confidences(shaped.confidences),
            "distribution": charts.draw_class_bars(counts),
        }
    return render("training.html", **values)


def _draw_curve(history: Sequence[EpochRecord], name: str, metrics: Metrics) -> Markup:
    return charts.draw_learning_curve(history, name, metrics.kept.epoch if metrics.kept else 0)


def _list_points(
    manifest: Manifest,
    training: TrainingRecord,
    measured: Sequence[Headline],
    label_errors: LabelErrorSummary | None,
) -> list[Point]:
    """List sentences on how far to trust the headline number."""
    points = []
    if not measured:
        return [Point("bad", "Give --val-data or --test-data, or a larger --val-fraction, to measure the model.")]
    metrics = manifest.metrics
    if measured[0].which == "test":
        points.append(Point("good", "Measured on test images, which were not used in training."))
    elif metrics.out_of_fold:
        points.append(Point("bad", _describe_folds(metrics)))
    else:
        calibrated = " and calibrated the probabilities" if manifest.calibration.images else ""
        text = (
            f"Measured on validation images, which also chose the epoch{calibrated}: slightly optimistic. Give "
            "--test-data for an unbiased number."
        )
        points.append(Point("bad", text))
    if metrics.validation:
        points += measurement.point_at_threshold(manifest.thresholds)
    points += measurement.list_points(measured[0].measurement, label_errors)
    if training.left_out:
        count = f"{training.left_out:,} {'image' if training.left_out == 1 else 'images'}"
        points.append(Point("bad", f"Left out of training: {count} that could not be used."))
    return points


def _describe_folds(metrics: Metrics) -> str:
    """Return what out-of-fold images are, and what was measured on them."""
    if metrics.kept is not None and metrics.kept.phase == "finetune":
        return (
            "Measured on training images, by trials that were trained without them; they also chose the phase and set "
            "the thresholds. The model was then trained on all images in the same way. Give --test-data for an "
            "unbiased number."
        )
    return (
        "Measured on the training images, each by a head that was solved without its fold; they also set the "
        "thresholds. The model was then trained on all of them. Give --test-data for an unbiased number."
    )


def _describe_kept(metrics: Metrics) -> str:
    if metrics.kept is None:
        return ""
    text = f"Epoch {metrics.kept.epoch} was kept, of {_PHASES[metrics.kept.phase]}."
    best = [
        f"{format_percent(record.val_accuracy)} in {_PHASES[phase]} (epoch {record.epoch})"
        for phase, record in metrics.phases.items()
        if record.val_accuracy is not None
    ]
    if metrics.out_of_fold:
        return f"{text} {_describe_trial(metrics)}"
    return f"{text} The phases' validation accuracy was {' and '.join(best)}." if best else text


def _describe_trial(metrics: Metrics) -> str:
    gain = metrics.finetune_gain
    if "head" not in metrics.phases:
        return "A trial without one fold was measured on it; without a head phase it had no rival."
    if gain is None:
        return "Validation figures of the head are those of heads that were each solved without one fold."
    change = "saved" if gain.mean > 0 else "added"
    decision = "trained on all images" if gain.mean > 0 else "left out, and its epochs are those of the trial"
    return (
        f"A trial without one fold was measured on it: fine-tuning {change} {abs(gain.mean):.3f} of log-loss there "
        f"(95% interval {gain.low:+.3f} to {gain.high:+.3f} saved), so it was {decision}. Validation figures of the "
        "head are those of heads that were each solved without one fold."
    )


def _list_facts(
    manifest: Manifest, training: TrainingRecord, history: Sequence[EpochRecord], finished: str | None
) -> list[tuple[str, Any]]:
    """List the facts of the training."""
    options, calibration = training.options, manifest.calibration
    images = str(training.counts)
    if training.left_out:
        images += f", {training.left_out:,} left out"
    head = " \N{RIGHTWARDS ARROW} ".join(map(str, [*manifest.architecture.head_units, len(manifest.classes)]))
    backbone, size = clean(manifest.architecture.backbone), manifest.preprocessing.image_size
    facts: list[tuple[str, Any]] = [("Data", format_name(training.data, 90))]
    for option, heading in (("val_data", "Validation data"), ("test_data", "Test data")):
        if options[option]:
            facts.append((heading, format_name(options[option], 90)))
    facts += [
        ("Images", images),
        ("Classes", f"{len(manifest.classes):,}"),
        ("Network", f"{backbone} \N{RIGHTWARDS ARROW} {head}, from {size} x {size} pixels"),
        ("Weights", format_name(str(options["weights"]), 90)),
    ]
    for phase, heading in (("head", "Phase 1"), ("finetune", "Phase 2")):
        epochs = sum(record.phase == phase for record in history)
        if epochs:
            rate = f"{options[f'{phase}_optimizer']} at {options[f'lr_{phase}']:g}"
            solved = ", solved before" if options.get("tune", "off") != "off" else ""
            part = f"the head{solved}" if phase == "head" else f"from {clean(options['finetune_from'])} on"
            facts.append((heading, f"{part}; {epochs:,} {'epoch' if epochs == 1 else 'epochs'}, {rate}"))
    facts += [
        ("Batch", f"{options['batch_size']:,} per worker, {options['num_workers']:,} workers"),
        ("Precision", clean(options["precision"])),
        ("Seed", str(options["seed"])),
    ]
    if calibration.images:
        facts.append(("Calibration", f"temperature {calibration.temperature:.3f}, from {calibration.images:,} images"))
    seconds = sum(record.seconds for record in history)
    facts.append(("Time", f"{format_duration(seconds)} in {len(history):,} epochs"))
    if finished is not None:
        facts.append(("Finished", format_moment(finished)))
    facts.append(("Versions", clean(", ".join(f"{name} {number}" for name, number in manifest.versions.items()))))
    facts.append(("Model id", Markup("<code>{}</code>").format(manifest.model_id)))
    return facts
