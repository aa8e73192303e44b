"""What the summaries share: aligned facts, tables of epochs and classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from tlray.console import console

MAX_CLASSES = 30
"""Longer lists are cut, and say so."""


def print_history(history: Sequence[dict[str, Any]], kept: int) -> None:
    """A line for each epoch, the kept one marked."""
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


def print_classes(by_class: dict[str, dict[str, float]]) -> None:
    """Precision, recall and F1 of each class, the first of many."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class")
    for heading in ("precision", "recall", "F1", "images"):
        table.add_column(heading, justify="right")
    for name, values in list(by_class.items())[:MAX_CLASSES]:
        numbers = (f"{values[key]:.3f}" for key in ("precision", "recall", "f1"))
        table.add_row(Text(name), *numbers, f"{values['images']:,.0f}")
    console.print(table)
    if len(by_class) > MAX_CLASSES:
        console.print(f"... and {len(by_class) - MAX_CLASSES:,} more classes")


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Names and values, aligned."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        line = Text(f"{name:>{width}}  ", style="dim")
        line.append(value, style="not dim")
        console.print(line)


def shorten(names: Sequence[str]) -> str:
    """How many names there are, and the first of them."""
    shown = ", ".join(names[:MAX_CLASSES])
    return f"{len(names)}: {shown}" + (", ..." if len(names) > MAX_CLASSES else "")
