import numpy as np
import pytest

from tlray.evaluation import list_confused
from tlray.metrics.classification import measure

TRUE = np.array([0, 0, 0, 1, 1, 2])
GUESS = np.array([0, 0, 1, 1, 0, 2])


def answer(guess, num_classes, sure=0.8):
    probabilities = np.full((len(guess), num_classes), (1 - sure) / (num_classes - 1))
    probabilities[np.arange(len(guess)), guess] = sure
    return probabilities


def test_metrics_by_hand():
    measured = measure(answer(GUESS, 3), TRUE, ["a", "b", "c"])
    assert measured.accuracy == pytest.approx(4 / 6)
    assert (measured.accuracy_low, measured.accuracy_high) == pytest.approx((0.3000, 0.9032), abs=1e-4)
    assert measured.confusion == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    a = measured.by_class["a"]
    assert (a["precision"], a["recall"], a["f1"], a["images"], a["predicted"]) == pytest.approx((2 / 3,) * 3 + (3, 3))
    assert measured.by_class["b"]["precision"] == pytest.approx(1 / 2)
    assert measured.log_loss == pytest.approx(-(4 * np.log(0.8) + 2 * np.log(0.1)) / 6)
    assert measured.ece == pytest.approx(0.8 - 4 / 6)
    assert [(entry.images, entry.low, entry.high) for entry in measured.bins] == [(6, 12 / 15, 13 / 15)]
    assert measured.confidences == [0] * 16 + [6] + [0] * 3
    assert (measured.top_k, measured.top_k_accuracy) == (3, 1.0)


def test_a_class_without_images_has_no_undefined_numbers():
    measured = measure(answer(GUESS, 4), TRUE, ["a", "b", "c", "never seen"])
    never = measured.by_class["never seen"]
    assert [never[name] for name in ("precision", "recall", "f1", "images", "predicted")] == [0, 0, 0, 0, 0]
    assert (never["precision_low"], never["precision_high"]) == (0, 1)


def test_the_most_confused_pairs_come_first():
    pairs = list_confused([[5, 1, 0], [4, 5, 0], [0, 2, 9]], ["a", "b", "c"])
    assert [(pair["true"], pair["predicted"], pair["images"]) for pair in pairs] == [
        ("b", "a", 4),
        ("c", "b", 2),
        ("a", "b", 1),
    ]
