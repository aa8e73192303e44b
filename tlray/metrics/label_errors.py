"""Labelled images that somebody should look at: labels that their neighbours contradict, and pictures there are twice.

A label is held against those of the nearest images by features that know no labels, weighted by likeness; images are
ranked by the margin of the best other class over the given one, as Northcutt, Jiang and Chuang rank by a classifier's
probabilities ("Confident learning", JAIR 2021).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tlray.metrics.ood import Features, normalize

MAX_IMAGES = 20_000
"""More would be compared with each other for minutes."""

_NEIGHBOURS = 20
_SHARPNESS = 10.0
_SAME = 0.98
_SAME_SHARE = 0.1
"""Pictures look the same that are as alike as `_SAME`, at this share of the distance of ordinary nearest neighbours."""

LIKELY_ERROR = 0.7
"""From this score on, most of what an image is like speaks for another class."""

_ROUNDING = 1e-5
_BLOCK_ROWS = 1024
_MAX_LISTED = 200


@dataclass(frozen=True)
class LabelErrors:
    """What was found among some labelled images.

    Attributes:
        checked: how many images were looked at.
        order: int64 `[checked]`, their positions, the likeliest wrong label first.
        suggested: int64 `[checked]`, by position: the class that the neighbours speak for.
        scores: float64 `[checked]`, by position: 0 for a label that all neighbours share, 1 for one that none does.
        pairs: positions of two images that look the same and how alike they are; different labels first.
    """

    checked: int
    order: npt.NDArray[np.int64]
    suggested: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    pairs: list[tuple[int, int, float]]


NO_LABEL_ERRORS = LabelErrors(0, np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), [])
"""Where no features tell anything."""


def find_label_errors(features: Features, labels: npt.NDArray[np.integer[Any]], num_classes: int) -> LabelErrors:
    """Hold every label against those of the nearest images.

    Args:
        features: pooled, `[N, D]`.
        labels: `[N]`.
        num_classes: C.
    """
    unit = normalize(features)
    count = len(labels)
    neighbours = min(_NEIGHBOURS, count - 1)
    votes = np.zeros((count, num_classes))
    pairs: list[tuple[int, int, float]] = []
    closest = np.zeros(count)
    if neighbours > 0:
        for start in range(0, count, _BLOCK_ROWS):
            rows = np.arange(start, min(start + _BLOCK_ROWS, count))
            alike = unit[rows] @ unit.T
            alike[np.arange(len(rows)), rows] = -1.0
            nearest = np.argpartition(-alike, neighbours - 1, axis=1)[:, :neighbours]
            weights = np.exp(_SHARPNESS * np.take_along_axis(alike, nearest, axis=1))
            for column in range(neighbours):
                votes[rows, labels[nearest[:, column]]] += weights[:, column]
            closest[rows] = alike.max(axis=1)
            firsts, places = np.nonzero(np.take_along_axis(alike, nearest, axis=1) >= _SAME)
            pairs += [
                (int(rows[first]), int(second), float(min(alike[first, second], 1.0)))
                for first, second in zip(firsts, nearest[firsts, places], strict=True)
                if rows[first] < second
            ]
        least = min(1 - _SAME_SHARE * float(np.median(1 - closest)), 1 - _ROUNDING)
        pairs = [pair for pair in pairs if pair[2] >= least]
        votes /= votes.sum(axis=1, keepdims=True)
    own = votes[np.arange(count), labels]
    others = votes.copy()
    others[np.arange(count), labels] = -1.0
    suggested = others.argmax(axis=1)
    scores = (others.max(axis=1) - own + 1) / 2 if neighbours > 0 else np.zeros(count)
    return LabelErrors(count, np.argsort(-scores, kind="stable"), suggested, scores, _sort_pairs(pairs, labels))


def add_copies(label_errors: LabelErrors, digests: Sequence[str], labels: npt.NDArray[np.integer[Any]]) -> LabelErrors:
    """Also name files of the same content, which features of augmented views don't show.

    Args:
        label_errors: of the same images.
        digests: of each image's file.
        labels: `[N]`.
    """
    pairs = {(first, second): similarity for first, second, similarity in label_errors.pairs}
    latest: dict[str, int] = {}
    for row, digest in enumerate(digests):
        if digest in latest:
            pairs[latest[digest], row] = 1.0
        latest[digest] = row
    listed = [(first, second, similarity) for (first, second), similarity in pairs.items()]
    return replace(label_errors, pairs=_sort_pairs(listed, labels))


def _sort_pairs(
    pairs: list[tuple[int, int, float]], labels: npt.NDArray[np.integer[Any]]
) -> list[tuple[int, int, float]]:
    return sorted(pairs, key=lambda pair: (bool(labels[pair[0]] == labels[pair[1]]), -pair[2], pair[:2]))


def write_label_errors(listed: Sequence[dict[str, Any]]) -> bytes:
    """`list_label_errors` as a CSV file."""
    file = io.StringIO()
    writer = csv.DictWriter(file, ["uri", "label", "suggested", "score"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    return file.getvalue().encode()


def summarize_label_errors(
    label_errors: LabelErrors, uris: Sequence[str], labels: npt.NDArray[np.integer[Any]], classes: Sequence[str]
) -> dict[str, Any]:
    """The first of each list as plain JSON values."""
    return {
        "checked": label_errors.checked,
        "contradicted": int((label_errors.scores >= LIKELY_ERROR).sum()),
        "listed": list_label_errors(label_errors, uris, labels, classes)[:_MAX_LISTED],
        "duplicates": [
            {
                "first": uris[first],
                "second": uris[second],
                "first_label": classes[labels[first]],
                "second_label": classes[labels[second]],
                "similarity": round(similarity, 4),
            }
            for first, second, similarity in label_errors.pairs[:_MAX_LISTED]
        ],
    }


def list_label_errors(
    label_errors: LabelErrors, uris: Sequence[str], labels: npt.NDArray[np.integer[Any]], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Every image that was checked with its label and the one that its neighbours speak for, the worst first."""
    return [
        {
            "uri": uris[row],
            "label": classes[labels[row]],
            "suggested": classes[label_errors.suggested[row]],
            "score": round(float(label_errors.scores[row]), 4),
        }
        for row in label_errors.order
    ]
