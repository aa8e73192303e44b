"""What a bundle is and how good it is: printed by show, import and evaluate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tlray.cli.tables import print_classes, print_facts, print_history, shorten
from tlray.console import console
from tlray.metrics.calibration import MIN_IMAGES

if TYPE_CHECKING:
    from tlray.evaluation import EvaluateSummary
    from tlray.importer import ImportSummary
    from tlray.model.bundle import Bundle


def print_bundle(bundle: Bundle) -> None:
    """What a verified bundle is."""
    manifest = bundle.manifest
    training, metrics = manifest["training"], manifest["metrics"]
    facts = [
        ("bundle", f"{bundle.uri} (verified: {len(manifest['files'])} files)"),
        ("model id", bundle.model_id),
        *_describe_network(manifest),
    ]
    if training:
        facts += [
            ("trained on", f"{training['data']} ({training['counts']['train']:,} images)"),
            ("kept", f"epoch {metrics['kept']['epoch']} (phase {metrics['kept']['phase']})"),
        ]
    facts += describe_accuracy(metrics)
    if manifest["thresholds"]:
        facts.append(("to be right", _describe_threshold(manifest["thresholds"])))
    facts.append(("versions", ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())))
    if training:
        print_history(bundle.load_history(), metrics["kept"]["epoch"])
    print_facts(facts)


def print_import(summary: ImportSummary) -> None:
    """What the new bundle holds, and how good it is where that could be told."""
    console.print()
    facts = [("bundle", summary.output), ("model id", summary.manifest["model_id"])]
    facts += _describe_network(summary.manifest)
    facts += describe_accuracy(summary.manifest["metrics"])
    if summary.failed:
        facts.append(("left out", f"{summary.failed:,} images that cannot be decoded"))
    if "validation" not in summary.manifest["metrics"]:
        facts.append(("try next", "--val-data calibrates its probabilities and says how good it is"))
    print_facts(facts)


def print_evaluate(summary: EvaluateSummary) -> None:
    """Accuracy, a line for each class, what was confused most."""
    measured = summary.measurement
    console.print()
    print_classes(measured.by_class)
    facts = [
        (
            "accuracy",
            f"{measured.accuracy:.4f} ({measured.images:,} images; 95% interval {measured.accuracy_low:.3f} to "
            f"{measured.accuracy_high:.3f})",
        ),
        ("macro F1", f"{measured.macro_f1:.4f}"),
    ]
    if measured.top_k < len(summary.classes):
        facts.append((f"top-{measured.top_k} accuracy", f"{measured.top_k_accuracy:.4f}"))
    facts.append(("calibration", f"probabilities are off by {measured.ece:.3f} on average (ECE)"))
    facts.append(("to be right", _describe_threshold(summary.result["thresholds"])))
    if worst := summary.result["most_confused"][:3]:
        told = "; ".join(f"{pair['true']} taken for {pair['predicted']} {pair['images']:,}x" for pair in worst)
        facts.append(("most confused", told))
    facts += describe_doubles(summary.result["label_errors"])
    if summary.failed:
        facts.append(("not measured", ", ".join(f"{code} {count:,}" for code, count in summary.failed.items())))
    if summary.output:
        facts.append(("written", f"{summary.output}/report.html, evaluation.json, label_errors.csv"))
    facts.append(("model id", summary.model_id))
    print_facts(facts)


def describe_doubles(label_errors: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Pictures that are there twice."""
    if label_errors is None or not label_errors["duplicates"]:
        return []
    pairs = label_errors["duplicates"]
    both = sum(pair["first_label"] != pair["second_label"] for pair in pairs)
    told = f"{len(pairs):,} pair{'s' * (len(pairs) > 1)} of pictures that look the same"
    where = "" if both == 0 else ", under two labels" if both == len(pairs) else f", {both:,} of them under two labels"
    return [("look at", told + where)]


def _describe_threshold(thresholds: dict[str, Any]) -> str:
    overall, target = thresholds["overall"], thresholds["target_precision"]
    if overall is None:
        return f"no probability is enough to be right in {target:.0%} of cases"
    return (
        f"in {target:.0%} of cases, a label needs a probability of {overall['probability']:.3f}, as "
        f"{overall['kept']:.0%} of them have (95% interval of the precision {overall['low']:.3f} to "
        f"{overall['high']:.3f})"
    )


def _describe_network(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    architecture, size = manifest["architecture"], manifest["preprocessing"]["image_size"]
    head = " -> ".join(map(str, [*architecture["head_units"], f"{architecture['num_classes']} classes"]))
    return [
        ("network", f"{architecture['backbone']} -> pooling -> {head}"),
        ("input", f"RGB, {size} x {size} pixels, uint8"),
        ("classes", shorten(manifest["classes"])),
    ]


def describe_accuracy(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Accuracy by role, and what the probabilities are worth."""
    facts = []
    for role in ("validation", "test"):
        if role in metrics:
            measured = metrics[role]
            facts.append((f"{role} accuracy", f"{measured['accuracy']:.4f} ({measured['images']:,} images)"))
    if metrics.get("uncalibrated"):
        before, after = metrics["uncalibrated"]["ece"], metrics["validation"]["ece"]
        told = f"probabilities are off by {after:.3f} on average, {before:.3f} before (ECE)"
        if metrics["uncalibrated"]["images"] < MIN_IMAGES:
            told = f"none: {MIN_IMAGES} validation images are needed for it"
        facts.append(("calibration", told))
    return facts
