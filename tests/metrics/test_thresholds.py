import math

import numpy as np
import pytest

from tests.metrics.data import draw_predictions
from tlray.metrics.intervals import wilson
from tlray.metrics.thresholds import (
    Needed,
    Threshold,
    Thresholds,
    choose_thresholds,
    compute_chance,
    count_least,
    count_needed,
    describe_thresholds,
    explain_needed,
    resolve_thresholds,
)

LEVEL = 0.1 * 0.75
"""Allowed error of the shared threshold at a confidence of 0.9."""


def make_threshold(probability):
    return Threshold(probability, precision=0.95, low=0.9, high=0.98, kept=0.5, images=50)


def keep(chosen, probabilities):
    """Which labels reach their threshold."""
    thresholds = [chosen.overall if value is None else value for value in chosen.by_class]
    least = np.array([2.0 if value is None else value for value in thresholds])
    return probabilities.max(axis=1) >= least[probabilities.argmax(axis=1)]


def simulate(num_classes, num_images, spread, prior, resamples, target=0.95):
    """Realised precision of each resample, judged by the true probabilities, and shares that are kept and could be."""
    precisions, kept, possible = [], [], []
    for seed in range(resamples):
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(2 * num_images, num_classes)) * spread + np.log(prior)
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        labels = (probabilities.cumsum(axis=1) > rng.random((len(probabilities), 1))).argmax(axis=1)
        chosen = choose_thresholds(probabilities[:num_images], labels[:num_images], target, 0.9)
        new = probabilities[num_images:]
        above = keep(chosen, new)
        precisions.append(new.max(axis=1)[above].mean() if above.any() else 1.0)
        kept.append(above.mean())
        surest = np.sort(new.max(axis=1))[::-1]
        possible.append((surest.cumsum() / np.arange(1, num_images + 1) >= target).mean())
    return np.array(precisions), np.mean(kept), np.mean(possible)


def check_promise(precisions):
    """0.95 is reached in 0.9 of the draws, less two standard errors."""
    assert (precisions >= 0.95).mean() >= 0.9 - 2 * math.sqrt(0.9 * 0.1 / len(precisions))


def make_predictions(top, right, predicted, num_classes):
    """Probabilities and labels from top probabilities, by predicted class."""
    probabilities = np.repeat(((1 - top) / (num_classes - 1))[:, None], num_classes, axis=1)
    probabilities[np.arange(len(top)), predicted] = top
    return probabilities, np.where(right, predicted, (predicted + 1) % num_classes)


@pytest.mark.parametrize(("num_sure", "precision"), [(60, 0.93), (100, 0.94), (300, 0.93)])
def test_many_classes_that_may_be_lucky_do_not_break_the_promise_over_all(num_sure, precision):
    """One class is always right; 150 others, predicted for 100 images each, are below the target at any probability."""
    predicted = np.concatenate([np.zeros(num_sure, int), np.repeat(np.arange(1, 151), 100)])
    precisions = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        top = np.concatenate([np.full(num_sure, 0.999), rng.uniform(0.6, 0.98, 15_000)])
        true = np.where(predicted == 0, 1.0, precision)
        probabilities, labels = make_predictions(top, rng.random(len(top)) < true, predicted, 151)
        above = keep(choose_thresholds(probabilities, labels, 0.95, 0.9), probabilities)
        precisions.append(true[above].mean() if above.any() else 1.0)
    check_promise(np.array(precisions))


def test_a_good_class_is_kept_beside_a_surer_bad_one():
    rng = np.random.default_rng(0)
    top, predicted = np.repeat([0.90, 0.99], 4000), np.repeat([0, 1], 4000)
    right = np.concatenate([np.ones(4000, bool), rng.random(4000) < 0.7])
    thresholds = describe_thresholds(*make_predictions(top, right, predicted, 2), "ab", 0.95, 0.9)
    assert thresholds.by_class["a"].images == 4000
    assert (thresholds.by_class["b"], thresholds.overall, thresholds.needed) == (None, None, None)
    assert thresholds.kept == 0.5


def test_probabilities_that_float32_cannot_tell_apart_are_tested_together():
    rng = np.random.default_rng(0)
    top = np.sort(1 - rng.random(20_000) * 5e-8)[::-1]
    right = np.concatenate([np.ones(2000, bool), rng.random(18_000) < 0.5])
    chosen = choose_thresholds(*make_predictions(top, right, np.zeros(20_000, int), 2), 0.95, 0.9)
    assert (chosen.overall, chosen.by_class) == (None, (None, None))


def test_a_threshold_keeps_its_promise_and_much_of_what_is_possible():
    precisions, kept, possible = simulate(6, 3600, 5.0, np.full(6, 1 / 6), 40)
    assert (precisions >= 0.95).mean() >= 0.875
    assert kept >= 0.7 * possible


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("num_classes", "num_images"), [(2, 200), (2, 2000), (6, 90), (6, 600), (6, 3600), (100, 10_000), (1000, 15_000)]
)
@pytest.mark.parametrize("tailed", [False, True])
@pytest.mark.parametrize("spread", [2.5, 5.0])
def test_promises_hold_in_500_resamples(num_classes, num_images, tailed, spread):
    prior = 1 / np.arange(1, num_classes + 1) if tailed else np.ones(num_classes)
    resamples = 500 if num_images * num_classes <= 100_000 else 40
    precisions, _, _ = simulate(num_classes, num_images, spread, prior / prior.sum(), resamples)
    check_promise(precisions)


