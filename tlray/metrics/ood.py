"""The out-of-distribution score: how far an image is from the nearest class, as a multiple of what is usual there.

An image's distance from a class is 1 minus the mean cosine of its features with the class's 3 nearest references (after
Sun, Ming, Zhu, Li: "Out-of-distribution detection with deep nearest neighbors", ICML 2022, who take the k-th nearest of
all classes together, so that a class of fewer than k references lies far from its own images). The distance that 99% of
a class's own images stay below is its scale; the score is the least multiple over all classes.

References are training images. Of a class with many they are the centres of clusters (spherical k-means of Dhillon,
Modha: "Concept decompositions for large sparse text data using clustering", Machine Learning 2001), so that memory is
bounded.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Features: TypeAlias = npt.NDArray[np.floating]
"""Pooled features, `[N, D]`."""

Labels: TypeAlias = npt.NDArray[np.integer]
"""Indices of the true classes, `[N]`."""

Rows: TypeAlias = npt.NDArray[np.float32]
"""Features of unit length, `[N, D]`."""

NEIGHBOURS = 3
SCALE_PERCENTILE = 99
MAX_HELD = 2048
"""Limit of held-out images; more would not change the score much."""

_MIN_REFERENCES, _MAX_REFERENCES, _REFERENCES_A_CLASS = 512, 8192, 8
_MAX_ROWS, _ROWS_A_REFERENCE, _MIN_ROWS_A_CLASS = 16384, 8, 4
_MIN_IMAGES = 11
_MIN_HELD = 100
"""Fewer held-out images than these say too little about the last percent, and images out of fold are added."""

_ITERATIONS = 3
_FOLDS = 5
_DRAWS, _IMAGES_A_DRAW = 250, 8
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_CHUNK = 64
_PERCENTILES = (50, 90, 95, 99)
_LEAST_SCALE = 1e-6


@dataclass(frozen=True)
class OodRecord:
    """`bundle.json`'s `calibration.ood_score`: the references' number and digest, and the median of the scales."""

    method: str
    k: int
    references: int
    scale: float
    references_sha256: str


@dataclass(frozen=True)
class OodScore:
    """References and scales of the score.

    Attributes:
        references: float32 `[C, R, D]`, of unit length, each class's first; zeros where it has fewer than R.
        counts: int64 `[C]`, references of each class.
        scales: float32 `[C]`, distance from a class whose score is 1.
        percentiles: percentiles 50, 90, 95 and 99 of the scores of the images that set the scales.
    """

    references: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]
    scales: npt.NDArray[np.float32]
    percentiles: dict[str, float]

    @property
    def neighbours(self) -> int:
        """Most neighbours in one class."""
        return min(NEIGHBOURS, int(self.references.shape[1]))

    @property
    def penalties(self) -> npt.NDArray[np.float32]:
        """Terms that keep missing references from being neighbours when added to cosines, `[C, R]`."""
        missing = np.arange(self.references.shape[1]) >= self.counts[:, None]
        penalties: npt.NDArray[np.float32] = np.where(missing, -4, 0).astype(np.float32)
        return penalties

    @property
    def shares(self) -> npt.NDArray[np.float32]:
        """The part of each neighbour in the mean, the nearest first, `[C, neighbours]`."""
        used = np.minimum(self.counts, self.neighbours)[:, None]
        taken = np.arange(self.neighbours) < used
        shares: npt.NDArray[np.float32] = (taken / np.maximum(used, 1)).astype(np.float32)
        return shares

    def save(self, path: Path) -> None:
        """Write what measuring needs."""
        np.savez(path, references=self.references, counts=self.counts, scales=self.scales)

    @classmethod
    def load(cls, path: Path) -> OodScore:
        """Read what `save` wrote; without the percentiles.

        Raises:
            RuntimeError: the file is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                loaded = cls(arrays["references"], arrays["counts"], arrays["scales"], {})
        except (OSError, EOFError, ValueError, KeyError, MemoryError, zipfile.BadZipFile) as error:
            raise RuntimeError(f"{path.name} is damaged") from error
        shapes = loaded.references.shape[:1], loaded.counts.shape, loaded.scales.shape
        kinds = loaded.references.dtype.kind, loaded.counts.dtype.kind, loaded.scales.dtype.kind
        if loaded.references.ndim != 3 or len(set(shapes)) > 1 or kinds != ("f", "i", "f"):
            raise RuntimeError(f"{path.name} holds no references of classes")
        return loaded

    def describe(self) -> OodRecord:
        """Return what identifies the references."""
        digest = hashlib.sha256(self.references.tobytes()).hexdigest()
        scale = float(np.median(self.scales[self.counts > 0]))
        return OodRecord("class_knn", self.neighbours, int(self.counts.sum()), scale, digest)

    def measure(self, features: Features) -> npt.NDArray[np.float32]:
        """Return the scores of images, `[N]`."""
        scores: npt.NDArray[np.float32] = self.measure_by_class(normalize(features)).min(axis=1)
        return scores

    def measure_by_class(self, rows: Rows) -> npt.NDArray[np.float32]:
        """Return the distances from each class over its scale, `[N, C]`."""
        flat, penalties, shares = self.references.reshape(-1, rows.shape[1]), self.penalties, self.shares
        multiples = np.empty((len(rows), len(self.counts)), np.float32)
        for start in range(0, len(rows), _CHUNK):
            cosines = (rows[start : start + _CHUNK] @ flat.T).reshape(-1, *penalties.shape) + penalties
            nearest = -np.sort(np.partition(-cosines, self.neighbours - 1)[:, :, : self.neighbours])
            multiples[start : start + _CHUNK] = (1 - (nearest * shares).sum(axis=2)) / self.scales
        return multiples


