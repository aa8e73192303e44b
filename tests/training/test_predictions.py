import numpy as np
import pytest

from tlray.metrics.calibration import MIN_IMAGES
from tlray.training.predictions import RowPredictions, fit_calibration, join_predictions, validate_predictions


def predict(rows, kept):
    rows, kept = np.array(rows), np.array(kept, np.int64)
    return RowPredictions(
        rows,
        np.stack([rows, -rows], axis=1).astype(np.float32),
        kept,
        np.repeat(kept[:, None], 3, axis=1).astype(np.float32),
    )


def test_parts_are_joined_in_order_of_their_rows():
    joined = join_predictions([predict([5, 1], [1]), predict([3], []), predict([2, 4], [4, 2])])
    assert joined.rows.tolist() == [1, 2, 3, 4, 5]
    assert joined.probabilities[:, 0].tolist() == [1, 2, 3, 4, 5]
    assert joined.feature_rows.tolist() == [1, 2, 4]
    assert joined.features[:, 2].tolist() == [1, 2, 4]


def make_predictions(count, seed):
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet([1, 1], count).astype(np.float32)
    return RowPredictions(np.arange(count), probabilities, np.arange(count), random.random((count, 4), np.float32))


def test_without_validation_the_temperature_is_1():
    calibration = fit_calibration(make_predictions(20, 0), None, np.zeros(20, np.int32), 1)
    assert (calibration.temperature, calibration.images) == (1.0, 0)
    assert calibration.ood_score.counts.tolist() == [20]


def test_validation_images_fit_the_temperature_if_there_are_enough():
    labels = np.random.default_rng(2).integers(0, 2, MIN_IMAGES, dtype=np.int32)
    calibration = fit_calibration(make_predictions(20, 0), make_predictions(MIN_IMAGES, 1), labels, 2)
    assert calibration.images == MIN_IMAGES
    assert calibration.temperature > 1.0  # random predictions are overconfident
    few = fit_calibration(make_predictions(20, 0), make_predictions(MIN_IMAGES - 1, 1), labels, 2)
    assert few.images == 0


def test_predictions_are_measured_as_validation_images_are():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.0, 1.0]], np.float32)
    found = RowPredictions(np.array([3, 4, 7, 8]), probabilities, np.arange(0), np.empty((0, 4), np.float32))
    labels = np.array([9, 9, 9, 0, 1, 9, 9, 1, 1], np.int32)
    validated = validate_predictions(found, labels, np.array([3, 1], np.float32))
    losses = -np.log([0.9, 0.4, 0.8, 1.0])
    assert validated.loss == pytest.approx(losses.mean())
    assert validated.weighted_loss == pytest.approx((losses * [3, 1, 1, 1]).sum() / 6)
    assert validated.accuracy == 0.75
    assert validated.macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 2)
