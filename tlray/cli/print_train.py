"""What training and the demo print at their end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from tlray.cli.print_bundle import describe_accuracy, describe_doubles
from tlray.cli.tables import print_classes, print_facts, print_history, shorten
from tlray.console import console

if TYPE_CHECKING:
    from tlray.demo import DemoSummary
    from tlray.training.results import TrainSummary


def print_train(summary: TrainSummary) -> None:
    """One page: epochs, accuracy by phase and class, time by stage, what to try next."""
    console.print()
    if summary.already_done:
        console.print("Already trained with this config on these images; nothing was done.")
    kept, metrics = summary.metrics["kept"], summary.metrics
    print_history(summary.history, kept["epoch"])
    if "test" in metrics:
        print_classes(metrics["test"]["by_class"])
    if summary.seconds:
        _print_stages(summary.seconds, summary.history)
    facts = [("bundle", summary.output), ("report", f"{summary.output}/report.html")]
    facts += [("model id", summary.model_id), ("classes", shorten(summary.classes))]
    counts = summary.images
    facts.append(("images", ", ".join(f"{count:,} {role}" for role, count in counts.items() if count)))
    if summary.left_out:
        facts.append(("left out", f"{len(summary.left_out):,} images that cannot be decoded"))
    numbers = ["1" if name == "head" else "2" for name in metrics["phases"]]
    facts += [(f"phase {number}", text) for number, text in zip(numbers, _describe_phases(metrics), strict=True)]
    facts.append(("kept", f"epoch {kept['epoch']} (phase {'1' if kept['phase'] == 'head' else '2'}, {kept['phase']})"))
    facts += describe_accuracy(metrics)
    facts += describe_doubles(summary.label_errors)
    facts += [("try next" if index == 0 else "", sentence) for index, sentence in enumerate(summary.advice)]
    print_facts(facts)


def _describe_phases(metrics: dict[str, Any]) -> list[str]:
    texts = []
    for name, best in metrics["phases"].items():
        if best["val_accuracy"] is None:
            texts.append(f"{name}: training accuracy {best['accuracy']:.4f} in its last epoch")
        else:
            texts.append(f"{name}: validation accuracy {best['val_accuracy']:.4f} in epoch {best['epoch']}, its best")
    if len(texts) == 2 and metrics["kept"]["phase"] == "head":
        texts[1] += "; phase 1 won"
    elif len(texts) == 2 and metrics["phases"]["finetune"]["val_accuracy"] is not None:
        texts[1] += "; phase 2 won"
    return texts


def _print_stages(seconds: dict[str, float], history: Sequence[dict[str, Any]]) -> None:
    phases = {"phase 1": "head", "phase 2": "finetune"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage")
    for heading in ("seconds", "share", "images/s", "waits for input"):
        table.add_column(heading, justify="right")
    total = sum(seconds.values())
    for stage, spent in seconds.items():
        epochs = [record for record in history if record["phase"] == phases.get(stage)]
        images, trained = (sum(record[name] for record in epochs) for name in ("images", "train_seconds"))
        rate = f"{images / spent:,.1f}" if images and spent else ""
        waits = f"{sum(record.get('wait_seconds', 0.0) for record in epochs) / trained:.1%}" if trained else ""
        table.add_row(stage, f"{spent:,.1f}", f"{spent / total:.0%}", rate, waits)
    table.add_row("all", f"{total:,.1f}", "", "", "")
    console.print(table)


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
    print_facts(
        [
            ("accuracy", f"{summary.accuracy:.4f} on {summary.images:,} images that training never saw"),
            ("weights", summary.weights),
            ("images", f"{summary.output}/train, {summary.output}/test"),
            ("bundle", f"{summary.output}/bundle  (tlray show {summary.output}/bundle)"),
            ("labels", f"{summary.output}/labels/labels  (Parquet)"),
            ("time", f"{summary.seconds:.0f} s"),
        ]
    )
