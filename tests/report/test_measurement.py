from dataclasses import replace

import pytest

from tests.report import data
from tlray.metrics.classification import ClassMeasurement
from tlray.metrics.label_errors import LabelErrorSummary
from tlray.metrics.thresholds import Needed
from tlray.report.measurement import (
    Bound,
    Point,
    SharedPair,
    list_classes,
    list_points,
    list_thresholds,
    make_confusion,
    pick_label_errors,
    point_at_threshold,
)


def make_class(recall, images, predicted=10):
    return ClassMeasurement(0.8, 0.7, 0.9, recall, recall - 0.1, recall + 0.1, 0.6, images, predicted)


def make_measurement(**values):
    measured = data.make_measurement(["a", "b"], 40, 0.9)
    usual = {"ece": 0.05, "by_class": {"a": make_class(0.9, 20), "b": make_class(0.5, 20)}}
    return replace(measured, **(usual | values))


@pytest.mark.parametrize(("ece", "tone", "word"), [(0.05, "good", "are reliable"), (0.051, "bad", "are not reliable")])
def test_an_ece_above_five_points_is_a_warning(ece, tone, word):
    point = list_points(make_measurement(ece=ece), None)[0]
    text = f"Probabilities {word}: on average they differ from the accuracy by {ece * 100:.1f} percentage points."
    assert point == Point(tone, text, "reliability")


@pytest.mark.parametrize(("recall", "tone"), [(0.5, ""), (0.49, "bad")])
def test_the_class_with_the_lowest_recall_is_named(recall, tone):
    measured = make_measurement(by_class={"a": make_class(0.9, 20), "b": make_class(recall, 1234)})
    text = f"The class with the lowest recall is “b”: {recall:.1%} of its 1,234 images are recognised."
    assert list_points(measured, None)[1] == Point(tone, text, "classes")


def test_a_class_without_images_is_not_the_worst_but_counted():
    measured = make_measurement(by_class={"a": make_class(0.9, 20), "b": make_class(0.0, 0), "c": make_class(0.0, 0)})
    points = list_points(measured, None)
    assert [point.text for point in points[1:]] == ["2 classes have no images here and could not be measured."]
    only = list_points(make_measurement(by_class={"a": make_class(0.9, 20), "b": make_class(0.0, 0)}), None)
    assert only[1] == Point("bad", "1 class has no images here and could not be measured.")


@pytest.mark.parametrize(
    ("contradicted", "duplicates", "point"),
    [
        (0, 0, Point("good", "None of 539 checked labels is contradicted by the most similar images.", "label_errors")),
        (
            1,
            0,
            Point("bad", "1 label is contradicted by the most similar images; they are shown below.", "label_errors"),
        ),
        (0, 1, Point("", "1 pair of images is nearly identical; they are shown below.", "label_errors")),
        (
            2,
            2,
            Point(
                "bad",
                "2 labels are contradicted by the most similar images and 2 pairs of images are nearly identical; "
                "they are shown below.",
                "label_errors",
            ),
        ),
    ],
)
def test_label_errors_are_counted(contradicted, duplicates, point):
    found = data.make_label_errors([f"/{index}" for index in range(2 * duplicates)], data.CLASSES)
    found = replace(found, contradicted=contradicted)
    assert list_points(make_measurement(), found)[2:] == [point]


def test_labels_that_were_not_checked_are_no_point():
    assert len(list_points(make_measurement(), None)) == 2
    assert len(list_points(make_measurement(), LabelErrorSummary(0, 0, [], []))) == 2


def test_the_threshold_is_a_point():
    thresholds = data.make_thresholds(["a"])
    assert point_at_threshold(None) == []
    assert [point.tone for point in point_at_threshold(thresholds)] == ["good"]
    missed = point_at_threshold(replace(thresholds, overall=None))
    assert [point.tone for point in missed] == ["good"]  # classes have thresholds of their own
    nothing = replace(thresholds, overall=None, kept=0.0, needed=Needed(12, 87))
    text = "No probability threshold promises a precision of 95%: review all labels; about 12 more images would do "
    assert point_at_threshold(nothing) == [Point("bad", f"{text}if at most one in 87 is wrong.", "thresholds")]
    shared = replace(thresholds, by_class={"a": None}, pooled=["a"])
    assert point_at_threshold(shared)[0].text == (
        "Keep labels with a probability of at least 0.812, 78.0% of them: with 90% confidence, at least 95% are "
        "correct."
    )