def count_references(num_classes: int) -> int:
    """Return the most references of each class."""
    total = min(max(_MIN_REFERENCES, _REFERENCES_A_CLASS * num_classes), _MAX_REFERENCES)
    return max(1, total // num_classes)


def draw_reference_rows(
    rows: npt.NDArray[np.int64], labels: Labels, num_classes: int, seed: int
) -> npt.NDArray[np.int64]:
    """Draw the training images that the score is fitted to, from each class alike; returns row ids, sorted.

    Args:
        rows: row ids of training images.
        labels: by row id.
    """
    most = min(_ROWS_A_REFERENCE * count_references(num_classes), max(_MAX_ROWS // num_classes, _MIN_ROWS_A_CLASS))
    mixed = np.random.default_rng(seed).permutation(rows)
    mixed = mixed[np.argsort(labels[mixed], kind="stable")]
    starts = np.searchsorted(labels[mixed], labels[mixed])
    drawn: npt.NDArray[np.int64] = np.sort(mixed[np.arange(len(mixed)) - starts < most])
    return drawn


def fit_ood_score(
    features: Features,
    labels: Labels,
    num_classes: int,
    held_out: Features,
    scores: npt.NDArray[np.float32] | None = None,
    seed: int = 0,
) -> OodScore | None:
    """Fit the score to training images.

    A class's scale depends on its number of images alone: that of a small class is found by subsamples of larger ones.
    All scales share a factor, so that the 99th percentile of the held-out images' scores is 1; where there are few of
    these, training images are added, each scored without its own part of its class.

    Args:
        features: `[N, D]`, of training images.
        labels: `[N]`, their classes.
        held_out: `[H, D]`, of images that were not trained on; may be empty.
        scores: those of `score_held_out` for another network that was trained like this one; they replace `held_out`.
        seed: of clusters, subsamples and folds.

    Returns:
        None for too few images, or if none can be scored without itself.
    """
    found = _fit(features, labels, num_classes, seed)
    if found is None:
        return None
    if scores is None:
        scores = found.score(held_out)
    if len(scores) == 0:
        return None
    fitted = found.fitted
    factor = max(float(np.percentile(scores, SCALE_PERCENTILE)), _LEAST_SCALE)
    percentiles = {str(share): float(np.percentile(scores, share)) / factor for share in _PERCENTILES}
    return replace(fitted, scales=np.maximum(fitted.scales * np.float32(factor), _LEAST_SCALE), percentiles=percentiles)


def score_held_out(
    features: Features, labels: Labels, num_classes: int, held_out: Features, seed: int = 0
) -> npt.NDArray[np.float32] | None:
    """Return the scores of held-out images before they set the scales; arguments and None as `fit_ood_score`."""
    found = _fit(features, labels, num_classes, seed)
    return None if found is None else found.score(held_out)


@dataclass(frozen=True)
class _Fit:
    """A score whose scales depend on the numbers of images alone, and what scores further images."""

    fitted: OodScore
    by_class: Sequence[Rows]
    find_scale: Callable[[int], float]
    most: int
    random: np.random.Generator

    def score(self, held_out: Features) -> npt.NDArray[np.float32]:
        """Return the scores of held-out images; where these are few, those of training images out of fold as well."""
        scores = self.fitted.measure(held_out) if len(held_out) else np.empty(0, np.float32)
        if len(scores) < _MIN_HELD:
            scores = np.concatenate([scores, _score_out_of_fold(self)])
        return scores


def _fit(features: Features, labels: Labels, num_classes: int, seed: int) -> _Fit | None:
    rows = normalize(features)
    by_class = [rows[labels == label] for label in range(num_classes)]
    if len(rows) < _MIN_IMAGES or max(map(len, by_class)) < 2:
        return None
    random = np.random.default_rng(seed)
    most = count_references(num_classes)
    find_scale = _fit_scales(by_class, most, random)
    clustered = [_cluster(members, most, random) for members in by_class]
    counts = np.array([len(centres) for centres in clustered])
    references = np.zeros((num_classes, counts.max(), rows.shape[1]), np.float32)
    for label, centres in enumerate(clustered):
        references[label, : len(centres)] = centres
    # no image is near a class without references
    scales = np.array([find_scale(len(members)) if len(members) else _LEAST_SCALE for members in by_class], np.float32)
    return _Fit(OodScore(references, counts, scales, {}), by_class, find_scale, most, random)


def normalize(features: Features) -> Rows:
    """Scale rows to unit length, float32 `[N, D]`; zeros stay zeros."""
    features = np.asarray(features, np.float32)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit: Rows = (features / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit


def _cluster(members: Rows, most: int, random: np.random.Generator) -> Rows:
    """Return a class's references: its images, or the centres of `most` clusters."""
    if len(members) <= most:
        return members
    centres = members[random.permutation(len(members))[:most]]
    for _ in range(_ITERATIONS):
        nearest = (members @ centres.T).argmax(axis=1)
        belongs = (nearest == np.arange(most)[:, None]).astype(np.float32)
        centres = np.where(belongs.any(axis=1, keepdims=True), normalize(belongs @ members), centres)
    return centres


def _measure_distances(rows: Rows, references: Rows) -> npt.NDArray[np.float32]:
    """Return the distances from one class, `[N]`."""
    neighbours = min(NEIGHBOURS, len(references))
    nearest = -np.partition(-(rows @ references.T), neighbours - 1, axis=1)[:, :neighbours]
    distances: npt.NDArray[np.float32] = 1 - nearest.mean(axis=1)
    return distances


def _fit_scales(by_class: Sequence[Rows], most: int, random: np.random.Generator) -> Callable[[int], float]:
    """Return a function of a class's number of images: the 99th percentile of the distances of other images of it."""
    counts = np.array([len(members) for members in by_class])
    sizes, scales = [], []
    for size in _SIZES:
        larger = np.flatnonzero(counts > size)
        if len(larger) == 0:
            break
        distances = []
        for label in random.choice(larger, _DRAWS, p=counts[larger] / counts[larger].sum()):
            drawn = by_class[label][random.permutation(counts[label])[: size + _IMAGES_A_DRAW]]
            distances.append(_measure_distances(drawn[size:], _cluster(drawn[:size], most, random)))
        sizes.append(size)
        scales.append(max(float(np.percentile(np.concatenate(distances), SCALE_PERCENTILE)), _LEAST_SCALE))

    def find_scale(num_images: int) -> float:
        return float(np.interp(np.log(max(num_images, 1)), np.log(sizes), scales))

    return find_scale


def _score_out_of_fold(found: _Fit) -> npt.NDArray[np.float32]:
    """Return the scores of training images, at most 2,048, whose own class is fitted without their fold."""
    by_class, random = found.by_class, found.random
    chosen = random.random(sum(map(len, by_class)))
    chosen = chosen <= np.partition(chosen, min(MAX_HELD, len(chosen)) - 1)[min(MAX_HELD, len(chosen)) - 1]
    starts = np.cumsum([0, *map(len, by_class)])
    scores = []
    for label, members in enumerate(by_class):
        folds = random.permutation(len(members)) % _FOLDS
        for fold in range(_FOLDS):
            inside = folds == fold
            tested = members[inside & chosen[starts[label] : starts[label + 1]]]
            others = members[~inside]
            if len(tested) == 0 or len(others) == 0:
                continue
            multiples = found.fitted.measure_by_class(tested)
            distances = _measure_distances(tested, _cluster(others, found.most, random))
            multiples[:, label] = distances / found.find_scale(len(others))
            scores.append(multiples.min(axis=1))
    return np.concatenate([*scores, np.empty(0, np.float32)])