def test_the_record_measures_what_the_thresholds_keep():
    probabilities, labels = draw_predictions(1.0, spread=5.0)
    thresholds = describe_thresholds(probabilities, labels, "abcd", 0.95, 0.9)
    chosen = choose_thresholds(probabilities, labels, 0.95, 0.9)
    own = probabilities.argmax(axis=1) == 2
    threshold = thresholds.by_class["c"]
    assert threshold.probability == chosen.by_class[2]
    above = own & (probabilities.max(axis=1) >= threshold.probability)
    right = probabilities.argmax(axis=1) == labels
    assert (threshold.kept, threshold.images) == pytest.approx((above.sum() / own.sum(), above.sum()))
    assert threshold.precision == pytest.approx(right[above].mean())
    assert (threshold.low, threshold.high) == wilson(right[above].sum(), above.sum())
    assert thresholds.kept == pytest.approx(keep(chosen, probabilities).mean())
    assert (thresholds.target_precision, thresholds.confidence) == (0.95, 0.9)
    assert thresholds.needed is None
    assert thresholds.needed_by_class["c"] is None


def test_a_class_without_its_own_threshold_takes_the_overall_one():
    thresholds = Thresholds(0.95, 0.9, make_threshold(0.7), 0.8, None, {"a": make_threshold(0.9), "b": None}, ["b"])
    np.testing.assert_allclose(resolve_thresholds(thresholds, ["a", "b"]), [0.9, 0.7])
    np.testing.assert_allclose(resolve_thresholds(thresholds, ["b", "a"]), [0.7, 0.9])
    nothing = Thresholds(0.95, 0.9, None, 0.0, Needed(40, 87), {"a": None}, ["a"])
    assert resolve_thresholds(nothing, ["a"])[0] > 1


@pytest.mark.parametrize("num_others", [1, 20])
def test_a_class_that_is_known_to_be_bad_always_needs_a_review(num_others):
    """40 of its 60 labels are wrong; the other classes, of 60 images each, are right."""
    count = 4000 if num_others == 1 else 60
    predicted = np.concatenate([np.repeat(np.arange(num_others), count), np.full(60, num_others)])
    top, right = np.where(predicted == num_others, 0.99, 0.9), np.ones(len(predicted), bool)
    right[-40:] = False
    names = [str(index) for index in range(num_others + 1)]
    thresholds = describe_thresholds(*make_predictions(top, right, predicted, len(names)), names, 0.95, 0.9)
    *others, bad = resolve_thresholds(thresholds, names)
    assert max(others) < 0.9 + 1e-6
    assert bad > 1
    assert thresholds.by_class[names[-1]] is None
    assert (names[-1] in thresholds.pooled) == (thresholds.overall is None)


def test_a_class_that_is_bad_above_the_final_threshold_is_marked_too():
    # one class has wrong labels that are surest, so that no threshold holds for all labels together
    groups = [(100, 0.999, 0, 100), (4000, 0.5, 0, 0)]  # images, probability, class, wrong
    groups += [(60, 0.9, index, 0) for index in range(1, 21)] + [(30, 0.91, 21, 12), (5000, 0.52, 22, 4000)]
    top, predicted = (np.concatenate([np.full(group[0], group[at]) for group in groups]) for at in (1, 2))
    right = np.concatenate([np.arange(group[0]) >= group[3] for group in groups])
    chosen = choose_thresholds(*make_predictions(top, right, predicted, 23), 0.95, 0.9)
    assert chosen.overall == pytest.approx(0.9)
    assert chosen.by_class[0] == 0.5
    assert chosen.by_class[21] == math.inf
    assert chosen.by_class[1] is None


def test_few_images_of_a_class_share_the_overall_threshold():
    probabilities = np.repeat([[0.9, 0.1], [0.1, 0.9]], [300, 20], axis=0)
    labels = np.repeat([0, 1], [300, 20])
    thresholds = describe_thresholds(probabilities, labels, "ab", 0.95, 0.9)
    assert thresholds.by_class["a"].images == 300
    assert thresholds.pooled == ["b"]
    assert thresholds.overall is None  # nothing is promised for 20 images
    least = count_least(0.95, LEVEL / 4, 1)
    assert thresholds.needed == Needed(least - 20, least)
    assert thresholds.needed_by_class["b"].images > thresholds.needed.images
    assert thresholds.kept == 300 / 320


