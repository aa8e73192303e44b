"""From which probability on labels are as often right as somebody needs them to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tlray.metrics.calibration import Labels, Probabilities
from tlray.metrics.intervals import wilson

MIN_IMAGES = 10
"""Fewer images above a probability say nothing about their precision."""

_CAUTION = 0.5
"""Standard errors by which the precision must be above the target: the lowest of many thresholds is a lucky one."""


@dataclass(frozen=True)
class Threshold:
    """What holds for the images whose top probability is at least `probability`.

    Attributes:
        probability: calibrated, in [0, 1].
        precision: share of them whose label is right.
        low, high: its Wilson 95% interval.
        kept: how large a share of all images they are.
        images: how many they are.
    """

    probability: float
    precision: float
    low: float
    high: float
    kept: float
    images: int


def choose_thresholds(
    probabilities: Probabilities, labels: Labels, classes: Sequence[str], target_precision: float
) -> dict[str, Any]:
    """The lowest probability above which the precision reaches the target, over all labels and of each class.

    Args:
        probabilities: calibrated, `[N, C]`.
        labels: true classes, `[N]`.
        classes: names by index.
        target_precision: in (0, 1).

    Returns:
        `bundle.json`'s `thresholds`; None stands where no probability reaches the target, or, for a class that is
        among the `few`, where there are too few images to tell.
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    right = predicted == labels

    def choose(chosen: npt.NDArray[np.bool_]) -> dict[str, Any] | None:
        found = _choose_threshold(confidence[chosen], right[chosen], target_precision)
        return None if found is None else asdict(found)

    return {
        "target_precision": target_precision,
        "overall": choose(np.ones(len(labels), bool)),
        "by_class": {name: choose(predicted == index) for index, name in enumerate(classes)},
        "few": [name for index, name in enumerate(classes) if (predicted == index).sum() < MIN_IMAGES],
    }


def resolve_thresholds(thresholds: dict[str, Any], classes: Sequence[str]) -> npt.NDArray[np.float32]:
    """Least probability by class index, `[C]`: a class's own, of the few the one over all, else more than 1."""
    own, overall, few = thresholds["by_class"], thresholds["overall"], set(thresholds["few"])
    chosen = [overall if name in few else own[name] for name in classes]
    return np.array([2.0 if entry is None else entry["probability"] for entry in chosen], np.float32)


def _choose_threshold(
    confidence: npt.NDArray[np.floating], right: npt.NDArray[np.bool_], target: float
) -> Threshold | None:
    if len(confidence) < MIN_IMAGES:
        return None
    order = np.argsort(-confidence, kind="stable")
    confidence, correct = confidence[order], np.cumsum(right[order])
    counts = np.arange(1, len(order) + 1)
    last_of_ties = np.append(confidence[1:] < confidence[:-1], True)
    sure = [
        wilson(right, count, _CAUTION)[0] >= target
        for right, count in zip(correct.tolist(), counts.tolist(), strict=True)
    ]
    fits = np.flatnonzero(np.array(sure) & (counts >= MIN_IMAGES) & last_of_ties)
    if len(fits) == 0:
        return None
    index = int(fits[-1])
    num_kept, num_right = int(counts[index]), int(correct[index])
    low, high = wilson(num_right, num_kept)
    # rounded down, so that the image it was taken from stays above it in float32
    probability = float(np.nextafter(np.float32(confidence[index]), np.float32(0)))
    return Threshold(probability, num_right / num_kept, low, high, num_kept / len(order), num_kept)
