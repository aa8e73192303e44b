"""Shares of classes in an archive whose classes occur more or less often than where the model was trained.

Saerens, Latinne and Decaestecker 2002 (Neural Computation 14): if only the shares differ, and an image of a class looks
as it did (label shift), the shares of greatest likelihood are found by expectation maximization over the model's
calibrated probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_STEPS = 1000
_PRECISION = 1e-6


def correct_shares(rows: Indices, confidence: Floats, confusion: Sequence[Sequence[int]], prior: Floats) -> Floats:
    """Return float64 `[C]`: each class's share of an archive, corrected for label shift.

    Of an image's probabilities only the largest is known. The rest is divided over the other classes as the validation
    images with that predicted class were divided.

    Args:
        rows: int64 `[C, B]`, rows of the archive by predicted class and bin of their probability.
        confidence: float64 `[C, B]`, sum of these probabilities.
        confusion: `[true class, predicted class, images]` of the validation images.
        prior: float64 `[C]`, shares of the classes that the probabilities take for granted, all above 0.
    """
    num_classes = len(rows)
    rest = np.tile(prior, (num_classes, 1))  # by predicted class
    for true, predicted, count in confusion:
        rest[predicted, true] += count
    np.fill_diagonal(rest, 0.0)
    rest /= np.maximum(rest.sum(axis=1, keepdims=True), 1e-12)
    label, place = np.nonzero(rows)
    counts = rows[label, place].astype(np.float64)
    mean = np.clip(confidence[label, place] / counts, 0.0, 1.0)
    ratios = (1 - mean)[:, None] * rest[label]
    ratios[np.arange(len(label)), label] = mean
    ratios /= prior  # likelihoods of the classes, each image's up to a factor
    shares: Floats = prior
    for _ in range(_STEPS):
        weighted = ratios * shares
        weighted /= np.maximum(weighted.sum(axis=1, keepdims=True), 1e-300)
        step: Floats = counts @ weighted / counts.sum()
        moved = np.abs(step - shares).max()
        shares = step
        if moved < _PRECISION:
            break
    return shares
