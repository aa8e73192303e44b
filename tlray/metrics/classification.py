"""Metrics of predicted probabilities on labelled images: accuracy, precision, recall and F1 by class, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tlray.metrics.calibration import Bin, Labels, Probabilities, bin_confidences, compute_ece, compute_log_loss
from tlray.metrics.intervals import wilson

Counts: TypeAlias = npt.NDArray[np.integer] | npt.NDArray[np.floating]

_TOP_K = 5
_HISTOGRAM_BINS = 20
_MAX_PAIRS = 20


@dataclass(frozen=True)
class ClassMeasurement:
    """Metrics of one class, each in [0, 1] and 0 where undefined; intervals are Wilson's at 95%.

    Attributes:
        precision, precision_low, precision_high: share of the images predicted as this class that belong to it.
        recall, recall_low, recall_high: share of the images of this class that were predicted as it.
        f1: harmonic mean of precision and recall.
        images: number of images of this class.
        predicted: number of images predicted as this class.
    """

    precision: float
    precision_low: float
    precision_high: float
    recall: float
    recall_low: float
    recall_high: float
    f1: float
    images: int
    predicted: int


@dataclass(frozen=True)
class Measurement:
    """Metrics over labelled images; intervals are Wilson's at 95%.

    Attributes:
        images: number of images.
        accuracy, accuracy_low, accuracy_high: share whose most probable class is the true one.
        top_k, top_k_accuracy: k, and the share whose true class is among the k most probable.
        log_loss: mean negative logarithm of the true class's probability.
        ece: expected calibration error.
        bins: bins of the reliability diagram.
        macro_f1: unweighted mean of F1 over the classes that occur.
        confidences: `[20]`, images by top probability over [0, 1].
        by_class: metrics by class name.
        confusion: `[true class, predicted class, images]` by class index, in order, for each pair that occurs.
        loss: validation loss of the kept epoch during training; None for other images.
    """

    images: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    top_k: int
    top_k_accuracy: float
    log_loss: float
    ece: float
    bins: list[Bin]
    macro_f1: float
    confidences: list[int]
    by_class: dict[str, ClassMeasurement] = field(default_factory=dict)
    confusion: list[list[int]] = field(default_factory=list)
    loss: float | None = None


@dataclass(frozen=True)
class UncalibratedMeasurement:
    """Calibration before temperature scaling; attributes as in `Measurement`."""

    images: int
    log_loss: float
    ece: float
    bins: list[Bin]


@dataclass(frozen=True)
class ConfusedPair:
    """A true class, the other class predicted for it, and the number of images."""

    true: str
    predicted: str
    images: int


def measure_uncalibrated(probabilities: Probabilities, labels: Labels) -> UncalibratedMeasurement:
    """Measure calibration alone; arguments as `measure`."""
    bins = bin_confidences(probabilities, labels)
    return UncalibratedMeasurement(len(labels), compute_log_loss(probabilities, labels), compute_ece(bins), bins)


def measure(probabilities: Probabilities, labels: Labels, classes: Sequence[str]) -> Measurement:
    """Compare probabilities `[N, C]` with true class indices `[N]`, N > 0."""
    from sklearn.metrics import precision_recall_fscore_support

    num_classes, images = len(classes), len(labels)
    predicted = probabilities.argmax(axis=1)
    indices = np.arange(num_classes)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=indices, average=None, zero_division=0.0
    )
    rights = np.bincount(labels[labels == predicted], minlength=num_classes)
    givens = np.bincount(predicted, minlength=num_classes)
    by_class = {}
    for index, name in enumerate(classes):
        right, given = int(rights[index]), int(givens[index])
        by_class[name] = ClassMeasurement(
            float(precision[index]),
            *wilson(right, given),
            float(recall[index]),
            *wilson(right, int(support[index])),
            f1=float(f1[index]),
            images=int(support[index]),
            predicted=given,
        )
    right = int((labels == predicted).sum())
    low, high = wilson(right, images)
    top_k = min(_TOP_K, num_classes)
    of_true = probabilities[np.arange(images), labels][:, None]
    ahead = (probabilities > of_true) | ((probabilities == of_true) & (indices < labels[:, None]))
    bins = bin_confidences(probabilities, labels)
    return Measurement(
        images=images,
        accuracy=right / images,
        accuracy_low=low,
        accuracy_high=high,
        top_k=top_k,
        top_k_accuracy=float((ahead.sum(axis=1) < top_k).mean()),
        log_loss=compute_log_loss(probabilities, labels),
        ece=compute_ece(bins),
        bins=bins,
        by_class=by_class,
        macro_f1=compute_macro_f1(rights, givens, support),
        confusion=_count_pairs(labels, predicted),
        confidences=np.histogram(probabilities.max(axis=1), _HISTOGRAM_BINS, (0, 1))[0].tolist(),
    )


def compute_macro_f1(right: Counts, predicted: Counts, images: Counts) -> float:
    """Return the mean of F1, 2 right / (predicted + images), over the classes with images.

    Args:
        right: images of each class that were predicted as it, `[C]`.
        predicted: images that were predicted as it, `[C]`.
        images: images of it, `[C]`; at least one class has some.
    """
    occurring = images > 0
    return float((2 * right[occurring] / (predicted[occurring] + images[occurring])).mean())


def _count_pairs(labels: Labels, predicted: npt.NDArray[np.integer]) -> list[list[int]]:
    pairs, counts = np.unique(np.stack([labels, predicted], axis=1), axis=0, return_counts=True)
    confusion: list[list[int]] = np.column_stack([pairs, counts]).tolist()
    return confusion


def list_confused(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> list[ConfusedPair]:
    """List the confused pairs of classes, most frequent first, at most 20; `confusion` as in `Measurement`."""
    pairs = [ConfusedPair(classes[row], classes[column], count) for row, column, count in confusion if row != column]
    return sorted(pairs, key=lambda pair: -pair.images)[:_MAX_PAIRS]
