"""Label errors: labels that the most similar images contradict, and near-duplicate images.

Each label is compared with those of the nearest images, weighted by the similarity of features that were trained
without these labels. Images are ranked by the margin of the best other class over the given one, as Northcutt, Jiang
and Chuang rank by a classifier's probabilities ("Confident learning", JAIR 2021).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from tlray.metrics.near_duplicates import SAME, choose_least_cosine
from tlray.metrics.ood import Features, normalize
from tlray.storage.cells import disarm

MAX_IMAGES = 20_000
"""Maximum number of images to compare with each other; more would take minutes."""

_NEIGHBOURS = 20
_SHARPNESS = 10.0
LIKELY_ERROR = 0.7
"""Score from which on most of the similar images have another class."""

_BLOCK_ROWS = 1024
_MAX_LISTED = 200


@dataclass(frozen=True)
class LabelErrors:
    """Label errors and duplicates by position of the image.

    Attributes:
        checked: number of images checked.
        order: int64 `[checked]`, positions, the most likely label error first.
        suggested: int64 `[checked]`, by position: the best other class among the neighbours.
        scores: float64 `[checked]`, by position: 0 if all neighbours share the label, 1 if all have one other label.
        pairs: positions of two duplicates and their cosine similarity; pairs with different labels first.
    """

    checked: int
    order: npt.NDArray[np.int64]
    suggested: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    pairs: list[tuple[int, int, float]]


@dataclass(frozen=True)
class LabelError:
    """A labelled image, the best other class among its neighbours, and its label error score in [0, 1]."""

    uri: str
    label: str
    suggested: str
    score: float


@dataclass(frozen=True)
class DuplicatePair:
    """Two duplicate images with their labels and the cosine of their features."""

    first: str
    second: str
    first_label: str
    second_label: str
    similarity: float


@dataclass(frozen=True)
class LabelErrorSummary:
    """The first label errors and duplicates, by address and class name.

    Attributes:
        checked: number of labels checked.
        contradicted: number of labels with a score of `LIKELY_ERROR` or more.
        listed: labels, most likely errors first, at most 200.
        duplicates: duplicates, those with different labels first, at most 200.
    """

    checked: int
    contradicted: int
    listed: list[LabelError]
    duplicates: list[DuplicatePair]


NO_LABEL_ERRORS = LabelErrors(0, np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), [])
"""The result without features."""


def find_label_errors(features: Features, labels: npt.NDArray[np.integer], num_classes: int) -> LabelErrors:
    """Compare every label with those of the nearest images.

    Args:
        features: pooled features, `[N, D]`.
        labels: class indices, `[N]`.
        num_classes: number of classes.
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
            firsts, places = np.nonzero(np.take_along_axis(alike, nearest, axis=1) >= SAME)
            pairs += [
                (int(rows[first]), int(second), float(min(alike[first, second], 1.0)))
                for first, second in zip(firsts, nearest[firsts, places], strict=True)
                if rows[first] < second
            ]
        least = choose_least_cosine(closest)
        pairs = [pair for pair in pairs if pair[2] >= least]
        votes /= votes.sum(axis=1, keepdims=True)
    own = votes[np.arange(count), labels]
    others = votes.copy()
    others[np.arange(count), labels] = -1.0
    suggested = others.argmax(axis=1)
    scores = (others.max(axis=1) - own + 1) / 2 if neighbours > 0 else np.zeros(count)
    return LabelErrors(count, np.argsort(-scores, kind="stable"), suggested, scores, _sort_pairs(pairs, labels))


def add_copies(label_errors: LabelErrors, digests: Sequence[str], labels: npt.NDArray[np.integer]) -> LabelErrors:
    """Add pairs of files with the same content, which features of augmented views do not reveal.

    Args:
        label_errors: label errors of the same images.
        digests: content hash of each image's file.
        labels: class indices, `[N]`.
    """
    pairs = {(first, second): similarity for first, second, similarity in label_errors.pairs}
    latest: dict[str, int] = {}
    for row, digest in enumerate(digests):
        if digest in latest:
            pairs[latest[digest], row] = 1.0
        latest[digest] = row
    listed = [(first, second, similarity) for (first, second), similarity in pairs.items()]
    return replace(label_errors, pairs=_sort_pairs(listed, labels))


def _sort_pairs(pairs: list[tuple[int, int, float]], labels: npt.NDArray[np.integer]) -> list[tuple[int, int, float]]:
    return sorted(pairs, key=lambda pair: (bool(labels[pair[0]] == labels[pair[1]]), -pair[2], pair[:2]))


def write_label_errors(listed: Sequence[LabelError]) -> bytes:
    """Return label errors as a CSV file for people, whose cells no spreadsheet runs."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([field.name for field in fields(LabelError)])
    for error in listed:
        writer.writerow([disarm(cell) if isinstance(cell, str) else cell for cell in astuple(error)])
    return file.getvalue().encode()


def summarize_label_errors(
    label_errors: LabelErrors, uris: Sequence[str], labels: npt.NDArray[np.integer], classes: Sequence[str]
) -> LabelErrorSummary:
    """Summarize label errors and duplicates; arguments as `list_label_errors`."""
    return LabelErrorSummary(
        checked=label_errors.checked,
        contradicted=int((label_errors.scores >= LIKELY_ERROR).sum()),
        listed=list_label_errors(label_errors, uris, labels, classes)[:_MAX_LISTED],
        duplicates=[
            DuplicatePair(
                uris[first], uris[second], classes[labels[first]], classes[labels[second]], round(similarity, 4)
            )
            for first, second, similarity in label_errors.pairs[:_MAX_LISTED]
        ],
    )


def list_label_errors(
    label_errors: LabelErrors, uris: Sequence[str], labels: npt.NDArray[np.integer], classes: Sequence[str]
) -> list[LabelError]:
    """List every checked image, the most likely label error first.

    Args:
        label_errors: label errors of these images.
        uris: addresses by position.
        labels: class indices, `[N]`.
        classes: names by index.
    """
    return [
        LabelError(
            uris[row],
            classes[labels[row]],
            classes[label_errors.suggested[row]],
            round(float(label_errors.scores[row]), 4),
        )
        for row in label_errors.order
    ]
