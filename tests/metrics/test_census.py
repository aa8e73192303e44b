import numpy as np
import pytest

from tlray.metrics.census import NO_CLASS, Reviewed, take_census


def review(predicted, probabilities, true, inclusion, drawn=None):
    """Reviewed rows; by default no others were drawn."""
    size = len(predicted)
    return Reviewed(
        np.array(predicted, np.int64),
        np.broadcast_to(np.array(probabilities, float), size).copy(),
        np.array(true, np.int64),
        np.broadcast_to(np.array(inclusion, float), size).copy(),
        np.bincount(predicted, minlength=3) if drawn is None else np.array(drawn, np.int64),
    )


def test_a_simple_random_sample_gives_the_estimate_of_prediction_powered_inference():
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(0.5, 1, 5000)
    right = rng.random(5000) < probabilities
    rows = rng.choice(5000, 400, replace=False)
    reviewed = review([0] * 400, probabilities[rows], np.where(right[rows], 0, 1), 400 / 5000)
    census = take_census(np.array([5000, 0, 0]), np.array([probabilities.sum(), 0.0, 0.0]), reviewed)
    # Angelopoulos, Duchi and Zrnic 2023: lambda x the mean probability + the mean of what it misses
    expected = census.trust * probabilities.mean() + (right[rows] - census.trust * probabilities[rows]).mean()
    assert census.accuracy.value == pytest.approx(expected)
    assert census.classes[0].share.value == pytest.approx(expected)
    assert census.classes[0].precision.value == pytest.approx(expected)
    assert census.classes[1].share.value + census.classes[2].share.value == pytest.approx(1 - expected)
    error = np.std(right[rows] - census.trust * probabilities[rows]) / 20 * (1 - 400 / 5000) ** 0.5
    assert census.accuracy.width == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert census.classes[0].share.width == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_probabilities_that_say_nothing_are_not_trusted():
    rng = np.random.default_rng(0)
    probabilities, right = rng.uniform(0.5, 1, 600), rng.random(600) < 0.7
    reviewed = review([0] * 600, probabilities, np.where(right, 0, 1), 0.01)
    census = take_census(np.array([60_000, 0, 0]), np.array([45_000.0, 0.0, 0.0]), reviewed)
    assert census.trust < 0.2
    assert census.accuracy.value == pytest.approx(right.mean(), abs=0.02)


def test_rows_count_by_the_inverse_of_their_chance_within_each_predicted_class():
    # class 0 has 100 rows, of which 8 were drawn: four for sure to represent 10 rows, four to represent 90
    predicted, true = [0] * 8 + [1] * 6, [1] * 4 + [0] * 4 + [1, 1, 1, 0, 0, 0]
    reviewed = review(predicted, 0.5, true, [0.4] * 4 + [4 / 90] * 4 + [0.1] * 6)
    census = take_census(np.array([100, 20, 0]), np.array([50.0, 10.0, 0.0]), reviewed)
    assert census.classes[0].precision.value == pytest.approx(0.9)
    assert census.classes[1].precision.value == pytest.approx(0.5)
    assert census.classes[0].share.value == pytest.approx((90 + 10) / 120)
    assert census.classes[0].recall.value == pytest.approx(90 / 100)
    assert census.classes[1].recall.value == pytest.approx(10 / 20)
    assert census.accuracy.value == pytest.approx(100 / 120)


def test_classes_with_few_reviewed_rows_represent_each_other():
    predicted, true = [0] * 10 + [1, 1, 2], [0] * 10 + [1, 0, 0]
    reviewed = review(predicted, 0.5, true, [0.1] * 10 + [0.2] * 3, drawn=[10, 2, 1])
    census = take_census(np.array([100, 10, 5]), np.array([50.0, 5.0, 2.5]), reviewed)
    assert census.rows == 115
    # two of the three rows for 15 are wrong
    assert census.accuracy.value == pytest.approx((100 + 5) / 115, abs=0.01)
    assert census.classes[1].precision.value == pytest.approx(0.5, abs=0.01)
    assert census.classes[2].precision.value == pytest.approx(0.0, abs=0.01)


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


def test_a_class_whose_drawn_rows_nobody_reviewed_is_unknown():
    reviewed = review([0] * 20, 0.9, [0] * 19 + [1], 0.2, drawn=[20, 9, 0])
    census = take_census(np.array([100, 50, 0]), np.array([90.0, 40.0, 0.0]), reviewed)
    assert census.rows == 100
    assert census.classes[1].share is None
    assert census.classes[1].precision is None
    assert [one.recall for one in census.classes] == [None, None, None]
    assert census.classes[2].share is not None  # nobody predicts it, and the reviewed rows tell
    assert census.classes[0].precision.value < 1


def test_no_reviewed_row_of_a_class_does_not_promise_that_there_is_none():
    reviewed = review([0] * 100, 1.0, [0] * 100, 0.001)
    census = take_census(np.array([100_000, 0, 0]), np.array([100_000.0, 0.0, 0.0]), reviewed)
    assert census.no_class.value == 0
    assert 0.02 < census.no_class.high < 0.05  # 3 / 100, the rule of three
    assert census.classes[0].share.low < 0.999
    assert census.classes[1].share.high > 0.001


def test_one_row_is_an_estimate_with_wide_intervals():
    census = take_census(np.array([10, 10, 0]), np.array([9.0, 8.0, 0.0]), review([0], 0.9, [1], 0.05))
    assert census.classes[0].precision.high > 0.4
    assert census.accuracy.low < 0.2


def test_ten_thousand_classes_fit_in_memory():
    rng = np.random.default_rng(0)
    rows = rng.integers(1, 2000, 10_000)
    predicted = rng.choice(10_000, 500, p=rows / rows.sum())
    drawn = np.bincount(predicted, minlength=10_000)
    reviewed = Reviewed(predicted, rng.uniform(0.5, 1, 500), predicted, np.full(500, 5e-5), drawn)
    census = take_census(rows, 0.75 * rows, reviewed)
    assert len(census.classes) == 10_000
    assert census.accuracy.value > 0.9
    assert sum(one.share.value for one in census.classes) == pytest.approx(1, abs=0.15)


def test_rows_without_an_answer_are_like_the_others_of_their_class():
    # 90 and 60 rows were drawn of which 4 each were reviewed: those of class 0 are right, the others wrong
    inclusion = [90 / 900_000] * 4 + [60 / 100_000] * 4
    reviewed = review([0] * 4 + [1] * 4, 0.9, [0] * 8, inclusion, drawn=[90, 60, 0])
    census = take_census(np.array([900_000, 100_000, 0]), np.array([810_000.0, 90_000.0, 0.0]), reviewed)
    assert census.accuracy.value == pytest.approx(0.9, abs=0.001)


def test_a_class_that_nobody_is_found_to_belong_to_has_no_recall():
    reviewed = review([0] * 6 + [1] * 6, 0.9, [0] * 12, 1.0)
    census = take_census(np.array([6, 6, 0]), np.array([5.4, 5.4, 0.0]), reviewed)
    assert census.classes[1].recall is None
    assert census.classes[2].recall is None
    assert census.classes[0].recall.value == pytest.approx(0.5)
