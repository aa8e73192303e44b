"""Print what summaries share: aligned facts, tables of epochs and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from tlray.console import console

if TYPE_CHECKING:
    from tlray.metrics.classification import ClassMeasurement
    from tlray.model.manifest import EpochRecord

MAX_CLASSES = 30
"""Number of classes printed; longer lists end with the number of the others."""


def print_history(history: Sequence[EpochRecord], kept: int) -> None:
    """Print a line for each epoch, the kept one marked."""
    if not history:
        return
    table = make_table("epoch>", "phase", "loss>", "accuracy>", "val loss>", "val accuracy>", "images/s>", "")
    for record in history:
        values = [record.loss, record.accuracy, record.val_loss, record.val_accuracy]
        numbers = ["-" if value is None else f"{value:.4f}" for value in values]
        rate = record.images / max(record.seconds, 1e-9)
        mark = "kept" if record.epoch == kept else ""
        table.add_row(str(record.epoch), record.phase, *numbers, f"{rate:,.1f}", mark)
    console.print(table)


def print_classes(by_class: Mapping[str, ClassMeasurement]) -> None:
    """Print precision, recall and F1 of the first classes."""
    rows = {
        name: (f"{one.precision:.3f}", f"{one.recall:.3f}", f"{one.f1:.3f}", f"{one.images:,}")
        for name, one in by_class.items()
    }
    print_rows_by_class(rows, "precision>", "recall>", "F1>", "images>")


def make_table(*headings: str) -> Table:
    """Make an empty table; a heading that ends in ">" makes its column right-aligned."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading.removesuffix(">"), justify="right" if heading.endswith(">") else "left")
    return table


def print_rows_by_class(rows: Mapping[str, Sequence[str]], *headings: str) -> None:
    """Print a table with a row for each of the first classes, and the number of the others."""
    table = make_table("class", *headings)
    for name, cells in list(rows.items())[:MAX_CLASSES]:
        table.add_row(Text(name), *cells)
    console.print(table)
    if len(rows) > MAX_CLASSES:
        console.print(f"... and {len(rows) - MAX_CLASSES:,} more classes")


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print names and values, aligned."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        line = Text(f"{name:>{width}}  ", style="dim")
        line.append(value, style="not dim")
        console.print(line)


def shorten(names: Sequence[str]) -> str:
    """Return the number of names and the first of them."""
    shown = ", ".join(names[:MAX_CLASSES])
    return f"{len(names)}: {shown}" + (", ..." if len(names) > MAX_CLASSES else "")
