"""How far an image lies from what a model was trained on.

The distance of its features, scaled to unit length, to the k-th nearest of the training images' (Sun, Ming, Zhu, Li:
"Out-of-distribution detection with deep nearest neighbors", ICML 2022), as a multiple of the distance that 99% of the
validation images stay below.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.floating]
"""Pooled features, `[N, D]`."""

NEIGHBOURS = 10
SCALE_PERCENTILE = 99
MAX_REFERENCES = 8192
MAX_HELD = 2048
"""More of either tell nothing new."""

_PERCENTILES = (50, 90, 95, 99)
_LEAST_SCALE = 1e-6


@dataclass(frozen=True)
class OodScore:
    """What an image is compared with.

    Attributes:
        references: float32 `[R, D]`, of unit length.
        neighbours: the k of the k-th nearest.
        scale: the distance that counts as 1.
        percentiles: of the ood_score of the images that set the scale, by name.
    """

    references: npt.NDArray[np.float32]
    neighbours: int
    scale: float
    percentiles: dict[str, float]

    def describe(self) -> dict[str, Any]:
        """`bundle.json`'s `calibration.ood_score`."""
        return {
            "method": "knn",
            "k": self.neighbours,
            "references": len(self.references),
            "scale": self.scale,
            "references_sha256": hashlib.sha256(self.references.tobytes()).hexdigest(),
        }


def fit_ood_score(references: Features, held_out: Features) -> OodScore | None:
    """Take training images' features as references, and the scale from images that weren't trained on.

    Without any of those the references measure each other, which makes the scale a little too small. None where there
    are too few references for a k-th neighbour.
    """
    if len(references) <= NEIGHBOURS:
        return None
    unit = normalize(references)
    if len(held_out):
        distances = measure_distances(held_out, unit, NEIGHBOURS)
    else:
        distances = measure_distances(unit, unit, NEIGHBOURS + 1)  # each is its own nearest
    scale = max(float(np.percentile(distances, SCALE_PERCENTILE)), _LEAST_SCALE)
    percentiles = {str(share): float(np.percentile(distances, share)) / scale for share in _PERCENTILES}
    return OodScore(unit, NEIGHBOURS, scale, percentiles)


def normalize(features: Features) -> npt.NDArray[np.float32]:
    """Rows scaled to unit length, float32."""
    features = np.asarray(features, np.float32)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = (features / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit


def measure_distances(
    features: Features, references: npt.NDArray[np.float32], neighbours: int
) -> npt.NDArray[np.float32]:
    """1 minus the cosine to the k-th nearest reference, `[N]`."""
    similarities = normalize(features) @ references.T
    nearest = np.partition(similarities, -neighbours, axis=1)[:, -neighbours]
    distances: npt.NDArray[np.float32] = 1 - nearest
    return distances
