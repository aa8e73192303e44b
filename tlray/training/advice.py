"""What to try next, read off a finished training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tlray.config import TrainConfig

_FEW_IMAGES = 30
_GAP = 0.12
_IMBALANCE = 3.0
_STILL_FALLING = 0.03


def advise(
    config: TrainConfig,
    history: Sequence[dict[str, Any]],
    metrics: dict[str, Any],
    train_labels: npt.NDArray[np.int32],
    left_out: int,
) -> list[str]:
    """A few sentences, the most telling first.

    Args:
        config: what was asked for.
        history: one record an epoch.
        metrics: with `phases` and `kept`.
        train_labels: int32 `[N]`.
        left_out: images that could not be used.
    """
    sentences = []
    counts = np.bincount(train_labels)
    kept = next(record for record in history if record["epoch"] == metrics["kept"]["epoch"])
    phases = metrics["phases"]
    if kept["val_accuracy"] is None:
        sentences.append("keep some images for validation (--val-fraction 0.15): the best epoch is then kept")
    elif kept["accuracy"] - kept["val_accuracy"] > _GAP:
        gap = f"training accuracy {kept['accuracy']:.2f} is far above validation's {kept['val_accuracy']:.2f}"
        sentences.append(f"{gap}: more images, more --zoom and --shear, --dropout 0.3 or --label-smoothing 0.1")
    if "finetune" in phases and metrics["kept"]["phase"] == "head":
        sentences.append(
            f"phase 2 did not beat phase 1: try a lower --lr-finetune than {config.resolved_lr_finetune:g}, "
            "or --schedule cosine"
        )
    losses = [record["val_loss"] if record["val_loss"] is not None else record["loss"] for record in history]
    if len(losses) > 1 and kept is history[-1] and losses[-1] < (1 - _STILL_FALLING) * losses[-2]:
        option = "--finetune-epochs" if kept["phase"] == "finetune" else "--head-epochs"
        sentences.append(f"the loss was still falling in the last epoch: more {option}, features are reused")
    if counts.max() > _IMBALANCE * counts.min() and config.class_weights == "none":
        sentences.append(
            f"the largest class has {counts.max() / counts.min():.0f} times the images of the smallest: "
            "--class-weights balanced"
        )
    if counts.min() < _FEW_IMAGES:
        sentences.append(
            f"the smallest class has {counts.min():,} images to train on: a few dozen more would tell most"
        )
    if left_out:
        sentences.append(f"{left_out:,} images were left out: mend or remove them")
    return sentences