def test_undefined_shares_are_absent_from_the_table_of_classes():
    measured = make_measurement(by_class={"a": make_class(0.5, 20, predicted=0), "b": make_class(0.0, 0)})
    a, b = list_classes(measured).rows
    assert (a.precision, a.recall) == (None, Bound(0.5, 0.4, 0.6))
    assert (b.precision, b.recall) == (Bound(0.8, 0.7, 0.9), None)


def test_of_many_classes_the_most_frequent_are_in_the_table():
    measured = make_measurement(by_class={f"class {index}": make_class(0.5, index) for index in range(40)})
    table = list_classes(measured)
    assert [row.images for row in table.rows] == list(range(39, 9, -1))
    assert table.more == 10


def list_all_pairs(num_classes):
    return [[true, predicted, 1] for true in range(num_classes) for predicted in range(num_classes)]


def test_a_confusion_matrix_shades_shares_of_its_rows():
    measured = make_measurement(confusion=[[0, 0, 84], [0, 1, 16]])
    table = make_confusion(measured, ["a", "b"])
    (right, wrong), (empty, _) = (row.cells for row in table.rows)
    assert (right.count, right.opacity, right.kind) == (84, 0.84, "same strong")
    assert (wrong.opacity, wrong.kind) == (pytest.approx(0.4), "other")  # the root of 0.16
    assert wrong.title == "a predicted as b: 16 of 100"
    assert (empty.opacity, empty.kind, empty.title) == (0.0, "other zero", "")
    assert table.pairs == [SharedPair("a", "b", 16, 0.16)]


@pytest.mark.parametrize(
    ("classes", "tall"), [(["a"] * 8, False), (["a"] * 9, True), (["a" * 11], False), (["a" * 12], True)]
)
def test_many_or_long_names_are_rotated(classes, tall):
    measured = make_measurement(confusion=list_all_pairs(len(classes)))
    assert make_confusion(measured, classes).tall == tall


@pytest.mark.parametrize(("size", "rows"), [(30, 30), (31, 0)])
def test_too_many_classes_have_pairs_instead_of_a_matrix(size, rows):
    measured = make_measurement(confusion=list_all_pairs(size))
    table = make_confusion(measured, [f"class {index}" for index in range(size)])
    assert len(table.rows) == rows
    assert len(table.pairs) == 20


def test_the_table_of_thresholds_keeps_the_most_frequent_classes():
    classes = [f"class {index}" for index in range(31)]
    thresholds = data.make_thresholds(classes)
    measured = make_measurement(by_class={name: make_class(0.5, index) for index, name in enumerate(classes)})
    table = list_thresholds(thresholds, measured)
    assert (table.target, table.confidence, table.kept, table.more) == (0.95, 0.9, 0.78, 1)
    shared, *rows = table.rows
    assert (shared.name, shared.threshold) == ("classes without their own", thresholds.overall)
    assert [row.name for row in rows] == classes[:0:-1]
    assert rows[0].threshold is None
    assert (
        rows[0].instead
        == "shared; for a threshold of its own, about 86 more images would do if at most one in 87 is wrong"
    )
    assert rows[1].threshold == thresholds.by_class["class 29"]
    assert list_thresholds(None, measured) is None


def test_a_page_shows_forty_label_errors_and_twenty_duplicates():
    found = data.make_label_errors([f"/{index}" for index in range(120)], data.CLASSES)  # scores from 0.97 to 0.675
    shown = pick_label_errors(replace(found, contradicted=55))
    assert shown.listed == found.listed[:40]
    assert shown.duplicates == found.duplicates[:20]
    assert (shown.checked, shown.more_listed, shown.more_duplicates) == (539, 15, 40)
    assert shown.list_uris()[:2] == ["/0", "/2"]
    assert shown.list_uris()[40:43] == ["/0", "/1", "/2"]
    assert pick_label_errors(None) is None


def test_a_page_shows_only_likely_label_errors():
    found = data.make_label_errors(["/0", "/1", "/2", "/3"], ["a", "b"])
    scored = [replace(found.listed[0], score=0.7), replace(found.listed[1], score=0.6999)]
    shown = pick_label_errors(replace(found, contradicted=1, listed=scored))
    assert shown.listed == scored[:1]
    assert shown.more_listed == 0
