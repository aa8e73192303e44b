"""What a command prints when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from tlray.progress import console

if TYPE_CHECKING:
    from tlray.bundle import Bundle
    from tlray.demo import DemoSummary
    from tlray.evaluation import EvaluateSummary
    from tlray.prediction.run import PredictSummary
    from tlray.prediction.single import Prediction
    from tlray.training.fit import TrainSummary

_MAX_CLASSES = 30


def print_train(summary: TrainSummary) -> None:
    """Epochs, the one that was kept, accuracy, time by stage."""
    console.print()
    if summary.already_done:
        console.print("Already trained with this config on these images; nothing was done.")
    _print_history(summary.history, summary.metrics["kept"]["epoch"])
    facts = [("bundle", summary.output), ("model id", summary.model_id), ("classes", _shorten(summary.classes))]
    counts = summary.images
    facts.append(("images", ", ".join(f"{count:,} {role}" for role, count in counts.items() if count)))
    if summary.left_out:
        facts.append(("left out", f"{len(summary.left_out):,} images that cannot be decoded"))
    kept = summary.metrics["kept"]
    facts.append(("kept", f"epoch {kept['epoch']} (phase {kept['phase']})"))
    for role in ("validation", "test"):
        if role in summary.metrics:
            measured = summary.metrics[role]
            facts.append((f"{role} accuracy", f"{measured['accuracy']:.4f} ({measured['images']:,} images)"))
    if summary.seconds:
        spent = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in summary.seconds.items() if seconds >= 0.5)
        facts.append(("time", spent))
    _print_facts(facts)


def print_predict(summary: PredictSummary) -> None:
    """Counts, failures by code, rate, where the labels lie."""
    receipt = summary.receipt
    console.print()
    if summary.already_done:
        console.print("Already labelled; nothing was done.")
    elif summary.resumed_rows:
        console.print(f"{summary.resumed_rows:,} rows were done before.")
    facts = [("labels", f"{summary.output}/labels"), ("rows", f"{receipt.planned:,} in {len(receipt.parts):,} parts")]
    facts.append(("labelled", f"{receipt.labelled:,}"))
    if receipt.failed:
        codes = ", ".join(f"{code} {count:,}" for code, count in receipt.failed_by_code.items())
        facts.append(("failed", f"{receipt.failed:,} ({codes})"))
    if receipt.excluded:
        facts.append(("excluded", f"{receipt.excluded:,} (see {summary.output}/_plan)"))
    if not summary.already_done and receipt.first_label_s is not None:
        facts.append(
            (
                "speed",
                f"{receipt.images_per_s_steady:,.1f} images/s past the first label, which took "
                f"{receipt.first_label_s:.1f} s; {receipt.images_per_s:,.1f} over all",
            )
        )
    facts.append(("model id", receipt.model_id))
    _print_facts(facts)


def print_prediction(path: str, ranked: Sequence[Prediction]) -> None:
    """One file's most probable classes."""
    console.print(Text(path))
    for prediction in ranked:
        console.print(Text(f"  {prediction.class_name}  {prediction.probability:.4f}  (index {prediction.index})"))


def print_evaluate(summary: EvaluateSummary) -> None:
    """Accuracy, a line for each class, what was confused most."""
    measured = summary.measurement
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class")
    for heading in ("precision", "recall", "F1", "images"):
        table.add_column(heading, justify="right")
    for name, values in list(measured.by_class.items())[:_MAX_CLASSES]:
        numbers = (f"{values[key]:.3f}" for key in ("precision", "recall", "f1"))
        table.add_row(Text(name), *numbers, f"{values['images']:,.0f}")
    console.print()
    console.print(table)
    if len(measured.by_class) > _MAX_CLASSES:
        console.print(f"... and {len(measured.by_class) - _MAX_CLASSES:,} more classes")
    facts = [
        ("accuracy", f"{measured.accuracy:.4f} ({measured.images:,} images)"),
        ("macro F1", f"{measured.macro_f1:.4f}"),
    ]
    pairs = [
        (count, summary.classes[row], summary.classes[column])
        for row, counts in enumerate(measured.confusion)
        for column, count in enumerate(counts)
        if row != column and count
    ]
    if pairs:
        worst = sorted(pairs, key=lambda pair: -pair[0])[:3]
        facts.append(
            ("most confused", "; ".join(f"{true} taken for {guess} {count:,}x" for count, true, guess in worst))
        )
    if summary.failed:
        facts.append(("not measured", ", ".join(f"{code} {count:,}" for code, count in summary.failed.items())))
    if summary.output:
        facts.append(("written", f"{summary.output}/evaluation.json, confusion.png"))
    facts.append(("model id", summary.model_id))
    _print_facts(facts)


