"""Predictions of the finished network on labelled images, and the calibration fitted on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from tlray.metrics.calibration import Calibration, fit_temperature
from tlray.metrics.ood import fit_ood_score


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


def fit_calibration(
    references: RowPredictions, validation: RowPredictions | None, labels: npt.NDArray[np.int32], num_classes: int
) -> Calibration:
    """Fit temperature and out-of-distribution score; without validation images, the temperature is 1.

    Args:
        references: predictions of training images.
        validation: predictions of validation images; None without any.
        labels: int32 by row id.
    """
    held_out = references.features[:0] if validation is None else validation.features
    ood_score = fit_ood_score(references.features, labels[references.feature_rows], num_classes, held_out)
    if validation is None:
        return Calibration(1.0, 0, ood_score)
    fit = fit_temperature(validation.probabilities, labels[validation.rows])
    return Calibration(fit.temperature, fit.images, ood_score, fit.gain)
