"""Print the summaries of show, import and evaluate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tlray.cli.tables import print_classes, print_facts, print_history, shorten
from tlray.console import console
from tlray.metrics.calibration import MIN_IMAGES

if TYPE_CHECKING:
    from tlray.evaluation import EvaluateSummary
    from tlray.importer import ImportSummary
    from tlray.metrics.label_errors import LabelErrorSummary
    from tlray.metrics.thresholds import Thresholds
    from tlray.model.bundle import Bundle
    from tlray.model.manifest import Manifest, Metrics


def print_bundle(bundle: Bundle) -> None:
    """Print a verified bundle."""
    manifest, kept = bundle.manifest, bundle.manifest.metrics.kept
    facts = [
        ("bundle", f"{bundle.uri} (verified: {len(manifest.files)} files)"),
        ("model id", bundle.model_id),
        *_describe_network(manifest),
    ]
    if manifest.training and kept:
        facts += [
            ("trained on", f"{manifest.training.data} ({manifest.training.counts.train:,} images)"),
            ("kept", f"epoch {kept.epoch} (phase {kept.phase})"),
        ]
        print_history(bundle.load_history(), kept.epoch)
    facts += describe_accuracy(manifest.metrics)
    if manifest.thresholds:
        facts.append(("to be right", _describe_threshold(manifest.thresholds)))
    facts.append(("versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())))
    print_facts(facts)


def print_import(summary: ImportSummary) -> None:
    """Print the new bundle, and its accuracy if it was measured."""
    console.print()
    facts = [("bundle", summary.output), ("model id", summary.manifest.model_id)]
    facts += _describe_network(summary.manifest)
    facts += describe_accuracy(summary.manifest.metrics)
    if summary.failed:
        facts.append(("left out", f"{summary.failed:,} images that cannot be decoded"))
    if summary.manifest.metrics.validation is None:
        facts.append(("try next", "--val-data calibrates its probabilities and says how good it is"))
    print_facts(facts)


def print_evaluate(summary: EvaluateSummary) -> None:
    """Print accuracy, metrics by class, and the most confused classes."""
    result = summary.result
    console.print()
    print_classes(result.by_class)
    interval = f"95% interval {result.accuracy_low:.3f} to {result.accuracy_high:.3f}"
    facts = [
        ("accuracy", f"{result.accuracy:.4f} ({result.images:,} images; {interval})"),
        ("macro F1", f"{result.macro_f1:.4f}"),
    ]
    if result.top_k < len(summary.classes):
        facts.append((f"top-{result.top_k} accuracy", f"{result.top_k_accuracy:.4f}"))
    facts.append(("calibration", f"probabilities are off by {result.ece:.3f} on average (ECE)"))
    facts.append(("to be right", _describe_threshold(result.thresholds)))
    if worst := result.most_confused[:3]:
        text = "; ".join(f"{pair.true} taken for {pair.predicted} {pair.images:,}x" for pair in worst)
        facts.append(("most confused", text))
    facts += describe_duplicates(result.label_errors)
    if result.failed_by_code:
        failed = ", ".join(f"{code} {count:,}" for code, count in result.failed_by_code.items())
        facts.append(("not measured", failed))
    if summary.output:
        facts.append(("written", f"{summary.output}/report.html, evaluation.json, label_errors.csv"))
    facts.append(("model id", summary.model_id))
    print_facts(facts)


def describe_duplicates(label_errors: LabelErrorSummary | None) -> list[tuple[str, str]]:
    """Describe duplicate images."""
    if label_errors is None or not label_errors.duplicates:
        return []
    pairs = label_errors.duplicates
    both = sum(pair.first_label != pair.second_label for pair in pairs)
    text = f"{len(pairs):,} pair{'s' * (len(pairs) > 1)} of pictures that look the same"
    where = "" if both == 0 else ", under two labels" if both == len(pairs) else f", {both:,} of them under two labels"
    return [("look at", text + where)]


def _describe_threshold(thresholds: Thresholds) -> str:
    from tlray.metrics.thresholds import explain_needed

    overall, num_classes = thresholds.overall, len(thresholds.by_class)
    num_own = sum(one is not None for one in thresholds.by_class.values())
    num_bad = num_classes - num_own - len(thresholds.pooled if overall is not None else ())
    target, confidence = 100 * thresholds.target_precision, 100 * thresholds.confidence
    promise = f"in {target:g}% of cases, with {confidence:g}% confidence"
    if overall is None and not num_own:
        return f"{promise}: no probability is enough; {explain_needed(thresholds.needed)}"
    needs = [f"{num_own:,} of {num_classes:,} classes have their own minimum probability"] if num_own else []
    if overall is not None:
        needs.append(f"{'the others need' if num_own else 'a label needs'} a probability of {overall.probability:.3f}")
    if num_bad > 0:
        needs.append(f"{num_bad:,} always need a review")
    return f"{promise}: {', '.join(needs)}; {thresholds.kept:.0%} of the labels are kept"


def _describe_network(manifest: Manifest) -> list[tuple[str, str]]:
    architecture, size = manifest.architecture, manifest.preprocessing.image_size
    head = " -> ".join(map(str, [*architecture.head_units, f"{architecture.num_classes} classes"]))
    return [
        ("network", f"{architecture.backbone} -> pooling -> {head}"),
        ("input", f"RGB, {size} x {size} pixels, uint8"),
        ("classes", shorten(manifest.classes)),
    ]


def describe_accuracy(metrics: Metrics) -> list[tuple[str, str]]:
    """Describe accuracy by role, and calibration."""
    facts = [
        (f"{metrics.name(role)} accuracy", f"{measured.accuracy:.4f} ({measured.images:,} images)")
        for role, measured in metrics.list_measured()
    ]
    if metrics.uncalibrated and metrics.validation:
        before, after = metrics.uncalibrated.ece, metrics.validation.ece
        text = f"probabilities are off by {after:.3f} on average, {before:.3f} before (ECE)"
        gain = metrics.calibration_gain
        if gain is not None and gain.mean > 0:
            interval = f"95% interval {gain.low:.3f} to {gain.high:.3f}"
            text += f"; saves {gain.mean:.3f} of log-loss on images held out ({interval})"
        elif gain is not None:
            text = f"none: it gains nothing on images held out; probabilities are off by {after:.3f} on average (ECE)"
        if metrics.uncalibrated.images < MIN_IMAGES:
            text = f"none: {MIN_IMAGES} images are needed for it"
        facts.append(("calibration", text))
    return facts
