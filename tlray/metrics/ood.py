"""The out-of-distribution score: the distance of an image from a model's training images.

The distance is that of its features, scaled to unit length, to the k-th nearest training image's (Sun, Ming, Zhu, Li:
"Out-of-distribution detection with deep nearest neighbors", ICML 2022); the score is its multiple of the distance that
99% of the validation images stay below.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.floating]
"""Pooled features, `[N, D]`."""

NEIGHBOURS = 10
SCALE_PERCENTILE = 99
MAX_REFERENCES = 8192
MAX_HELD = 2048
"""Limits of reference and held-out images; more would not change the score much."""

_PERCENTILES = (50, 90, 95, 99)
_LEAST_SCALE = 1e-6


@dataclass(frozen=True)
class OodRecord:
    """`bundle.json`'s `calibration.ood_score`; attributes as in `OodScore`, with the references' number and digest."""

    method: str
    k: int
    references: int
    scale: float
    references_sha256: str


@dataclass(frozen=True)
class OodScore:
    """References and scale of the score.

    Attributes:
        references: float32 `[R, D]`, features of training images, of unit length.
        neighbours: k of the k-th nearest.
        scale: distance whose score is 1.
        percentiles: percentiles 50, 90, 95 and 99 of the scores of the images that set the scale.
    """

    references: npt.NDArray[np.float32]
    neighbours: int
    scale: float
    percentiles: dict[str, float]

    def describe(self) -> OodRecord:
        """Return what identifies the references."""
        digest = hashlib.sha256(self.references.tobytes()).hexdigest()
        return OodRecord("knn", self.neighbours, len(self.references), self.scale, digest)


def fit_ood_score(references: Features, held_out: Features) -> OodScore | None:
    """Fit the score to features of training images, and its scale to features of held-out ones.

    Without held-out images the references are compared with each other, which makes the scale a little too small.

    Args:
        references: `[R, D]`, of training images.
        held_out: `[H, D]`, of images that were not trained on; may be empty.

    Returns:
        None if there are too few references for a k-th neighbour.
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
    """Scale rows to unit length, float32 `[N, D]`."""
    features = np.asarray(features, np.float32)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = (features / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit


def measure_distances(
    features: Features, references: npt.NDArray[np.float32], neighbours: int
) -> npt.NDArray[np.float32]:
    """Return 1 minus the cosine to the k-th nearest reference, `[N]`."""
    similarities = normalize(features) @ references.T
    nearest = np.partition(similarities, -neighbours, axis=1)[:, -neighbours]
    distances: npt.NDArray[np.float32] = 1 - nearest
    return distances
