"""Calibration, thresholds, ood_score and label_errors: against values by hand and against made-up truth."""

import csv
import io

import numpy as np
import pytest

from tlray.metrics.calibration import (
    apply_temperature,
    bin_confidences,
    compute_ece,
    compute_log_loss,
    fit_temperature,
)
from tlray.metrics.intervals import wilson
from tlray.metrics.label_errors import (
    NO_LABEL_ERRORS,
    add_copies,
    find_label_errors,
    list_label_errors,
    summarize_label_errors,
    write_label_errors,
)
from tlray.metrics.ood import fit_ood_score, measure_distances, normalize
from tlray.metrics.thresholds import choose_thresholds, resolve_thresholds


def draw_answers(temperature, count=4000, num_classes=4, seed=0):
    """Probabilities that are too sure by a temperature, and labels drawn from the honest ones."""
    rng = np.random.default_rng(seed)
    honest = apply_temperature(np.exp(rng.normal(size=(count, num_classes)) * 1.5), 1.0)
    labels = np.array([rng.choice(num_classes, p=row) for row in honest])
    return apply_temperature(honest, 1 / temperature), labels


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"), [(0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (81, 263, 0.2553, 0.3662)]
)
def test_wilson_against_published_values(successes, total, low, high):
    assert wilson(successes, total) == pytest.approx((low, high), abs=1e-4)


def test_wilson_knows_nothing_without_examples():
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_the_temperature_is_found_again(temperature):
    probabilities, labels = draw_answers(temperature)
    found = fit_temperature(probabilities, labels)
    assert found == pytest.approx(temperature, rel=0.06)
    calibrated = apply_temperature(probabilities, found)
    assert compute_log_loss(calibrated, labels) <= compute_log_loss(probabilities, labels)
    assert compute_ece(bin_confidences(calibrated, labels)) < 0.03
    np.testing.assert_array_equal(calibrated.argmax(axis=1), probabilities.argmax(axis=1))


def test_few_images_say_nothing_about_a_temperature():
    probabilities, labels = draw_answers(2.5, count=19)
    assert fit_temperature(probabilities, labels) == 1.0


def test_a_threshold_reaches_its_precision_and_keeps_all_it_can():
    probabilities, labels = draw_answers(1.0)
    thresholds = choose_thresholds(probabilities, labels, "abcd", 0.9)
    overall = thresholds["overall"]
    above = probabilities.max(axis=1) >= overall["probability"]
    right = probabilities.argmax(axis=1) == labels
    assert right[above].mean() >= 0.9
    assert (overall["kept"], overall["images"]) == pytest.approx((above.mean(), above.sum()))
    assert overall["low"] < overall["precision"] < overall["high"]
    lower = probabilities.max(axis=1) >= overall["probability"] - 0.05
    assert right[lower].mean() < 0.9


def test_a_class_without_a_threshold_of_its_own_takes_the_one_over_all():
    thresholds = {"overall": {"probability": 0.7}, "by_class": {"a": {"probability": 0.9}, "b": None}, "few": ["b"]}
    np.testing.assert_allclose(resolve_thresholds(thresholds, ["a", "b"]), [0.9, 0.7])
    assert resolve_thresholds({"overall": None, "by_class": {"a": None}, "few": ["a"]}, ["a"])[0] > 1


def test_a_class_that_is_known_to_be_bad_always_needs_a_review():
    sure = np.repeat([[0.99, 0.01], [0.01, 0.99]], [400, 60], axis=0)
    labels = np.repeat([0, 1], [400, 60])
    labels[400:424] = 0  # 60% of the second class's labels are right
    thresholds = choose_thresholds(sure, labels, "ab", 0.9)
    assert thresholds["by_class"]["b"] is None
    least = resolve_thresholds(thresholds, "ab")
    assert least[0] < 0.99 < 1 < least[1]


def test_too_few_images_give_no_threshold():
    assert choose_thresholds(np.eye(9), np.arange(9), "abcdefghi", 0.9)["overall"] is None


def test_what_lies_elsewhere_is_odd():
    rng = np.random.default_rng(0)
    centre, elsewhere = rng.normal(size=(2, 32))
    inside = centre + rng.normal(size=(300, 32)) * 0.3
    ood_score = fit_ood_score(inside[:200], inside[200:])
    assert ood_score is not None

    def score(features):
        return measure_distances(features, ood_score.references, ood_score.neighbours) / ood_score.scale

    assert (score(inside[200:]) > 1).mean() == pytest.approx(0.01)
    assert score(elsewhere + rng.normal(size=(50, 32)) * 0.3).min() > 1
    assert ood_score.percentiles["99"] == pytest.approx(1.0)
    np.testing.assert_allclose(np.linalg.norm(ood_score.references, axis=1), 1, rtol=1e-5)


def test_distances_by_hand():
    references = normalize(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    found = measure_distances(np.array([[2.0, 0.0], [3.0, 3.0]]), references, 2)
    np.testing.assert_allclose(found, [1.0, 1 - np.sqrt(0.5)], atol=1e-6)


def test_too_few_references_give_no_oddness():
    assert fit_ood_score(np.ones((10, 4)), np.ones((3, 4))) is None


def make_clusters(seed=0, count=200, num_classes=4):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % num_classes
    return rng.normal(size=(num_classes, 24))[labels] + rng.normal(size=(count, 24)) * 0.4, labels, rng


def test_wrong_labels_lead_the_list():
    features, labels, rng = make_clusters()
    wrong = rng.choice(len(labels), 20, replace=False)
    given = labels.copy()
    given[wrong] = (given[wrong] + 1) % 4
    found = find_label_errors(features, given, 4)
    assert set(found.order[:20]) == set(wrong)
    np.testing.assert_array_equal(found.suggested[wrong], labels[wrong])
    assert ((found.scores >= 0) & (found.scores <= 1)).all()


def test_the_same_picture_under_two_labels_comes_first():
    features, labels, _ = make_clusters()
    features[1] = features[0]  # classes 0 and 1
    features[8] = features[4]  # both of class 0
    found = find_label_errors(features, labels, 4)
    assert [pair[:2] for pair in found.pairs] == [(0, 1), (4, 8)]
    listed = summarize_label_errors(found, [f"/{row}.jpg" for row in range(len(labels))], labels, "abcd")
    assert listed["duplicates"][0] == {
        "first": "/0.jpg",
        "second": "/1.jpg",
        "first_label": "a",
        "second_label": "b",
        "similarity": 1.0,
    }


def test_copies_are_found_by_their_content_where_features_say_nothing():
    labels = np.array([0, 1, 1, 0])
    found = add_copies(NO_LABEL_ERRORS, ["x", "y", "x", "y"], labels)
    assert found.pairs == [(0, 2, 1.0), (1, 3, 1.0)]
    assert summarize_label_errors(found, "pqrs", labels, "ab")["listed"] == []


def test_all_conflicts_are_a_csv_file_whatever_names_hold():
    features, labels, _ = make_clusters(count=12)
    uris = [f'/a "{row}",\n<b>.jpg' for row in range(12)]
    found = find_label_errors(features, labels, 4)
    rows = list(
        csv.DictReader(
            io.StringIO(write_label_errors(list_label_errors(found, uris, labels, "abcd")).decode(), newline="")
        )
    )
    assert sorted(row["uri"] for row in rows) == sorted(uris)


def test_one_image_has_no_neighbours():
    found = find_label_errors(np.ones((1, 3)), np.array([0]), 2)
    assert found.pairs == []
    assert found.scores.tolist() == [0.0]
