"""Predictions of a network on labelled images, and what is fitted to and measured on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tlray.metrics.calibration import Calibration, fit_temperature
from tlray.metrics.classification import compute_macro_f1
from tlray.metrics.ood import fit_ood_score, score_held_out

_LEAST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class RowPredictions:
    """Predictions on some rows of one role.

    Attributes:
        rows: int64 `[N]`, row ids.
        probabilities: float32 `[N, C]`, not calibrated.
        feature_rows, features: int64 `[M]` and float32 `[M, D]`, row ids with their pooled features.
    """

    rows: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    feature_rows: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]

    def without_features(self) -> RowPredictions:
        """Return the probabilities alone."""
        return replace(self, feature_rows=self.feature_rows[:0], features=self.features[:0])


class Validated(NamedTuple):
    """Figures of the validation images, as in `EpochRecord`."""

    loss: float
    weighted_loss: float
    accuracy: float
    macro_f1: float


def join_predictions(parts: Iterable[RowPredictions]) -> RowPredictions:
    """Join the predictions of several batches or workers, ordered by row; no row may be in two of them.

    Raises:
        ValueError: there are no parts.
    """
    given = list(parts)
    rows, probabilities, feature_rows, features = (
        np.concatenate([getattr(part, field.name) for part in given]) for field in fields(RowPredictions)
    )
    order, feature_order = np.argsort(rows), np.argsort(feature_rows)
    return RowPredictions(rows[order], probabilities[order], feature_rows[feature_order], features[feature_order])


def validate_predictions(
    predictions: RowPredictions, labels: npt.NDArray[np.int32], class_weights: npt.NDArray[np.float32]
) -> Validated:
    """Measure predictions; labels are int32 by row id, weights float32 by label."""
    own = labels[predictions.rows]
    chances = predictions.probabilities[np.arange(len(own)), own].astype(np.float64)
    losses, weights = -np.log(np.maximum(chances, _LEAST_PROBABILITY)), class_weights[own]
    predicted = predictions.probabilities.argmax(axis=1)
    counts = [np.bincount(found, minlength=len(class_weights)) for found in (own[predicted == own], predicted, own)]
    return Validated(
        loss=float(losses.mean()),
        weighted_loss=float((losses * weights).sum() / weights.sum()),
        accuracy=float((predicted == own).mean()),
        macro_f1=compute_macro_f1(*counts),
    )


def score_trials(
    pairs: Iterable[tuple[RowPredictions, RowPredictions]], labels: npt.NDArray[np.int32], num_classes: int
) -> npt.NDArray[np.float32] | None:
    """Return the out-of-distribution scores that trials give the images that they held out; None for too few images.

    Args:
        pairs: of each trial its predictions of training images and of the images held out.
        labels: int32 by row id.
    """
    scored = [
        score_held_out(references.features, labels[references.feature_rows], num_classes, held_out.features)
        for references, held_out in pairs
    ]
    enough = [scores for scores in scored if scores is not None]
    return np.concatenate(enough) if enough else None


def fit_calibration(
    references: RowPredictions,
    validation: RowPredictions | None,
    labels: npt.NDArray[np.int32],
    num_classes: int,
    scores: npt.NDArray[np.float32] | None = None,
) -> Calibration:
    """Fit temperature and out-of-distribution score; without validation images, the temperature is 1.

    Args:
        references: predictions of training images.
        validation: predictions of validation images, or of training images out of fold; None without any.
        labels: int32 by row id.
        scores: of `score_trials`.
    """
    held_out = references.features[:0] if validation is None else validation.features
    ood_score = fit_ood_score(references.features, labels[references.feature_rows], num_classes, held_out, scores)
    if validation is None:
        return Calibration(1.0, 0, ood_score)
    fit = fit_temperature(validation.probabilities, labels[validation.rows])
    return Calibration(fit.temperature, fit.images, ood_score, fit.gain)
