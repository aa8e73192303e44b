"""Confidence intervals of proportions and of means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

Z_95 = 1.959963984540054
"""The 97.5% quantile of the standard normal, for two-sided 95% intervals."""


def compute_quantile(level: float) -> float:
    """Return a quantile of the standard normal."""
    return NormalDist().inv_cdf(level)


@dataclass(frozen=True)
class LossGain:
    """The log-loss that something saves on images that it was not fitted on, in nats an image.

    Attributes:
        mean: over the images.
        low, high: 95% interval of the mean, by the normal approximation.
    """

    mean: float
    low: float
    high: float


def measure_gain(images: float, total: float, squares: float) -> LossGain:
    """Return the mean gain from the number of images, the sum of their gains and the sum of the gains' squares."""
    mean = total / images
    variance = max(0.0, squares / images - mean * mean) * images / max(1.0, images - 1)
    spread = Z_95 * math.sqrt(variance / images)
    return LossGain(mean, mean - spread, mean + spread)


def wilson(successes: float, total: float, z: float = Z_95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (Wilson 1927, "Probable inference, the law of succession").

    Args:
        successes: number of successes; may be a fraction if examples are weighted.
        total: number of examples, likewise.
        z: quantile of the standard normal for the level.

    Returns:
        Lower and upper bound in [0, 1]; (0, 1) without examples.
    """
    if total <= 0:
        return 0.0, 1.0
    share = successes / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
