import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from tests.metrics.data import draw_predictions
from tlray.metrics import calibration
from tlray.metrics.calibration import (
    Bin,
    Calibration,
    CalibrationRecord,
    LossGain,
    TemperatureFit,
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
    found = fit_temperature(probabilities, labels).temperature
    assert found == pytest.approx(temperature, rel=0.06)
    calibrated = apply_temperature(probabilities, found)
    assert compute_log_loss(calibrated, labels) <= compute_log_loss(probabilities, labels)
    assert compute_ece(bin_confidences(calibrated, labels)) < 0.03
    np.testing.assert_array_equal(calibrated.argmax(axis=1), probabilities.argmax(axis=1))


def test_a_temperature_needs_twenty_images():
    probabilities, labels = draw_predictions(2.5, count=20)
    assert fit_temperature(probabilities[:19], labels[:19]) == TemperatureFit(1.0, None)
    assert fit_temperature(probabilities, labels).temperature != 1.0


def test_a_temperature_stays_within_its_bounds():
    probabilities = np.tile([0.99, 0.01], (2000, 1))
    assert fit_temperature(probabilities, np.ones(2000, int)).temperature == pytest.approx(10.0, rel=1e-3)


def test_images_that_are_all_right_leave_the_probabilities_as_they_are():
    """Hymenoptera's 41 validation images: the likelihood alone would make every probability extreme."""
    probabilities = np.random.default_rng(0).dirichlet([8, 1], 41)
    probabilities[:, 0] = np.maximum(probabilities[:, 0], 0.51)
    probabilities[:, 1] = 1 - probabilities[:, 0]
    assert fit_temperature(probabilities, np.zeros(41, int)) == TemperatureFit(1.0, LossGain(0.0, 0.0, 0.0))


def fit_likelihood(probabilities, labels):
    """The temperature of scikit-learn's `method="temperature"`: the likelihood alone decides."""
    found = minimize_scalar(
        lambda power: compute_log_loss(apply_temperature(probabilities, np.exp(power)), labels), bounds=(-3, 3)
    )
    return np.exp(found.x)


@pytest.mark.parametrize("spread", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5, 2.5])
def test_a_temperature_of_few_images_helps_or_does_little_harm(temperature, spread):
    """On 2,000 other images, over 50 draws of 41, beside scikit-learn's method, which takes the likelihood alone."""
    changes, theirs = [], []
    for seed in range(50):
        probabilities, labels = draw_predictions(temperature, 2041, seed=seed, spread=spread)
        few, others = slice(41), slice(41, None)
        before = compute_log_loss(probabilities[others], labels[others])
        known = probabilities[few], labels[few]
        fits = (fit_temperature(*known).temperature, fit_likelihood(*known))
        for fitted, kept in zip(fits, (changes, theirs), strict=True):
            scaled = apply_temperature(probabilities[others], fitted)
            kept.append(compute_log_loss(scaled, labels[others]) - before)
    print(f"{np.mean(changes):+.4f}, worst {max(changes):+.4f}; theirs {np.mean(theirs):+.4f}, {max(theirs):+.4f}")
    assert np.mean(changes) < 0.008
    assert max(changes) <= min(0.15, max(0.0, *theirs) + 0.001)


def test_of_many_images_a_sample_is_fitted_on_and_counted(monkeypatch):
    probabilities, labels = draw_predictions(2.5)
    assert fit_temperature(probabilities, labels).images == len(labels)
    monkeypatch.setattr(calibration, "_MAX_IMAGES", 300)
    fit = fit_temperature(probabilities, labels)
    assert fit.images == 300
    assert 1.5 < fit.temperature < 4


def test_the_gain_is_measured_on_images_that_the_temperature_was_not_fitted_on():
    probabilities, labels = draw_predictions(2.5)
    gain = fit_temperature(probabilities, labels).gain
    others, other_labels = draw_predictions(2.5, seed=1)
    scaled = apply_temperature(others, 2.5)
    saved = compute_log_loss(others, other_labels) - compute_log_loss(scaled, other_labels)
    assert gain.mean == pytest.approx(saved, abs=0.06)
    assert gain.low == pytest.approx(gain.mean - (gain.high - gain.mean))
    assert 0.03 < gain.high - gain.low < 0.1


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