def test_many_images_of_a_class_have_a_threshold_of_their_own_even_where_it_keeps_less():
    # the second class is right in 99% of cases at 0.95, and in 80% at 0.7
    rng = np.random.default_rng(0)
    confidence = np.concatenate([np.full(20_000, 0.99), np.full(1000, 0.95), np.full(700, 0.7)])
    right = np.concatenate([np.ones(20_000, bool), rng.random(1000) < 0.99, rng.random(700) < 0.8])
    predicted = np.repeat([0, 1], [20_000, 1700])
    probabilities = np.stack([1 - confidence, confidence], axis=1)
    probabilities[:20_000] = probabilities[:20_000, ::-1]
    labels = np.where(right, predicted, 1 - predicted)
    own = choose_thresholds(probabilities, labels, 0.95, 0.9).by_class[1]
    assert own == pytest.approx(0.95, abs=1e-6)


def test_least_numbers_of_images():
    assert [count_least(0.95, 0.1, wrong) for wrong in (0, 1)] == [45, 77]
    assert 0.95**45 <= 0.1 < 0.95**44
    assert count_least(0.5, 0.3) == 2
    assert compute_chance(1, 77, 0.95) == pytest.approx(0.95**77 + 77 * 0.05 * 0.95**76)


@pytest.mark.parametrize("images", [63, 64, 65])
def test_a_threshold_needs_images(images):
    probabilities = np.tile([0.9, 0.1], (images, 1))
    chosen = choose_thresholds(probabilities, np.zeros(images, int), 0.95, 0.9)
    assert (chosen.overall is not None) == (images >= count_least(0.95, LEVEL / 2))


def test_one_wrong_label_at_any_place_is_allowed_where_enough_images_are():
    least = count_least(0.95, LEVEL / 4, num_wrong=1)
    top = np.linspace(0.99, 0.9, least)
    for place in (0, least // 3, least - 1):
        right = np.arange(least) != place
        chosen = choose_thresholds(*make_predictions(top, right, np.zeros(least, int), 2), 0.95, 0.9)
        assert chosen.overall is not None or chosen.by_class[0] is not None


def test_what_is_needed_follows_from_what_is_there():
    least = count_least(0.95, LEVEL / 4, 1)
    assert count_needed(np.empty(0), np.empty(0, bool), 0.95, LEVEL) == Needed(least, least)
    sure = np.linspace(0.99, 0.9, 400)
    assert count_needed(sure, np.tile([True, False], 200), 0.95, LEVEL) is None
    assert count_needed(sure[:60], np.zeros(60, bool), 0.95, LEVEL) is None
    often_wrong = np.arange(400) % 25 == 12  # 4 in 100: too often for these images, not for more
    needed = count_needed(sure, ~often_wrong, 0.95, LEVEL)
    assert 400 < needed.images < 8000
    assert 20 < needed.one_in <= 25
    assert count_needed(sure, np.ones(400, bool), 0.95, LEVEL) is None  # they are enough


def test_as_many_images_as_needed_do_mostly():
    done, factors = [], []
    for seed in range(60):
        probabilities, labels = draw_predictions(1.0, count=20_000, seed=seed, spread=4.0)
        thresholds = describe_thresholds(probabilities[:120], labels[:120], "abcd", 0.95, 0.9)
        if thresholds.needed is not None and thresholds.needed.images < 19_880:
            total = 120 + thresholds.needed.images
            factors.append(total / 120)
            done.append(choose_thresholds(probabilities[:total], labels[:total], 0.95, 0.9).overall is not None)
    assert len(done) >= 10
    assert np.mean(done) > 0.5
    assert np.median(factors) < 12


def test_what_is_needed_is_explained():
    assert explain_needed(Needed(1234, 87)) == "about 1,234 more images would do if at most one in 87 is wrong"
    assert explain_needed(Needed(1, 87)) == "about 1 more image would do if at most one in 87 is wrong"
    assert explain_needed(None) == "how many more images would do cannot be told from these"


def test_no_images_promise_nothing():
    thresholds = describe_thresholds(np.empty((0, 2)), np.empty(0, int), "ab", 0.95, 0.9)
    assert (thresholds.overall, thresholds.kept, thresholds.pooled) == (None, 0.0, ["a", "b"])
    assert thresholds.needed.images == count_least(0.95, LEVEL / 4, 1)


def test_images_of_one_probability_are_kept_or_dropped_together():
    # 100 of 100 are right above 0.8; of 100 at exactly 0.6, the first 50 are right
    confidence = np.repeat([0.8, 0.6], 100)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.repeat([0, 1], [150, 50])
    own = describe_thresholds(probabilities, labels, "ab", 0.9, 0.9).by_class["a"]
    assert (own.images, own.precision, own.kept) == (100, 1.0, 0.5)


def test_a_threshold_is_exact_in_float32_and_keeps_its_image():
    for probability in (0.7, 0.99):  # float32 is below the one and above the other
        probabilities = np.tile([probability, 1 - probability], (80, 1))
        own = choose_thresholds(probabilities, np.zeros(80, int), 0.9, 0.9).by_class[0]
        assert np.float32(own) == own <= probability
        assert own == pytest.approx(probability)
