import numpy as np
import pytest

from tests.metrics.data import draw_predictions
from tlray.metrics.calibration import bin_confidences
from tlray.metrics.classification import (
    ConfusedPair,
    UncalibratedMeasurement,
    list_confused,
    measure,
    measure_uncalibrated,
)
from tlray.metrics.intervals import wilson

TRUE = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 0, 2])


def make_probabilities(predicted, num_classes, confidence=0.8):
    probabilities = np.full((len(predicted), num_classes), (1 - confidence) / (num_classes - 1))
    probabilities[np.arange(len(predicted)), predicted] = confidence
    return probabilities


def test_metrics_by_hand():
    measured = measure(make_probabilities(PREDICTED, 3), TRUE, ["a", "b", "c"])
    assert measured.images == 6
    assert measured.accuracy == pytest.approx(4 / 6)
    assert (measured.accuracy_low, measured.accuracy_high) == pytest.approx((0.3000, 0.9032), abs=1e-4)
    assert measured.confusion == [[0, 0, 2], [0, 1, 1], [1, 0, 1], [1, 1, 1], [2, 2, 1]]
    a = measured.by_class["a"]
    assert (a.precision, a.recall, a.f1, a.images, a.predicted) == pytest.approx((2 / 3,) * 3 + (3, 3))
    assert measured.by_class["b"].precision == pytest.approx(1 / 2)
    assert measured.macro_f1 == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert measured.log_loss == pytest.approx(-(4 * np.log(0.8) + 2 * np.log(0.1)) / 6)
    assert measured.ece == pytest.approx(0.8 - 4 / 6)
    assert [(entry.images, entry.low, entry.high) for entry in measured.bins] == [(6, 12 / 15, 13 / 15)]
    assert measured.confidences == [0] * 16 + [6] + [0] * 3
    assert (measured.top_k, measured.top_k_accuracy) == (3, 1.0)


def test_a_class_that_does_not_occur_has_no_part_in_the_mean_of_f1():
    probabilities = np.eye(4)[[0, 1, 1, 3]]
    measured = measure(probabilities, np.array([0, 1, 0, 1]), ("a", "b", "c", "d"))
    assert measured.macro_f1 == pytest.approx((2 / 3 + 2 / 4) / 2)
    assert measured.loss is None


def test_intervals_of_a_class_count_its_predictions_for_precision_and_its_images_for_recall():
    measured = measure(make_probabilities(np.array([0, 0, 0, 1]), 2), np.array([0, 1, 1, 1]), "ab")
    a, b = measured.by_class["a"], measured.by_class["b"]
    assert (a.precision_low, a.precision_high) == wilson(1, 3)
    assert (a.recall_low, a.recall_high) == wilson(1, 1)
    assert (b.precision_low, b.precision_high) == wilson(1, 1)
    assert (b.recall_low, b.recall_high) == wilson(1, 3)


def test_a_class_without_images_has_no_undefined_numbers():
    measured = measure(make_probabilities(PREDICTED, 4), TRUE, ["a", "b", "c", "never seen"])
    never = measured.by_class["never seen"]
    assert (never.precision, never.recall, never.f1, never.images, never.predicted) == (0, 0, 0, 0, 0)
    assert (never.precision_low, never.precision_high) == (0, 1)
    assert (never.recall_low, never.recall_high) == (0, 1)


def test_the_true_class_may_be_among_the_five_most_probable():
    probabilities = np.tile(np.array([0.3, 0.2, 0.16, 0.14, 0.11, 0.09]), (6, 1))
    measured = measure(probabilities, np.arange(6), "abcdef")
    assert (measured.top_k, measured.top_k_accuracy) == (5, pytest.approx(5 / 6))
    assert measured.accuracy == pytest.approx(1 / 6)


def test_calibration_alone_agrees_with_the_whole_measurement():
    probabilities, labels = draw_predictions(2.5, count=200)
    whole = measure(probabilities, labels, "abcd")
    found = measure_uncalibrated(probabilities, labels)
    assert found == UncalibratedMeasurement(200, whole.log_loss, whole.ece, bin_confidences(probabilities, labels))


def test_the_most_confused_pairs_come_first():
    pairs = list_confused([[0, 0, 5], [0, 1, 1], [1, 0, 4], [1, 1, 5], [2, 1, 2], [2, 2, 9]], ["a", "b", "c"])
    assert pairs == [ConfusedPair("b", "a", 4), ConfusedPair("c", "b", 2), ConfusedPair("a", "b", 1)]


def test_at_most_twenty_confused_pairs_are_listed():
    confusion = [[index // 6, index % 6, index] for index in range(36)]
    pairs = list_confused(confusion, "abcdef")
    assert len(pairs) == 20
    assert (pairs[0], pairs[-1].images) == (ConfusedPair("f", "e", 34), 12)


def test_thousands_of_classes_are_measured_by_their_images():
    """A matrix of 20,000 classes would take 3 GB."""
    labels = np.arange(0, 20_000, 10)
    probabilities = np.zeros((len(labels), 20_000), np.float32)
    probabilities[np.arange(len(labels)), labels // 20 * 20] = 1
    measured = measure(probabilities, labels, [str(index) for index in range(20_000)])
    assert measured.confusion == [[label, label // 20 * 20, 1] for label in labels.tolist()]
    assert (measured.accuracy, len(measured.by_class)) == (0.5, 20_000)
