import numpy as np
import pytest

from tests.audit.archive import Archive
from tlray.metrics.label_shift import correct_shares

DOUBTFUL = ((8.0, 0.5), (3.0, 0.3), (1.5, 0.2))


def count(archive, rows):
    """Rows and sums of probabilities by predicted class and bin."""
    shape = (archive.num_classes, 20)
    places = archive.predicted[rows], np.clip((archive.probabilities[rows] * 20).astype(int), 0, 19)
    counts, sums = np.zeros(shape, np.int64), np.zeros(shape)
    np.add.at(counts, places, 1)
    np.add.at(sums, places, archive.probabilities[rows])
    return counts, sums


def list_pairs(archive, rows):
    pairs, counts = np.unique(np.stack([archive.true[rows], archive.predicted[rows]]), axis=1, return_counts=True)
    return [[int(true), int(predicted), int(count)] for (true, predicted), count in zip(pairs.T, counts, strict=True)]


def measure_distance(shares, true):
    return np.abs(shares - true).sum() / 2


@pytest.mark.parametrize("shares", [[0.6, 0.2, 0.1, 0.05, 0.03, 0.02], [0.02, 0.02, 0.02, 0.02, 0.02, 0.9]])
def test_shares_that_changed_are_found_where_counts_of_labels_are_not(shares):
    rng = np.random.default_rng(0)
    archive = Archive([1] * 6, DOUBTFUL)
    chances = np.array(shares)[archive.true] / archive.share[archive.true]
    rows = rng.choice(archive.num_rows, 20_000, p=chances / chances.sum())
    validation = rng.choice(archive.num_rows, 2000)
    corrected = correct_shares(
        *count(archive, rows),
        list_pairs(archive, validation),
        archive.share,
    )
    true = np.bincount(archive.true[rows], minlength=6) / len(rows)
    labels = np.bincount(archive.predicted[rows], minlength=6) / len(rows)
    assert corrected.sum() == pytest.approx(1)
    assert measure_distance(labels, true) > 0.08
    assert measure_distance(corrected, true) < 0.4 * measure_distance(labels, true)


def test_shares_that_stayed_are_left_within_noise():
    rng = np.random.default_rng(0)
    archive = Archive([3, 2, 1, 1, 1, 1, 1, 1], DOUBTFUL)
    rows, validation = rng.choice(archive.num_rows, 5000), rng.choice(archive.num_rows, 1000)
    corrected = correct_shares(*count(archive, rows), list_pairs(archive, validation), archive.share)
    true = np.bincount(archive.true[rows], minlength=8) / len(rows)
    labels = np.bincount(archive.predicted[rows], minlength=8) / len(rows)
    assert measure_distance(corrected, true) < measure_distance(labels, true) + 0.03


def test_a_class_that_nothing_speaks_for_has_no_share():
    counts, sums = np.zeros((3, 20), np.int64), np.zeros((3, 20))
    counts[0, 19], sums[0, 19] = 100, 100.0
    corrected = correct_shares(counts, sums, [[0, 0, 10], [1, 1, 10]], np.array([0.48, 0.48, 0.04]))
    assert corrected == pytest.approx([1, 0, 0], abs=1e-3)


def test_the_rest_of_a_probability_follows_the_validation_images():
    counts, sums = np.zeros((3, 20), np.int64), np.zeros((3, 20))
    counts[0, 12], sums[0, 12] = 100, 60.0
    one, other = (correct_shares(counts, sums, [[true, 0, 1000]], np.full(3, 1 / 3)) for true in (1, 2))
    assert one[1] > one[2]
    assert one[[0, 2, 1]] == pytest.approx(other)
