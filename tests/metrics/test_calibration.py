import numpy as np
import pytest

from tests.metrics.data import draw_predictions
from tlray.metrics.calibration import (
    Bin,
    Calibration,
    CalibrationRecord,
    apply_temperature,
    bin_confidences,
    compute_ece,
    compute_log_loss,
    fit_temperature,
)
from tlray.metrics.ood import OodScore


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_the_temperature_is_found_again(temperature):
    probabilities, labels = draw_predictions(temperature)
    found = fit_temperature(probabilities, labels)
    assert found == pytest.approx(temperature, rel=0.06)
    calibrated = apply_temperature(probabilities, found)
    assert compute_log_loss(calibrated, labels) <= compute_log_loss(probabilities, labels)
    assert compute_ece(bin_confidences(calibrated, labels)) < 0.03
    np.testing.assert_array_equal(calibrated.argmax(axis=1), probabilities.argmax(axis=1))


def test_a_temperature_needs_twenty_images():
    probabilities, labels = draw_predictions(2.5, count=20)
    assert fit_temperature(probabilities[:19], labels[:19]) == 1.0
    assert fit_temperature(probabilities, labels) != 1.0


@pytest.mark.parametrize(("right", "bound"), [(0, 10.0), (100, 0.2)])
def test_a_temperature_stays_between_its_bounds(right, bound):
    probabilities = np.tile([0.9, 0.1], (100, 1))
    labels = (np.arange(100) >= right).astype(int)
    assert fit_temperature(probabilities, labels) == pytest.approx(bound, rel=1e-3)


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1.0, [0.8, 0.2]), (2.0, [2 / 3, 1 / 3]), (0.5, [16 / 17, 1 / 17])]
)
def test_a_temperature_divides_the_logits(temperature, expected):
    np.testing.assert_allclose(apply_temperature(np.array([[0.8, 0.2]]), temperature), [expected], rtol=1e-12)


def test_a_probability_of_zero_stays_finite():
    scaled = apply_temperature(np.array([[1.0, 0.0]], np.float32), 10.0)
    assert scaled.sum() == pytest.approx(1.0)
    assert 0 < scaled[0, 1] < 1e-3
    assert compute_log_loss(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(12 * np.log(10))


def test_the_log_loss_by_hand():
    probabilities = np.array([[0.5, 0.5], [0.25, 0.75]])
    assert compute_log_loss(probabilities, np.array([0, 0])) == pytest.approx(1.5 * np.log(2))
    assert compute_log_loss(np.empty((0, 2)), np.empty(0, int)) == 0.0


def test_bins_by_hand():
    top = np.array([0.5, 0.52, 0.6, 1.0])  # bins 7, 7, 9 and, for a probability of 1, the last
    bins = bin_confidences(np.stack([top, 1 - top], axis=1), np.array([0, 1, 1, 0]))
    assert [(entry.low, entry.high) for entry in bins] == [(7 / 15, 8 / 15), (9 / 15, 10 / 15), (14 / 15, 1.0)]
    assert [entry.images for entry in bins] == [2, 1, 1]
    assert [entry.accuracy for entry in bins] == [0.5, 0.0, 1.0]
    np.testing.assert_allclose([entry.confidence for entry in bins], [0.51, 0.6, 1.0])
    assert bin_confidences(np.empty((0, 2)), np.empty(0, int)) == []


def test_the_calibration_error_is_weighted_by_images():
    bins = [Bin(0.4, 0.6, 3, confidence=0.5, accuracy=0.8), Bin(0.8, 1.0, 1, confidence=0.9, accuracy=0.5)]
    assert compute_ece(bins) == pytest.approx((3 * 0.3 + 0.4) / 4)
    assert compute_ece([]) == 0.0


def test_a_record_holds_no_arrays():
    score = OodScore(np.ones((3, 1, 2), np.float32), np.ones(3, np.int64), np.ones(3, np.float32), {})
    assert Calibration(1.5, 40, score).describe() == CalibrationRecord(1.5, 40, score.describe())
    assert Calibration(1.0, 0, None).describe() == CalibrationRecord(1.0, 0, None)
