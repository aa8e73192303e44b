"""Probability thresholds above which predictions reach a required precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tlray.metrics.calibration import Labels, Probabilities
from tlray.metrics.intervals import wilson

MIN_IMAGES = 10
"""Minimum number of images above a threshold; fewer are too few to estimate their precision."""

_CAUTION = 0.5
"""Standard errors by which the precision must exceed the target: choosing among many thresholds favours lucky ones."""

_UNREACHABLE = 2.0


@dataclass(frozen=True)
class Threshold:
    """The precision of predictions whose top probability is at least `probability`.

    Attributes:
        probability: calibrated, in [0, 1].
        precision: share of these predictions that is correct.
        low, high: Wilson 95% interval of the precision.
        kept: share of all images that have such a prediction; of a class, of the images predicted as it.
        images: number of these predictions.
    """

    probability: float
    precision: float
    low: float
    high: float
    kept: float
    images: int


@dataclass(frozen=True)
class Thresholds:
    """`bundle.json`'s `thresholds`.

    Attributes:
        target_precision: required precision, in (0, 1).
        overall: over all predictions; None if no probability reaches the target.
        by_class: by predicted class; None if no probability reaches the target, or if the class is in `few`.
        few: classes predicted for fewer than `MIN_IMAGES` images.
    """

    target_precision: float
    overall: Threshold | None
    by_class: dict[str, Threshold | None] = field(default_factory=dict)
    few: list[str] = field(default_factory=list)


def choose_thresholds(
    probabilities: Probabilities, labels: Labels, classes: Sequence[str], target_precision: float
) -> Thresholds:
    """Choose the lowest probability above which the precision reaches the target, over all predictions and by class.

    Args:
        probabilities: calibrated, `[N, C]`.
        labels: true classes, `[N]`.
        classes: names by index.
        target_precision: required precision, in (0, 1).
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    right = predicted == labels

    def choose(chosen: npt.NDArray[np.bool_]) -> Threshold | None:
        return _choose_threshold(confidence[chosen], right[chosen], target_precision)

    return Thresholds(
        target_precision=target_precision,
        overall=choose(np.ones(len(labels), bool)),
        by_class={name: choose(predicted == index) for index, name in enumerate(classes)},
        few=[name for index, name in enumerate(classes) if (predicted == index).sum() < MIN_IMAGES],
    )


def resolve_thresholds(thresholds: Thresholds, classes: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return the minimum probability by class index, float32 `[C]`.

    A class in `few` takes the overall threshold, every other class its own. Without one, no probability is enough.
    """
    chosen = [thresholds.overall if name in thresholds.few else thresholds.by_class[name] for name in classes]
    return np.array([_UNREACHABLE if entry is None else entry.probability for entry in chosen], np.float32)


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
    # rounded down, so that the image it comes from stays above it in float32
    probability = float(np.nextafter(np.float32(confidence[index]), np.float32(0)))
    return Threshold(probability, num_right / num_kept, low, high, num_kept / len(order), num_kept)
