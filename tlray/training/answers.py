"""What the finished network says about images whose labels are known, and what of it goes into the bundle."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from tlray.calibration import MIN_IMAGES, Calibration, fit_temperature
from tlray.oddness import fit_oddness


@dataclass(frozen=True)
class Answers:
    """Answers to some rows of one role.

    Attributes:
        rows: int64 `[N]`, row ids.
        probabilities: float32 `[N, C]`, not calibrated.
        feature_rows: int64 `[M]`, those of the rows that were chosen for it.
        features: float32 `[M, D]`, their pooled features.
    """

    rows: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    feature_rows: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]


def join_answers(parts: Iterable[Answers]) -> Answers:
    """The answers of several batches or workers as one, ordered by row."""
    given = list(parts)
    rows, probabilities, feature_rows, features = (
        np.concatenate([getattr(part, field.name) for part in given]) for field in fields(Answers)
    )
    order, feature_order = np.argsort(rows), np.argsort(feature_rows)
    return Answers(rows[order], probabilities[order], feature_rows[feature_order], features[feature_order])


def fit_calibration(references: Answers, validation: Answers | None, labels: npt.NDArray[np.int32]) -> Calibration:
    """Temperature and oddness from what was held out; without that, no temperature.

    Args:
        references: of training images.
        validation: of the rows that chose the epoch; None without any.
        labels: by row id.
    """
    if validation is None:
        return Calibration(1.0, 0, fit_oddness(references.features, references.features[:0]))
    num_images = len(validation.rows)
    return Calibration(
        temperature=fit_temperature(validation.probabilities, labels[validation.rows]),
        images=num_images if num_images >= MIN_IMAGES else 0,
        oddness=fit_oddness(references.features, validation.features),
    )
