import numpy as np
import pytest

from tlray.audit import sampling
from tlray.audit.sampling import MIN_ROWS, UNIFORM, PrioritySample, Sizes, Totals


def draw(wanted, seed, sizes, part=100):
    """A sample of rows in parts."""
    sample = PrioritySample(wanted, seed)
    for first in range(0, len(sizes), part):
        own = sizes[first : first + part]
        sample.add(np.arange(first, first + len(own)), np.ones(len(own), bool), own)
    return sample.take()


def test_totals_are_sums_by_class():
    totals = Totals(3)
    totals.add(np.array([0, 2, 2]), np.array([0.5, 0.8, 1.0]))
    totals.add(np.array([], np.int64), np.array([]))
    assert totals.counts.tolist() == [1, 0, 2]
    assert totals.confidence.tolist() == [0.5, 0, 1.8]
    assert totals.doubt.tolist() == pytest.approx([0.5, 0, 0.4])


def test_doubtful_rows_and_small_classes_are_larger():
    totals = Totals(2)
    labels = np.array([0] * 990 + [1] * 10)
    probabilities = np.where(np.arange(1000) % 2, 0.99, 0.5)
    totals.add(labels, probabilities)
    sizes = Sizes(totals, 100).measure(labels, probabilities)
    doubt = np.sqrt(probabilities * (1 - probabilities))
    usual = UNIFORM + (1 - UNIFORM) * doubt / doubt.mean()
    assert sizes[:990] == pytest.approx(usual[:990])
    assert sizes[990:].sum() / 1000 * 100 == pytest.approx(MIN_ROWS)
    assert Sizes(totals, 4).measure(labels, probabilities)[990:].sum() / 1000 * 4 == pytest.approx(1)  # half of 4 rows


def test_labels_that_are_all_sure_are_drawn_alike():
    totals = Totals(1)
    totals.add(np.zeros(50, np.int64), np.ones(50))
    assert len(set(Sizes(totals, 10).measure(np.zeros(50, np.int64), np.ones(50)).tolist())) == 1


def test_sums_over_samples_are_right_on_average():
    rng = np.random.default_rng(0)
    sizes, values = rng.exponential(size=400) + 0.05, rng.random(400)
    estimates, seen = [], np.zeros(400)
    for seed in range(3000):
        drawn = draw(40, seed, sizes)
        assert len(set(drawn.row_ids.tolist())) == 40
        estimates.append((values[drawn.row_ids] / drawn.inclusion).sum())
        seen[drawn.row_ids] += 1
    error = np.std(estimates) / len(estimates) ** 0.5
    assert abs(np.mean(estimates) - values.sum()) < 4 * error
    small, large = sizes < np.quantile(sizes, 0.2), sizes > np.quantile(sizes, 0.8)
    assert seen[large].mean() / seen[small].mean() == pytest.approx(sizes[large].mean() / sizes[small].mean(), rel=0.15)


def test_a_larger_sample_begins_with_the_smaller_one():
    sizes = np.random.default_rng(0).exponential(size=1000) + 0.01
    small, large = draw(30, 5, sizes), draw(200, 5, sizes)
    assert large.row_ids[:30].tolist() == small.row_ids.tolist()
    assert (large.inclusion[:30] >= small.inclusion).all()
    assert draw(30, 6, sizes).row_ids.tolist() != small.row_ids.tolist()


def test_of_few_rows_all_are_drawn_for_sure():
    drawn = draw(50, 0, np.ones(50))
    assert sorted(drawn.row_ids.tolist()) == list(range(50))
    assert set(drawn.inclusion.tolist()) == {1.0}
    assert draw(49, 0, np.ones(50)).inclusion.max() < 1


def test_rows_without_a_label_are_never_drawn():
    sample = PrioritySample(10, 0)
    labelled = np.arange(100) % 2 == 0
    sample.add(np.arange(100), labelled, np.ones(50))
    sample.add(np.arange(100, 200), np.zeros(100, bool), np.ones(0))
    assert (sample.take().row_ids % 2 == 0).all()


def test_the_same_rows_are_kept_however_often_others_are_dropped(monkeypatch):
    sizes = np.random.default_rng(0).exponential(size=20_000) + 0.01
    before = draw(66, 7, sizes, part=500)
    monkeypatch.setattr(sampling, "_SHRINK_ROWS", 10)
    after = draw(66, 7, sizes, part=500)
    assert after.row_ids.tolist() == before.row_ids.tolist()
    assert after.inclusion.tolist() == before.inclusion.tolist()
