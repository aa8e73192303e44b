"""Print the summaries of train and demo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from tlray.cli.print_bundle import describe_accuracy, describe_duplicates
from tlray.cli.tables import make_table, print_classes, print_facts, print_history, shorten
from tlray.console import console
from tlray.model.manifest import EpochRecord, Metrics, find_kept

if TYPE_CHECKING:
    from tlray.demo import DemoSummary
    from tlray.training.results import TrainSummary

_PHASES = {"head": "phase 1", "finetune": "phase 2"}


def print_train(summary: TrainSummary) -> None:
    """Print epochs, accuracy by phase and class, time by stage, and advice."""
    console.print()
    if summary.already_done:
        console.print("Already trained with this config on these images; nothing was done.")
    metrics, kept = summary.metrics, find_kept(summary.history, summary.metrics.kept)
    print_history(summary.history, kept.epoch)
    if metrics.test:
        print_classes(metrics.test.by_class)
    if summary.seconds:
        _print_stages(summary.seconds, summary.history)
    facts = [("bundle", summary.output), ("report", f"{summary.output}/report.html")]
    facts += [("model id", summary.model_id), ("classes", shorten(summary.classes))]
    facts.append(("images", str(summary.images)))
    if summary.left_out:
        facts.append(("left out", f"{len(summary.left_out):,} images that cannot be used"))
    facts += _describe_phases(metrics)
    facts.append(("kept", f"epoch {kept.epoch} ({_PHASES[kept.phase]}, {kept.phase})"))
    facts += describe_accuracy(metrics)
    facts += describe_duplicates(summary.label_errors)
    facts += [("try next" if index == 0 else "", sentence) for index, sentence in enumerate(summary.advice)]
    print_facts(facts)


def _describe_phases(metrics: Metrics) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    kept = metrics.kept
    for name, best in metrics.phases.items():
        text = f"{name}: training accuracy {best.accuracy:.4f} in its last epoch"
        if best.val_accuracy is not None:
            losses = [f"{loss:.4f}" for loss in (best.val_loss, best.val_weighted_loss) if loss is not None]
            weighted = f" ({losses[-1]} by class weights)" if losses[-1] != losses[0] else ""
            which = "out-of-fold" if metrics.out_of_fold else "validation"
            figures = f"{which} loss {losses[0]}{weighted}, accuracy {best.val_accuracy:.4f}"
            text = f"{name}: {figures}" + ("" if metrics.out_of_fold else f" in epoch {best.epoch}")
        gain = metrics.finetune_gain if name == "finetune" else None
        if gain is not None:
            interval = f"95% interval {gain.low:+.3f} to {gain.high:+.3f}"
            where = ", on the fold that its trial left out" if metrics.out_of_fold else ""
            text += f"; log-loss saved against phase 1{where}: {gain.mean:+.3f} ({interval})"
        if facts and kept is not None and (kept.phase == "head" or best.val_accuracy is not None or gain is not None):
            text += f"; {_PHASES[kept.phase]} won"
        facts.append((_PHASES[name], text))
    return facts


def _print_stages(seconds: dict[str, float], history: Sequence[EpochRecord]) -> None:
    table = make_table("stage", "seconds>", "share>", "images/s>", "waits for input>")
    total = sum(seconds.values())
    for stage, spent in seconds.items():
        epochs = [record for record in history if _PHASES[record.phase] == stage]
        images, trained = sum(record.images for record in epochs), sum(record.train_seconds for record in epochs)
        rate = f"{images / spent:,.1f}" if images and spent else ""
        waits = f"{sum(record.wait_seconds for record in epochs) / trained:.1%}" if trained else ""
        table.add_row(stage, f"{spent:,.1f}", f"{spent / total:.0%}", rate, waits)
    table.add_row("all", f"{total:,.1f}", "", "", "")
    console.print(table)


def print_demo(summary: DemoSummary) -> None:
    """Print a few predictions beside the truth, the accuracy, and the folders."""
    table = make_table("image", "true", "predicted", "probability>", "")
    table.title, table.title_justify = "a few of the held-out images", "left"
    for row in summary.examples:
        right = row.true == row.predicted
        mark = Text("right", style="green") if right else Text("wrong", style="red")
        table.add_row(row.image, row.true, row.predicted, f"{row.probability:.3f}", mark)
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
