"""Pictures for people, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

_TRAIN, _VALIDATION, _KEPT = "#3b6ea5", "#d1662b", "#2e7d4f"


def draw_learning_curve(history: Sequence[dict[str, Any]], kept_epoch: int) -> bytes:
    """Loss and accuracy by epoch, both phases side by side, the kept epoch marked."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9.6, 3.9), dpi=144, layout="constrained")
    epochs = [record["epoch"] for record in history]
    phases = [record["phase"] for record in history]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        lines = [("training", name, _TRAIN), ("validation", f"val_{name}", _VALIDATION)]
        for label, key, colour in lines:
            values = [record[key] for record in history]
            if values[0] is not None:
                axes.plot(epochs, values, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=label)
        axes.axvline(kept_epoch, color=_KEPT, linewidth=1, linestyle=":", label=f"kept: epoch {kept_epoch}")
        if len(set(phases)) > 1:
            opened = phases.index(phases[-1]) + epochs[0] - 0.5
            axes.axvspan(
                opened, epochs[-1] + 0.5, color="#8090a0", alpha=0.10, linewidth=0, label="phase 2: fine-tuning"
            )
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.set_title(name, fontsize=11)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color="#d8dde3", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return _save(figure)


def draw_confusion(confusion: list[list[int]], classes: Sequence[str]) -> bytes:
    """A confusion matrix as PNG: counts, coloured by the share of each true class."""
    from matplotlib.figure import Figure

    counts = np.array(confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(3.2 + 0.55 * len(classes), 24.0)
    figure = Figure(figsize=(side, side * 0.92), dpi=144, layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    accuracy = np.trace(counts) / max(counts.sum(), 1)
    axes.set_title(f"accuracy {accuracy:.3f} on {counts.sum():,} images", fontsize=11)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(classes) <= 30:
        for row in range(len(classes)):
            for column in range(len(classes)):
                if counts[row, column]:
                    colour = "white" if shares[row, column] > 0.5 else "#1b2a3d"
                    axes.text(
                        column, row, f"{counts[row, column]:,}", ha="center", va="center", color=colour, fontsize=9
                    )
    bar = figure.colorbar(picture, ax=axes, shrink=0.8, label="share of the true class")
    bar.outline.set_visible(False)
    return _save(figure)


def _save(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
