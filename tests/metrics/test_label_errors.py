import csv
import io

import numpy as np
import pytest

from tlray.metrics.label_errors import (
    LIKELY_ERROR,
    NO_LABEL_ERRORS,
    DuplicatePair,
    LabelError,
    LabelErrors,
    LabelErrorSummary,
    add_copies,
    find_label_errors,
    list_label_errors,
    summarize_label_errors,
    write_label_errors,
)


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
    assert found.checked == 200
    assert set(found.order[:20]) == set(wrong)
    np.testing.assert_array_equal(found.suggested[wrong], labels[wrong])
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert (np.diff(found.scores[found.order]) <= 0).all()
    summary = summarize_label_errors(found, [str(row) for row in range(200)], given, "abcd")
    assert summary.contradicted == (found.scores >= LIKELY_ERROR).sum() == 20
    assert {int(error.uri) for error in summary.listed[:20]} == set(wrong.tolist())


def test_a_label_that_no_neighbour_shares_has_the_score_one():
    found = find_label_errors(np.eye(4), np.array([0, 0, 0, 1]), 3)
    # all are equally far apart: two of the three neighbours of a 0 are 0 too
    np.testing.assert_allclose(found.scores, [1 / 3, 1 / 3, 1 / 3, 1], atol=1e-6)
    assert found.order.tolist() == [3, 0, 1, 2]
    assert found.suggested.tolist() == [1, 1, 1, 0]


def test_similar_neighbours_count_more():
    features = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    found = find_label_errors(features, np.array([0, 1, 2]), 3)
    share = np.exp(8) / (np.exp(8) + 1)  # of the neighbours of the first image, with cosines 0.8 and 0
    assert (found.suggested[0], found.scores[0]) == (1, pytest.approx((share + 1) / 2))


def test_the_same_image_under_two_labels_comes_first():
    features, labels, _ = make_clusters()
    features[1] = features[0]  # classes 0 and 1
    features[8] = features[4]  # both of class 0
    found = find_label_errors(features, labels, 4)
    assert [pair[:2] for pair in found.pairs] == [(0, 1), (4, 8)]
    listed = summarize_label_errors(found, [f"/{row}.jpg" for row in range(len(labels))], labels, "abcd")
    assert listed.duplicates[0] == DuplicatePair(
        first="/0.jpg", second="/1.jpg", first_label="a", second_label="b", similarity=1.0
    )


def test_blocks_of_rows_find_the_same_duplicates():
    features, labels, _ = make_clusters(count=1030)
    features[1029] = features[2]  # in the second block of 1024 rows
    found = find_label_errors(features, labels, 4)
    assert (2, 1029) in [pair[:2] for pair in found.pairs]


def test_copies_are_found_by_their_content_without_features():
    labels = np.array([0, 1, 1, 0])
    found = add_copies(NO_LABEL_ERRORS, ["x", "y", "x", "y"], labels)
    assert found.pairs == [(0, 2, 1.0), (1, 3, 1.0)]
    summary = summarize_label_errors(found, "pqrs", labels, "ab")
    assert summary == LabelErrorSummary(
        checked=0,
        contradicted=0,
        listed=[],
        duplicates=[DuplicatePair("p", "r", "a", "b", 1.0), DuplicatePair("q", "s", "b", "a", 1.0)],
    )


def test_duplicates_with_equal_labels_are_ordered_by_similarity():
    similar = LabelErrors(4, np.arange(4), np.zeros(4, int), np.zeros(4), [(0, 1, 0.98), (2, 3, 0.99)])
    found = add_copies(similar, "pqrs", np.zeros(4, int))
    assert found.pairs == [(2, 3, 0.99), (0, 1, 0.98)]


def test_copies_replace_similar_pairs_and_three_copies_make_two_pairs():
    labels = np.array([0, 0, 0, 1])
    similar = LabelErrors(4, np.arange(4), labels, np.zeros(4), [(0, 3, 0.99), (0, 1, 0.985)])
    found = add_copies(similar, ["x", "x", "x", "y"], labels)
    assert found.pairs == [(0, 3, 0.99), (0, 1, 1.0), (1, 2, 1.0)]


def test_a_summary_lists_at_most_two_hundred_of_each():
    count = 300
    found = LabelErrors(
        count,
        np.arange(count),
        np.ones(count, np.int64),
        np.full(count, LIKELY_ERROR),
        [(row, row + 1, 1.0) for row in range(count - 1)],
    )
    summary = summarize_label_errors(found, [str(row) for row in range(count)], np.zeros(count, np.int64), "ab")
    assert (summary.checked, summary.contradicted) == (300, 300)
    assert (len(summary.listed), len(summary.duplicates)) == (200, 200)
    assert summary.listed[0] == LabelError("0", "a", "b", LIKELY_ERROR)


def test_all_label_errors_are_a_csv_file_whatever_names_hold():
    features, labels, _ = make_clusters(count=12)
    uris = [f'/a "{row}",\n<b>.jpg' for row in range(12)]
    listed = list_label_errors(find_label_errors(features, labels, 4), uris, labels, "abcd")
    rows = list(csv.DictReader(io.StringIO(write_label_errors(listed).decode(), newline="")))
    assert list(rows[0]) == ["uri", "label", "suggested", "score"]
    assert [LabelError(**{**row, "score": float(row["score"])}) for row in rows] == listed
    assert sorted(row["uri"] for row in rows) == sorted(uris)


def test_without_label_errors_the_csv_file_has_a_header():
    assert write_label_errors([]) == b"uri,label,suggested,score\n"


def test_no_cell_of_the_csv_file_is_a_formula():
    errors = [LabelError("=cmd.jpg", "@a", "+b", 0.5)]
    assert write_label_errors(errors) == b"uri,label,suggested,score\n'=cmd.jpg,'@a,'+b,0.5\n"


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_have_no_neighbours(count):
    found = find_label_errors(np.ones((count, 3)), np.zeros(count, int), 2)
    assert found.pairs == []
    assert found.scores.tolist() == [0.0] * count
