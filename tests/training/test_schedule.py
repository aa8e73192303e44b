import hashlib

import numpy as np
import pytest

from tests.factories import make_epoch
from tlray.training.dataset import choose_validation
from tlray.training.schedule import (
    cut_steps,
    draw_dropout,
    draw_mixing,
    draw_rows,
    is_exhausted,
    make_rates,
    pair_neighbours,
    permute,
    score_epoch,
    weigh_classes,
)


@pytest.mark.parametrize(
    ("rows", "workers", "batch"), [(33, 2, 8), (32, 2, 8), (3, 4, 2), (1, 1, 1), (7, 3, 5), (0, 2, 4)]
)
def test_every_row_counts_once_and_all_workers_take_the_same_steps(rows, workers, batch):
    order = permute(np.arange(rows), seed=1, epoch=0)
    shares = [cut_steps(order, rank, workers, batch) for rank in range(workers)]
    assert len({len(share.rows) for share in shares}) == 1
    counted = np.concatenate([share.rows[share.weights > 0] for share in shares])
    assert sorted(counted) == list(range(rows))
    np.testing.assert_array_equal(shares[0].totals, sum(share.weights.sum(axis=1) for share in shares))


def test_a_step_holds_the_same_rows_for_any_number_of_workers():
    order = permute(np.arange(100), seed=1, epoch=3)
    one = cut_steps(order, 0, 1, 16)
    shares = [cut_steps(order, rank, 4, 4) for rank in range(4)]
    for step in range(len(one.rows)):
        together = np.concatenate([share.rows[step] for share in shares])
        np.testing.assert_array_equal(together, one.rows[step])


def test_the_order_depends_on_seed_and_epoch_alone():
    rows = np.arange(50)
    np.testing.assert_array_equal(permute(rows, 1, 2), permute(rows, 1, 2))
    assert (permute(rows, 1, 2) != permute(rows, 1, 3)).any()
    assert (permute(rows, 1, 2) != permute(rows, 2, 2)).any()


def test_an_image_keeps_at_least_half_of_its_mixture():
    shares = draw_mixing(3, 1, 4, 1000, 0.2)
    assert (shares.dtype, shares.shape) == (np.float32, (1000,))
    assert shares.min() >= 0.5
    assert shares.max() <= 1
    assert (shares > 0.99).mean() > 0.4  # with this parameter most images are nearly whole
    assert 0.8 < shares.mean() < 0.95
    np.testing.assert_array_equal(shares, draw_mixing(3, 1, 4, 1000, 0.2))
    assert (shares != draw_mixing(3, 1, 5, 1000, 0.2)).any()


def test_neighbours_are_mixed_with_each_other_within_a_worker():
    assert pair_neighbours(6).tolist() == [1, 0, 3, 2, 5, 4]
    assert pair_neighbours(5).tolist() == [1, 0, 3, 2, 4]
    np.testing.assert_array_equal(pair_neighbours(8)[4:] - 4, pair_neighbours(4))


def make_digests(count):
    return [hashlib.sha256(str(index).encode()).hexdigest() for index in range(count)]


def test_the_split_takes_about_its_share_and_stays_when_images_are_added():
    digests = make_digests(2000)
    labels = np.zeros(2000, np.int32)
    chosen = choose_validation(digests, labels, 0.15)
    assert 0.12 < chosen.mean() < 0.18
    np.testing.assert_array_equal(choose_validation(digests[:500], labels[:500], 0.15), chosen[:500])
    assert not choose_validation(digests, labels, 0.0).any()


def test_equal_images_share_their_side():
    chosen = choose_validation(make_digests(50) * 2, np.repeat([0, 1], 50).astype(np.int32), 0.3)
    np.testing.assert_array_equal(chosen[:50], chosen[50:])


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.9])
def test_each_class_has_an_image_on_either_side(fraction):
    labels = np.arange(200, dtype=np.int32) // 2
    chosen = choose_validation(make_digests(200), labels, fraction)
    for label in range(100):
        assert chosen[labels == label].tolist() in ([True, False], [False, True])


def test_a_class_of_one_image_or_group_is_trained():
    keys = [*make_digests(3), "ab" * 32, "ab" * 32]
    chosen = choose_validation(keys, np.array([0, 0, 1, 2, 2], np.int32), 0.9)
    assert chosen.tolist()[2:] == [False, False, False]


