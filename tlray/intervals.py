"""Intervals for shares that were counted."""

from __future__ import annotations

import math

Z_95 = 1.959964
"""The standard normal distribution's 97.5% point."""


def wilson(successes: float, total: float, z: float = Z_95) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927, Journal of the American Statistical Association 22, 209-212).

    Args:
        successes: 0 to `total`; neither need be whole, for an effective sample size.
        total: how many were looked at; (0, 1) for 0.
        z: normal quantile; the default gives 95%.

    Returns:
        Both ends, in [0, 1].
    """
    if total <= 0:
        return 0.0, 1.0
    share, spread = successes / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(max(0.0, share * (1 - share)) / total + spread / (4 * total)) / (1 + spread)
    # at both ends of the range the formula gives 0 and 1, but for rounding
    low = 0.0 if share <= 0 else max(0.0, centre - half)
    high = 1.0 if share >= 1 else min(1.0, centre + half)
    return low, high
