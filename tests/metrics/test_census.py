import numpy as np
import pytest

from tlray.metrics.census import NO_CLASS, Reviewed, take_census


def review(predicted, probabilities, true, inclusion):
    size = len(predicted)
    return Reviewed(
        np.array(predicted, np.int64),
        np.broadcast_to(np.array(probabilities, float), size).copy(),
        np.array(true, np.int64),
        np.broadcast_to(np.array(inclusion, float), size).copy(),
    )


def test_a_simple_random_sample_gives_the_estimate_of_prediction_powered_inference():
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(0.5, 1, 5000)
    right = rng.random(5000) < probabilities
    rows = rng.choice(5000, 400, replace=False)
    reviewed = review([0] * 400, probabilities[rows], np.where(right[rows], 0, 1), 400 / 5000)
    census = take_census(np.array([5000, 0]), np.array([probabilities.sum(), 0.0]), reviewed)
    # Angelopoulos, Duchi and Zrnic 2023: lambda x the mean probability + the mean of what it misses
    expected = census.trust * probabilities.mean() + (right[rows] - census.trust * probabilities[rows]).mean()
    assert census.accuracy.value == pytest.approx(expected)
    assert census.classes[0].share.value == pytest.approx(expected)
    assert census.classes[0].precision.value == pytest.approx(expected)
    assert census.classes[1].share.value == pytest.approx(1 - expected)
    error = np.std(right[rows] - census.trust * probabilities[rows]) / 20 * (1 - 400 / 5000) ** 0.5
    assert census.accuracy.width == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert census.classes[0].share.width == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_probabilities_that_say_nothing_are_not_trusted():
    rng = np.random.default_rng(0)
    probabilities, right = rng.uniform(0.5, 1, 600), rng.random(600) < 0.7
    reviewed = review([0] * 600, probabilities, np.where(right, 0, 1), 0.01)
    census = take_census(np.array([60_000, 0]), np.array([45_000.0, 0.0]), reviewed)
    assert census.trust < 0.2
    assert census.accuracy.value == pytest.approx(right.mean(), abs=0.02)


def test_rows_count_by_the_inverse_of_their_chance_within_each_predicted_class():
    # class 0 has 100 rows, of which 4 were drawn: two for sure to represent 10 rows, two to represent 90
    predicted, true = [0, 0, 0, 0, 1, 1], [1, 1, 0, 0, 1, 0]
    reviewed = review(predicted, 0.5, true, [0.2, 0.2, 1 / 45, 1 / 45, 0.1, 0.1])
    census = take_census(np.array([100, 20]), np.array([50.0, 10.0]), reviewed)
    assert census.classes[0].precision.value == pytest.approx(0.9)
    assert census.classes[1].precision.value == pytest.approx(0.5)
    assert census.classes[0].share.value == pytest.approx((90 + 10) / 120)
    assert census.classes[0].recall.value == pytest.approx(90 / 100)
    assert census.classes[1].recall.value == pytest.approx(10 / 20)
    assert census.accuracy.value == pytest.approx(100 / 120)


def test_shares_and_what_belongs_to_no_class_are_the_whole():
    rng = np.random.default_rng(0)
    predicted = rng.integers(0, 3, 200)
    true = np.where(rng.random(200) < 0.8, predicted, rng.integers(-1, 3, 200))
    reviewed = review(predicted, rng.uniform(0.4, 1, 200), true, rng.uniform(0.01, 0.2, 200))
    census = take_census(np.array([3000, 2000, 1000]), np.array([2100.0, 1500.0, 650.0]), reviewed)
    assert (true == NO_CLASS).any()
    total = sum(one.share.value for one in census.classes) + census.no_class.value
    assert total == pytest.approx(1)
    for one in census.classes:
        for estimate in (one.share, one.precision, one.recall):
            assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
            assert isinstance(estimate.low, float)
    assert census.no_class.low < census.no_class.value < census.no_class.high


def test_a_predicted_class_without_a_reviewed_row_is_left_out():
    census = take_census(np.array([100, 50]), np.array([90.0, 40.0]), review([0] * 20, 0.9, [0] * 20, 0.2))
    assert census.rows == 100
    assert census.classes[1].precision is None
    assert census.classes[1].share.high > 0


def test_no_reviewed_row_of_a_class_does_not_promise_that_there_is_none():
    reviewed = review([0] * 100, 1.0, [0] * 100, 0.001)
    census = take_census(np.array([100_000, 0]), np.array([100_000.0, 0.0]), reviewed)
    assert census.no_class.value == 0
    assert 0.02 < census.no_class.high < 0.05  # 3 / 100, the rule of three
    assert census.classes[0].share.low < 1
    assert census.classes[1].share.high > 0


def test_one_row_is_an_estimate_with_wide_intervals():
    census = take_census(np.array([10, 10]), np.array([9.0, 8.0]), review([0], 0.9, [1], 0.05))
    assert census.classes[0].precision.high > 0.5
    assert census.accuracy.low < 0.2
