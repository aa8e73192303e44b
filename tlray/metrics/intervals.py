"""Confidence intervals of proportions."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054
"""The 97.5% quantile of the standard normal, for two-sided 95% intervals."""


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
