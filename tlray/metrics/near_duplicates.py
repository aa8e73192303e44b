"""Groups of images that are nearly the same, by the cosine similarity of their features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tlray.metrics.ood import Features, normalize

MAX_IMAGES = 10_000
"""Maximum number of images to compare with each other; the time grows with its square."""

SAME = 0.98
"""Least cosine of near-duplicates; see `choose_least_cosine`."""

_SAME_SHARE = 0.1
_ROUNDING = 1e-5
_BLOCK_ROWS = 1024
_NEIGHBOURS = 20


@dataclass(frozen=True)
class NearDuplicates:
    """Groups of near-duplicates: each image is nearly the same as another one of its group.

    Attributes:
        compared: number of images that were compared with each other.
        groups: int64 positions of the images of each group, the largest group first.
    """

    compared: int
    groups: list[npt.NDArray[np.int64]]

    @property
    def surplus(self) -> int:
        """Number of images that would be left out if one of each group were kept."""
        return sum(len(group) - 1 for group in self.groups)


def choose_least_cosine(closest: npt.NDArray[np.floating]) -> float:
    """Return the cosine from which on images are near-duplicates, besides `SAME`.

    Their distance is at most a tenth of the median distance to the nearest image.

    Args:
        closest: `[N]`, cosine of each image and the one that is most like it.
    """
    return min(1 - _SAME_SHARE * float(np.median(1 - closest)), 1 - _ROUNDING)


def group_near_duplicates(features: Features) -> NearDuplicates:
    """Group the near-duplicates among images.

    Args:
        features: pooled features, `[N, D]`.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    unit = normalize(features)
    count = len(unit)
    if count < 2:
        return NearDuplicates(count, [])
    neighbours = min(_NEIGHBOURS, count - 1)
    closest = np.zeros(count)
    edges = []
    for start in range(0, count, _BLOCK_ROWS):
        rows = np.arange(start, min(start + _BLOCK_ROWS, count))
        alike = unit[rows] @ unit.T
        alike[np.arange(len(rows)), rows] = -1.0
        closest[rows] = alike.max(axis=1)
        nearest = np.argpartition(-alike, neighbours - 1, axis=1)[:, :neighbours]
        # the first image that is alike too, so that many copies of one image are one group
        others = np.column_stack([nearest, (alike >= 1 - _ROUNDING).argmax(axis=1)])
        firsts, places = np.nonzero(np.take_along_axis(alike, others, axis=1) >= SAME)
        seconds = others[firsts, places]
        edges.append((rows[firsts], seconds, alike[firsts, seconds]))
    first, second, cosine = (np.concatenate(pieces) for pieces in zip(*edges, strict=True))
    same = cosine >= choose_least_cosine(closest)
    graph = coo_array((np.ones(int(same.sum()), bool), (first[same], second[same])), shape=(count, count))
    _, names = connected_components(graph, directed=False)
    members = np.split(np.argsort(names, kind="stable"), np.cumsum(np.bincount(names))[:-1])
    groups = sorted((group for group in members if len(group) > 1), key=lambda group: (-len(group), int(group[0])))
    return NearDuplicates(count, groups)
