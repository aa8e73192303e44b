from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tlray.cli.print_bundle import describe_accuracy, describe_duplicates, print_evaluate
from tlray.evaluation import EvaluateSummary
from tlray.metrics.calibration import MIN_IMAGES, LossGain
from tlray.metrics.classification import ConfusedPair, measure, measure_uncalibrated
from tlray.metrics.label_errors import DuplicatePair, LabelErrorSummary
from tlray.metrics.thresholds import Needed, Threshold, Thresholds
from tlray.model.manifest import Metrics

LABELS = np.array([0, 1, 1, 0])
PROBABILITIES = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])


def make_duplicates(*labels):
    return LabelErrorSummary(9, 0, [], [DuplicatePair("1", "2", first, second, 1.0) for first, second in labels])


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (["ab"], "1 pair of pictures that look the same, under two labels"),
        (["aa", "bb"], "2 pairs of pictures that look the same"),
        (["ab", "bb"], "2 pairs of pictures that look the same, 1 of them under two labels"),
    ],
)
def test_duplicates_are_counted_by_their_labels(pairs, expected):
    assert describe_duplicates(make_duplicates(*pairs)) == [("look at", expected)]


def test_no_duplicates_are_no_fact():
    assert describe_duplicates(None) == describe_duplicates(make_duplicates()) == []


def test_calibration_is_described_if_there_were_enough_images():
    validation = measure(PROBABILITIES, LABELS, ["a", "b"])
    few = measure_uncalibrated(PROBABILITIES, LABELS)
    assert describe_accuracy(Metrics(validation=validation, uncalibrated=few)) == [
        ("validation accuracy", "0.7500 (4 images)"),
        ("calibration", f"none: {MIN_IMAGES} images are needed for it"),
    ]
    times = -(-MIN_IMAGES // 4)
    many = measure_uncalibrated(np.tile(PROBABILITIES, (times, 1)), np.tile(LABELS, times))
    (_, (name, text)) = describe_accuracy(Metrics(validation=validation, uncalibrated=many))
    assert name == "calibration"
    assert text == f"probabilities are off by {validation.ece:.3f} on average, {many.ece:.3f} before (ECE)"
    assert describe_accuracy(Metrics()) == []


def test_a_calibration_says_what_it_gains_on_images_held_out():
    metrics = Metrics(
        validation=measure(PROBABILITIES, LABELS, ["a", "b"]),
        uncalibrated=measure_uncalibrated(np.tile(PROBABILITIES, (10, 1)), np.tile(LABELS, 10)),
        calibration_gain=LossGain(0.05, 0.01, 0.09),
    )
    text = dict(describe_accuracy(metrics))["calibration"]
    assert text.endswith("(ECE); saves 0.050 of log-loss on images held out (95% interval 0.010 to 0.090)")
    text = dict(describe_accuracy(replace(metrics, calibration_gain=LossGain(0, 0, 0))))["calibration"]
    assert text.startswith("none: it gains nothing on images held out; probabilities are off by ")


def evaluate(**values):
    record = vars(measure(PROBABILITIES, LABELS, ["a", "b"]))
    usual = {
        "thresholds": Thresholds(0.95, 0.9, None, 0.0, Needed(78, 87)), "most_confused": [ConfusedPair("b", "a", 1)],
        "label_errors": None, "failed_by_code": {},
    }  # fmt: skip
    return EvaluateSummary(
        "f" * 64, ("a", "b"), values.pop("output", None), SimpleNamespace(**(record | usual | values))
    )


def test_an_evaluation_prints_accuracy_classes_and_confusion(lines):
    print_evaluate(evaluate())
    printed = lines()
    assert "b 1.000 0.500 0.667 2" in printed
    assert [line for line in printed if line.startswith("accuracy 0.7500 (4 images; 95% interval 0.3")]
    assert "most confused b taken for a 1x" in printed
    assert (
        "to be right in 95% of cases, with 90% confidence: no probability is enough; about 78 more images would do "
        "if at most one in 87 is wrong"
    ) in printed
    assert not [line for line in printed if line.startswith(("top-", "written", "not measured"))]


def test_an_evaluation_names_failures_the_threshold_and_its_files(lines):
    threshold = Threshold(0.875, 0.96, 0.9, 0.99, 0.5, 40)
    thresholds = Thresholds(0.95, 0.9, threshold, 0.6, None)
    print_evaluate(evaluate(output="out", thresholds=thresholds, failed_by_code={"CORRUPT": 2}))
    printed = lines()
    assert "not measured CORRUPT 2" in printed
    assert "written out/report.html, evaluation.json, label_errors.csv" in printed
    assert (
        "to be right in 95% of cases, with 90% confidence: a label needs a probability of 0.875; 60% of the labels "
        "are kept"
    ) in printed
    own = {"a": threshold, "b": None}
    for changed, told in (
        ({"by_class": own, "pooled": ["b"]}, "the others need a probability of 0.875"),
        ({"by_class": own, "overall": None}, "1 always need a review"),
        ({"by_class": own, "overall": None, "pooled": ["b"]}, "1 always need a review"),
    ):
        print_evaluate(evaluate(thresholds=replace(thresholds, **changed)))
        assert (
            "to be right in 95% of cases, with 90% confidence: 1 of 2 classes have their own minimum probability, "
            f"{told}; 60% of the labels are kept"
        ) in lines()
    print_evaluate(evaluate(thresholds=replace(thresholds, by_class={"a": threshold}, overall=None)))
    assert (
        "to be right in 95% of cases, with 90% confidence: 1 of 1 classes have their own minimum probability; 60% of "
        "the labels are kept"
    ) in lines()
