import numpy as np
import pytest

from tests.metrics.data import draw_predictions
from tlray.metrics.intervals import wilson
from tlray.metrics.thresholds import MIN_IMAGES, Threshold, Thresholds, choose_thresholds, resolve_thresholds


def make_threshold(probability):
    return Threshold(probability, precision=0.95, low=0.9, high=0.98, kept=0.5, images=50)


def test_a_threshold_reaches_its_precision_and_keeps_as_much_as_possible():
    probabilities, labels = draw_predictions(1.0)
    overall = choose_thresholds(probabilities, labels, "abcd", 0.9).overall
    above = probabilities.max(axis=1) >= overall.probability
    right = probabilities.argmax(axis=1) == labels
    assert right[above].mean() >= 0.9
    assert overall.precision == pytest.approx(right[above].mean())
    assert (overall.kept, overall.images) == pytest.approx((above.mean(), above.sum()))
    assert (overall.low, overall.high) == wilson(right[above].sum(), above.sum())
    assert overall.low < overall.precision < overall.high
    lower = probabilities.max(axis=1) >= overall.probability - 0.05
    assert right[lower].mean() < 0.9


def test_each_class_has_a_threshold_over_the_images_predicted_as_it():
    probabilities, labels = draw_predictions(1.0)
    thresholds = choose_thresholds(probabilities, labels, "abcd", 0.9)
    own = probabilities.argmax(axis=1) == 2
    threshold = thresholds.by_class["c"]
    above = probabilities[own].max(axis=1) >= threshold.probability
    assert (threshold.kept, threshold.images) == pytest.approx((above.mean(), above.sum()))
    assert thresholds.target_precision == 0.9
    assert thresholds.few == []


def test_a_class_without_its_own_threshold_takes_the_overall_one():
    thresholds = Thresholds(0.95, make_threshold(0.7), {"a": make_threshold(0.9), "b": None}, few=["b"])
    np.testing.assert_allclose(resolve_thresholds(thresholds, ["a", "b"]), [0.9, 0.7])
    np.testing.assert_allclose(resolve_thresholds(thresholds, ["b", "a"]), [0.7, 0.9])
    nothing = Thresholds(0.95, None, {"a": None}, few=["a"])
    assert resolve_thresholds(nothing, ["a"])[0] > 1


def test_a_class_that_is_known_to_be_bad_always_needs_a_review():
    probabilities = np.repeat([[0.99, 0.01], [0.01, 0.99]], [400, 60], axis=0)
    labels = np.repeat([0, 1], [400, 60])
    labels[400:424] = 0  # 60% of the second class's labels are right
    thresholds = choose_thresholds(probabilities, labels, "ab", 0.9)
    assert thresholds.by_class["b"] is None
    least = resolve_thresholds(thresholds, "ab")
    assert least[0] < 0.99 < 1 < least[1]


@pytest.mark.parametrize(("images", "reached"), [(MIN_IMAGES - 1, False), (MIN_IMAGES, True)])
def test_a_threshold_needs_ten_images(images, reached):
    probabilities = np.tile([0.9, 0.1], (images, 1))
    thresholds = choose_thresholds(probabilities, np.zeros(images, int), "ab", 0.9)
    assert (thresholds.overall is not None) == reached
    assert (thresholds.by_class["a"] is not None) == reached
    assert thresholds.few == (["b"] if reached else ["a", "b"])


def test_too_few_images_give_no_threshold():
    assert choose_thresholds(np.eye(9), np.arange(9), "abcdefghi", 0.9).overall is None


def test_images_of_one_probability_are_kept_or_dropped_together():
    # 100 of 100 are right above 0.8; of 100 at exactly 0.6, the first 50 are right
    confidence = np.repeat([0.8, 0.6], 100)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.repeat([0, 1], [150, 50])
    overall = choose_thresholds(probabilities, labels, "ab", 0.9).overall
    assert (overall.images, overall.precision, overall.kept) == (100, 1.0, 0.5)


def test_a_threshold_stays_below_its_image_in_float32():
    probabilities = np.tile([0.7, 0.3], (50, 1))  # as float32, 0.7 is less than 0.7
    overall = choose_thresholds(probabilities, np.zeros(50, int), "ab", 0.9).overall
    assert np.float32(overall.probability) < np.float32(0.7)
    assert overall.probability == pytest.approx(0.7)