@pytest.mark.parametrize(
    ("num_groups", "num_classes", "classes_each"), [(60, 5, 5), (100, 1000, 20), (1000, 1000, 5), (100, 50, 2)]
)
def test_groups_of_several_classes_stay_together_and_leave_each_class_in_training(
    num_groups, num_classes, classes_each
):
    """As patients with several findings: whatever their classes have in common, the share is no more than twice."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(num_groups), 3 * classes_each)
    own = np.stack([random.choice(num_classes, classes_each, replace=False) for _ in range(num_groups)])
    labels = np.repeat(own, 3, axis=1).ravel().astype(np.int32)
    digests = make_digests(num_groups)
    chosen = choose_validation([digests[group] for group in groups], labels, 0.15)
    assert 0.02 < chosen.mean() <= 0.31
    assert len(np.unique(np.stack([groups, chosen], axis=1), axis=0)) == num_groups
    assert set(labels[~chosen]) == set(labels)


def test_rates_rise_then_stay_or_fall():
    rates = make_rates(0.1, 10, "constant", 4)
    np.testing.assert_allclose(rates, [0.025, 0.05, 0.075, *[0.1] * 7])
    rates = make_rates(0.1, 10, "cosine", 2)
    assert rates[1] == rates[2] == np.float32(0.1)
    np.testing.assert_allclose(rates[6], 0.05)
    assert (np.diff(rates[2:]) < 0).all()
    assert 0 < rates[-1] < 0.005


def test_dropout_is_drawn_for_the_whole_step():
    masks = draw_dropout(1, 2, 3, 64, (100, 50), 0.25)
    assert masks.shape == (64, 150)
    assert set(np.unique(masks)) == {np.float32(0), np.float32(1 / 0.75)}
    assert 0.7 < (masks > 0).mean() < 0.8
    np.testing.assert_array_equal(masks, draw_dropout(1, 2, 3, 64, (100, 50), 0.25))
    assert (masks != draw_dropout(1, 2, 4, 64, (100, 50), 0.25)).any()


def test_balanced_weights_give_every_class_the_same_sum():
    labels = np.array([0] * 6 + [1] * 3 + [2], np.int32)
    weights = weigh_classes(labels, 3)
    sums = [weights[label] * (labels == label).sum() for label in range(3)]
    np.testing.assert_allclose(sums, 10 / 3, rtol=1e-6)


def make_records(accuracies):
    return [
        make_epoch(index + 1, val_accuracy=accuracy, val_weighted_loss=None if accuracy is None else 1.0)
        for index, accuracy in enumerate(accuracies)
    ]


def test_a_phase_ends_when_validation_has_not_found_it_better_for_long():
    assert not is_exhausted(make_records([0.5, 0.6, 0.6]), 2, "accuracy")
    assert is_exhausted(make_records([0.5, 0.6, 0.6, 0.4]), 2, "accuracy")
    assert not is_exhausted(make_records([0.5, 0.4, 0.3]), None, "accuracy")
    assert not is_exhausted(make_records([None, None, None]), 1, "accuracy")
    assert not is_exhausted([], 1, "accuracy")


def test_without_validation_the_later_epoch_scores_higher():
    first, second = make_records([None, None])
    assert score_epoch(second, "loss") > score_epoch(first, "loss")


@pytest.mark.parametrize(("select", "best"), [("loss", "certain"), ("accuracy", "accurate"), ("macro_f1", "balanced")])
def test_the_figure_that_is_asked_for_decides_then_the_loss(select, best):
    figures = {
        "certain": {"val_weighted_loss": 0.1, "val_accuracy": 0.5, "val_macro_f1": 0.5},
        "accurate": {"val_weighted_loss": 0.3, "val_accuracy": 0.7, "val_macro_f1": 0.5},
        "balanced": {"val_weighted_loss": 0.3, "val_accuracy": 0.5, "val_macro_f1": 0.7},
    }
    records = {name: make_epoch(1, val_loss=0.2, **values) for name, values in figures.items()}
    assert max(records, key=lambda name: score_epoch(records[name], select)) == best
    less_certain = make_epoch(2, **(figures[best] | {"val_weighted_loss": 0.9}))
    assert score_epoch(less_certain, select) < score_epoch(records[best], select)


def test_a_sample_of_rows_is_sorted_and_seeded():
    rows = np.arange(100, 200)
    sample = draw_rows(rows, 10, 1)
    assert len(set(sample.tolist())) == 10
    assert set(sample.tolist()) <= set(rows.tolist())
    assert (np.diff(sample) > 0).all()
    assert draw_rows(rows, 10, 1).tolist() == sample.tolist() != draw_rows(rows, 10, 2).tolist()
    assert draw_rows(rows, 1000, 1).tolist() == rows.tolist()
