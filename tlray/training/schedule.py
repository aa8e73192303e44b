"""Order of the rows, learning rates, dropout and early stopping; the same for any number of workers.

Every epoch is a seeded permutation of the training rows, cut into steps of `num_workers * batch_size` rows; the last
step is padded with rows of weight 0. So all workers take the same number of steps and every row counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tlray.config import SelectName
from tlray.model.manifest import EpochRecord


@dataclass(frozen=True)
class StepRows:
    """The rows of one worker, step by step.

    Attributes:
        rows: int64 `[steps, batch]`, row ids.
        weights: float32 `[steps, batch]`, 1 for a row that counts and 0 for padding.
        totals: float32 `[steps]`, number of rows that count in a step over all workers.
    """

    rows: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    totals: npt.NDArray[np.float32]


def permute(rows: npt.NDArray[np.int64], seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the training rows in the order of an epoch; epochs count from 0 over both phases."""
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    return random.permutation(rows)


def cut_steps(rows: npt.NDArray[np.int64], rank: int, num_workers: int, batch_size: int) -> StepRows:
    """Cut ordered rows into global steps and take one worker's share of each."""
    global_batch = num_workers * batch_size
    num_steps = -(-len(rows) // global_batch)
    padding = num_steps * global_batch - len(rows)
    padded = np.concatenate([rows, np.resize(rows, padding) if padding else rows[:0]])
    weights = np.concatenate([np.ones(len(rows), np.float32), np.zeros(padding, np.float32)])
    shape = (num_steps, num_workers, batch_size)
    return StepRows(
        rows=padded.reshape(shape)[:, rank],
        weights=weights.reshape(shape)[:, rank],
        totals=weights.reshape(shape).sum(axis=(1, 2), dtype=np.float32),
    )


def make_rates(
    peak: float, num_steps: int, schedule: Literal["constant", "cosine"], num_warmup_steps: int
) -> npt.NDArray[np.float32]:
    """Return the learning rate of every step of a phase, float32 `[num_steps]`.

    It rises linearly to `peak` over the warm-up, then stays, or falls to 0 along half a cosine (Loshchilov and Hutter,
    SGDR, 2017, equation 5 without restarts).
    """
    steps = np.arange(num_steps, dtype=np.float64)
    warmup = np.minimum(1.0, (steps + 1) / max(1, num_warmup_steps))
    progress = np.clip((steps - num_warmup_steps) / max(1, num_steps - num_warmup_steps), 0.0, 1.0)
    shape = (1 + np.cos(np.pi * progress)) / 2 if schedule == "cosine" else np.ones(num_steps)
    return (peak * warmup * shape).astype(np.float32)


def draw_dropout(
    seed: int, epoch: int, step: int, global_batch: int, units: Sequence[int], rate: float
) -> npt.NDArray[np.float32]:
    """Return the dense layers' dropout masks for one global step, `[global_batch, sum of units]`: 0 or 1 / (1 - rate).

    Inverted dropout (Srivastava et al., 2014), drawn for the whole step to be the same for any number of workers.
    """
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, step, 1])))
    kept = random.random((global_batch, sum(units)), np.float32) >= rate
    return kept.astype(np.float32) / np.float32(1 - rate)


def draw_mixing(seed: int, epoch: int, step: int, global_batch: int, concentration: float) -> npt.NDArray[np.float32]:
    """Return each image's own share in its mixture with its neighbour for one global step, `[global_batch]`, 0.5 to 1.

    Mixup (Zhang et al., 2018, equation 2, with a share for each image), drawn for the whole step as dropout is.
    """
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, step, 2])))
    shares: npt.NDArray[np.float64] = random.beta(concentration, concentration, global_batch)
    mixtures: npt.NDArray[np.float32] = np.maximum(shares, 1 - shares).astype(np.float32)
    return mixtures


def pair_neighbours(batch_size: int) -> npt.NDArray[np.int32]:
    """Return each image's neighbour, int32 `[batch_size]`: of 0 is 1, of 1 is 0; the last of an odd number has itself.

    The order of an epoch is random, so neighbours are too, and with an even batch size no pair spans two workers.
    """
    neighbours: npt.NDArray[np.int32] = np.minimum(np.arange(batch_size) ^ 1, batch_size - 1).astype(np.int32)
    return neighbours


def weigh_classes(labels: npt.NDArray[np.int32], num_classes: int) -> npt.NDArray[np.float32]:
    """Return balanced class weights, N / (C n_c): every class has the same sum, and the mean over the N rows is 1."""
    counts = np.bincount(labels, minlength=num_classes)
    return (len(labels) / (num_classes * np.maximum(counts, 1))).astype(np.float32)


def score_epoch(record: EpochRecord, select: SelectName) -> tuple[float, float]:
    """Return the rank of an epoch: its validation figure, then a lower loss; without validation, its number."""
    if record.val_accuracy is None or record.val_macro_f1 is None or record.val_weighted_loss is None:
        return (float(record.epoch), 0.0)
    figures = {"loss": -record.val_weighted_loss, "accuracy": record.val_accuracy, "macro_f1": record.val_macro_f1}
    return (figures[select], -record.val_weighted_loss)


def is_exhausted(phase_history: Sequence[EpochRecord], patience: int | None, select: SelectName) -> bool:
    """Return whether a phase has not improved for `patience` epochs."""
    if patience is None or not phase_history:
        return False
    scores = [score_epoch(record, select) for record in phase_history]
    return len(scores) - 1 - scores.index(max(scores)) >= patience


def draw_rows(rows: npt.NDArray[np.int64], most: int, seed: int) -> npt.NDArray[np.int64]:
    """Return a random sample of at most `most` rows, sorted."""
    return np.sort(np.random.default_rng(seed).permutation(rows)[:most])
