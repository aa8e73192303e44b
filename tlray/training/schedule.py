"""Which row a worker sees when: fixed before training, and the same for any number of workers at one global batch.

Every epoch is a seeded permutation of the training rows, cut into steps of `num_workers * batch_size` rows; what the
last step lacks is filled with rows of weight 0. So every worker takes the same steps and every row counts once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

VALIDATION_BITS = 64


@dataclass(frozen=True)
class Steps:
    """The rows of one worker, step by step.

    Attributes:
        rows: int64 `[steps, batch]`, row ids.
        weights: float32 `[steps, batch]`, 1 for a row that counts and 0 for one that only fills.
        totals: float32 `[steps]`, rows that count in a step over all workers.
    """

    rows: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    totals: npt.NDArray[np.float32]


def permute(rows: npt.NDArray[np.int64], seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order of the training rows in one epoch; epochs count from 0 over both phases."""
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    return random.permutation(rows)


def cut_steps(rows: npt.NDArray[np.int64], rank: int, num_workers: int, batch_size: int) -> Steps:
    """Cut ordered rows into global steps and take one worker's share of each."""
    global_batch = num_workers * batch_size
    num_steps = -(-len(rows) // global_batch)
    padding = num_steps * global_batch - len(rows)
    padded = np.concatenate([rows, np.resize(rows, padding) if padding else rows[:0]])
    weights = np.concatenate([np.ones(len(rows), np.float32), np.zeros(padding, np.float32)])
    shape = (num_steps, num_workers, batch_size)
    return Steps(
        rows=padded.reshape(shape)[:, rank],
        weights=weights.reshape(shape)[:, rank],
        totals=weights.reshape(shape).sum(axis=(1, 2), dtype=np.float32),
    )


def choose_validation(digests: list[str], labels: npt.NDArray[np.int32], fraction: float) -> npt.NDArray[np.bool_]:
    """Which rows are kept for validation: those whose content hash lies below `fraction`.

    An image keeps its side whatever else is added, and equal images share theirs. A class whose images would all be
    kept gives the one with the highest hash back to training.

    Args:
        digests: sha256 of each row's bytes, in hexadecimal.
        labels: int32 `[N]`.
        fraction: share in [0, 1).
    """
    hashes = np.array([int(digest[: VALIDATION_BITS // 4], 16) / 2**VALIDATION_BITS for digest in digests])
    chosen = hashes < fraction
    for label in np.unique(labels):
        members = labels == label
        if chosen[members].all():
            chosen &= ~(members & (hashes == hashes[members].max()))
    return chosen
