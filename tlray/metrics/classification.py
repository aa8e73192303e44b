"""How good probabilities are on labelled images: accuracy, precision, recall and F1 by class, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tlray.metrics.calibration import Bin, Labels, Probabilities, bin_confidences, compute_ece, compute_log_loss
from tlray.metrics.intervals import wilson

_TOP_K = 5
_HISTOGRAM_BINS = 20


@dataclass(frozen=True)
class Measurement:
    """Metrics over labelled images; intervals are Wilson's at 95%.

    Attributes:
        images: how many were measured.
        accuracy, accuracy_low, accuracy_high: share whose most probable class is the true one.
        top_k, top_k_accuracy: share whose true class is among the k most probable.
        log_loss: mean negative logarithm of the true class's probability.
        ece: expected calibration error.
        bins: of the reliability diagram.
        by_class: class name -> precision, recall, f1 (each in [0, 1], 0 where undefined; the first two with _low and
            _high), images, and predicted: how many were given this class.
        macro_f1: plain mean of the classes' F1.
        confusion: `[C][C]` counts; row: true class, column: predicted class.
        confidences: how many images have their top probability in each twentieth of [0, 1].
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
    by_class: dict[str, dict[str, float]]
    macro_f1: float
    confusion: list[list[int]]
    confidences: list[int]


def measure_uncalibrated(probabilities: Probabilities, labels: Labels) -> dict[str, Any]:
    """What calibration has to mend: `bundle.json`'s `metrics.uncalibrated`."""
    bins = bin_confidences(probabilities, labels)
    return {
        "images": len(labels),
        "log_loss": compute_log_loss(probabilities, labels),
        "ece": compute_ece(bins),
        "bins": [asdict(entry) for entry in bins],
    }


def measure(probabilities: Probabilities, labels: Labels, classes: Sequence[str]) -> Measurement:
    """Compare probabilities `[N, C]` with true class indices `[N]`."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    num_classes, images = len(classes), len(labels)
    predicted = probabilities.argmax(axis=1)
    indices = np.arange(num_classes)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=indices, average=None, zero_division=0.0
    )
    confusion = confusion_matrix(labels, predicted, labels=indices) if images else np.zeros((num_classes,) * 2, int)
    by_class = {}
    for index, name in enumerate(classes):
        right, given = int(confusion[index, index]), int(confusion[:, index].sum())
        precision_low, precision_high = wilson(right, given)
        recall_low, recall_high = wilson(right, int(support[index]))
        by_class[name] = {
            "precision": float(precision[index]),
            "precision_low": precision_low,
            "precision_high": precision_high,
            "recall": float(recall[index]),
            "recall_low": recall_low,
            "recall_high": recall_high,
            "f1": float(f1[index]),
            "images": int(support[index]),
            "predicted": given,
        }
    right = int((labels == predicted).sum())
    low, high = wilson(right, images)
    top_k = min(_TOP_K, num_classes)
    top = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    bins = bin_confidences(probabilities, labels)
    return Measurement(
        images=images,
        accuracy=right / max(images, 1),
        accuracy_low=low,
        accuracy_high=high,
        top_k=top_k,
        top_k_accuracy=float((top == labels[:, None]).any(axis=1).mean()) if images else 0.0,
        log_loss=compute_log_loss(probabilities, labels),
        ece=compute_ece(bins),
        bins=bins,
        by_class=by_class,
        macro_f1=float(f1.mean()),
        confusion=confusion.tolist(),
        confidences=np.histogram(probabilities.max(axis=1), _HISTOGRAM_BINS, (0, 1))[0].tolist(),
    )
