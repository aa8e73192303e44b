from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from tlray.images.batch import ImageBatch
from tlray.output.schema import RequestedColumns
from tlray.prediction.engine_actor import BatchPredictions, make_labels

CLASSES = np.array(["a", "b", "c"], object)
NAN = float("nan")


class Predictions(NamedTuple):
    """As `tlray.model.engines.interface.Predictions`."""

    probabilities: Any
    ood_score: Any
    embeddings: Any


def make_predicted(probabilities, status=None, ood_score=None, embeddings=None):
    count = len(probabilities)
    status = status or ["ok"] * count
    errors = [None if code == "ok" else "unreadable" for code in status]
    images = ImageBatch(np.zeros((count, 1, 1, 3), np.uint8), list(status), errors, [4] * count, [2] * count)
    return BatchPredictions(
        images,
        np.array(probabilities, np.float32),
        np.array(ood_score or [NAN] * count, np.float32),
        np.zeros((count, 0), np.float32) if embeddings is None else np.array(embeddings, np.float32),
    )


def label(predicted, **requested):
    count = len(predicted.probabilities)
    batch = {"row_id": np.arange(5, 5 + count), "retries": np.arange(count, dtype=np.int32)}
    columns = RequestedColumns(**requested)
    table = make_labels(batch, predicted, CLASSES, columns)
    assert table.schema == pa.schema(columns.fields)
    return table.to_pydict()


def test_the_most_probable_class_is_the_label_and_the_first_of_equals():
    labels = label(make_predicted([[0.25, 0.5, 0.25], [0.5, 0.5, 0.0]], ood_score=[1.5, NAN]))
    assert labels["row_id"] == [5, 6]
    assert labels["predicted_index"] == [1, 0]
    assert labels["class_name"] == ["b", "a"]
    assert labels["probability"] == [0.5, 0.5]
    assert labels["ood_score"] == [1.5, None]
    assert labels["needs_review"] == [None, None]
    assert labels["retries"] == [0, 1]
    assert (labels["width"], labels["height"]) == ([4, 4], [2, 2])


def test_a_failed_row_has_its_status_and_size_and_no_prediction():
    predicted = make_predicted([[NAN] * 3, [0, 0, 1]], ["CORRUPT", "ok"], embeddings=[[NAN] * 2, [1, 2]])
    labels = label(predicted, top_k=2, embedding_size=2, min_probabilities=np.full(3, 0.5, np.float32))
    assert labels["status"] == ["CORRUPT", "ok"]
    assert labels["error"] == ["unreadable", None]
    assert (labels["width"], labels["height"]) == ([4, 4], [2, 2])
    names = ("predicted_index", "class_name", "probability", "ood_score", "needs_review", "top_indices", "embedding")
    assert [labels[name][0] for name in names] == [None] * len(names)
    assert labels["top_class_names"] == [None, ["c", "a"]]
    assert labels["top_probabilities"] == [None, [1.0, 0.0]]
    assert labels["embedding"] == [None, [1.0, 2.0]]
    assert labels["needs_review"] == [None, False]


@pytest.mark.parametrize("number", [NAN, float("inf")])
def test_a_probability_that_is_not_finite_fails_its_row_alone(number):
    labels = label(make_predicted([[0.5, number, 0.1], [0, 0, 1]], ood_score=[1, 2]))
    assert labels["status"] == ["MODEL_ERROR", "ok"]
    assert labels["error"] == ["a probability is not finite", None]
    assert labels["predicted_index"] == [None, 2]
    assert labels["ood_score"] == [None, 2]


def test_a_review_is_needed_below_the_probability_of_the_predicted_class():
    predicted = make_predicted([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0, 0.25, 0.75]])
    labels = label(predicted, min_probabilities=np.array([0.5, 0.625, 1], np.float32))
    assert labels["needs_review"] == [False, True, True]


def test_a_review_is_needed_above_an_ood_score_too():
    predicted = make_predicted([[0.5, 0.25, 0.25]] * 4, ["ok", "ok", "ok", "CORRUPT"], ood_score=[1.0, 1.25, NAN, NAN])
    assert label(predicted, max_ood=1.0)["needs_review"] == [False, True, True, None]
    least = np.full(3, 0.75, np.float32)
    assert label(predicted, min_probabilities=least, max_ood=1.0)["needs_review"] == [True, True, True, None]


def test_predictions_go_to_their_rows():
    predicted = make_predicted([[NAN] * 3] * 3, embeddings=[[NAN] * 2] * 3)
    predicted.put(np.array([2, 0]), Predictions(np.eye(3)[:2], np.array([7, 8]), np.ones((2, 2))))
    np.testing.assert_array_equal(predicted.probabilities, [[0, 1, 0], [NAN] * 3, [1, 0, 0]])
    np.testing.assert_array_equal(predicted.ood_score, [8, NAN, 7])
    np.testing.assert_array_equal(predicted.embeddings, [[1, 1], [NAN] * 2, [1, 1]])


def test_scores_that_a_bundle_lacks_stay_unknown_and_unwanted_embeddings_are_dropped():
    predicted = make_predicted([[NAN] * 3])
    predicted.put(np.array([0]), Predictions(np.eye(3)[:1], None, np.ones((1, 2))))
    assert np.isnan(predicted.ood_score).all()
    assert predicted.embeddings.shape == (1, 0)
