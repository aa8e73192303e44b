import csv
import io

import numpy as np

from tlray.evaluation import _find_label_errors, _LabelledPredictions, _list_worst

CLASSES = ["a", "b", "c"]


def test_mistakes_are_listed_with_the_most_confident_first():
    probabilities = np.array([[0.9, 0.1, 0], [0.6, 0.4, 0], [0, 0.8, 0.2], [0.1, 0.2, 0.7]], np.float32)
    worst = _list_worst(probabilities, np.array([0, 1, 2, 2]), ["w", "x", "y", "z"], CLASSES)
    assert [(mistake.uri, mistake.true, mistake.predicted) for mistake in worst] == [("y", "c", "b"), ("x", "b", "a")]
    assert np.allclose([worst[0].probability, worst[0].true_probability], [0.8, 0.2])


def test_at_most_60_mistakes_are_listed():
    probabilities = np.tile(np.array([[0.9, 0.1]], np.float32), (100, 1))
    assert len(_list_worst(probabilities, np.ones(100, np.int64), ["x"] * 100, CLASSES)) == 60


def make_predictions(features, places):
    return _LabelledPredictions(np.zeros((len(places), 2)), np.zeros(len(places)), features, np.array(places), {})


def test_label_errors_are_searched_among_the_images_with_features():
    # the first row of features belongs to image 3, which failed; image 4 has the neighbours of the other class
    features = np.array([[9, 9], [1, 0], [1, 0.1], [0, 1], [1, 0.05], [0.1, 1]], np.float32)
    predictions = make_predictions(features, [1, 2, 3, 0, 4, -1, 5])
    measured = np.array([0, 1, 2, 4, 5, 6])
    labels = np.array([0, 0, 1, 1, 1, 1])
    summary, listed = _find_label_errors(predictions, measured, list("uvwxyz"), labels, CLASSES)
    assert summary.checked == 5
    assert (summary.listed[0].uri, summary.listed[0].label, summary.listed[0].suggested) == ("x", "b", "a")
    rows = list(csv.reader(io.StringIO(listed.decode())))
    assert len(rows) == 6
    assert "y" not in [row[0] for row in rows]


def test_without_features_no_label_is_checked():
    summary, _ = _find_label_errors(
        make_predictions(np.zeros((2, 0), np.float32), [0, 1]), np.arange(2), ["x", "y"], np.array([0, 1]), CLASSES
    )
    assert (summary.checked, summary.listed, summary.duplicates) == (0, [], [])