def print_bundle(bundle: Bundle) -> None:
    """What a verified bundle is."""
    manifest = bundle.manifest
    architecture, training, metrics = manifest["architecture"], manifest["training"], manifest["metrics"]
    head = " -> ".join(map(str, [*architecture["head_units"], f"{architecture['num_classes']} classes"]))
    facts = [
        ("bundle", f"{bundle.uri} (verified: {len(manifest['files'])} files)"),
        ("model id", bundle.model_id),
        ("network", f"{architecture['backbone']} -> pooling -> {head}"),
        ("input", f"RGB, {bundle.image_size_px} x {bundle.image_size_px} pixels, uint8"),
        ("classes", _shorten(bundle.classes)),
        ("trained on", f"{training['data']} ({training['counts']['train']:,} images)"),
        ("kept", f"epoch {metrics['kept']['epoch']} (phase {metrics['kept']['phase']})"),
    ]
    for role in ("validation", "test"):
        if role in metrics:
            facts.append((f"{role} accuracy", f"{metrics[role]['accuracy']:.4f} ({metrics[role]['images']:,} images)"))
    facts.append(("versions", ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())))
    _print_history(bundle.load_history(), metrics["kept"]["epoch"])
    _print_facts(facts)


def print_demo(summary: DemoSummary) -> None:
    """A few labels beside the truth, the accuracy, where everything lies."""
    table = Table(title="a few of the held-out images", box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for heading in ("image", "true", "predicted"):
        table.add_column(heading)
    table.add_column("probability", justify="right")
    table.add_column("")
    for row in summary.examples:
        right = row["true"] == row["predicted"]
        mark = Text("right", style="green") if right else Text("wrong", style="red")
        table.add_row(row["image"], row["true"], row["predicted"], f"{row['probability']:.3f}", mark)
    console.print()
    console.print(table)
    _print_facts(
        [
            ("accuracy", f"{summary.accuracy:.4f} on {summary.images:,} images that training never saw"),
            ("weights", summary.weights),
            ("images", f"{summary.output}/train, {summary.output}/test"),
            ("bundle", f"{summary.output}/bundle  (tlray show {summary.output}/bundle)"),
            ("labels", f"{summary.output}/labels/labels  (Parquet)"),
            ("time", f"{summary.seconds:.0f} s"),
        ]
    )


def _print_history(history: Sequence[dict[str, Any]], kept: int) -> None:
    if not history:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("epoch", justify="right")
    table.add_column("phase")
    for heading in ("loss", "accuracy", "val loss", "val accuracy", "images/s"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for record in history:
        values = [record["loss"], record["accuracy"], record["val_loss"], record["val_accuracy"]]
        numbers = ["-" if value is None else f"{value:.4f}" for value in values]
        rate = record["images"] / max(record["seconds"], 1e-9)
        mark = "kept" if record["epoch"] == kept else ""
        table.add_row(str(record["epoch"]), record["phase"], *numbers, f"{rate:,.1f}", mark)
    console.print(table)


def _print_facts(facts: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        line = Text(f"{name:>{width}}  ", style="dim")
        line.append(value, style="not dim")
        console.print(line)


def _shorten(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MAX_CLASSES])
    return f"{len(names)}: {shown}" + (", ..." if len(names) > _MAX_CLASSES else "")
