from dataclasses import replace

from tests.factories import make_receipt
from tlray.cli.print_predict import print_predict, print_prediction, print_verify
from tlray.output.receipt import ProbeOutcome, UpdateRecord
from tlray.output.verify import VerifySummary
from tlray.prediction.single_image import Prediction
from tlray.prediction.summary import PredictSummary


def test_a_plain_run_prints_counts_and_speed(lines):
    print_predict(PredictSummary("out", make_receipt(planned=1200, labelled=1200), 0, already_done=False))
    assert lines() == [
        "labels out/labels",
        "report out/report.html",
        "rows 1,200 in 0 parts",
        "labelled 1,200",
        "speed 10.0 images/s over all, the first label after 5.0 s; 20.0 images/s from there on",
        f"model id {'m' * 64}",
    ]


def test_everything_else_is_printed_if_it_happened(lines):
    receipt = make_receipt(
        planned=10, labelled=8, failed=2, failed_by_code={"CORRUPT": 1, "NOT_FOUND": 1}, excluded=3, retries=4,
        needs_review=2, update=UpdateRecord("old", new=1), engines={"2 x float32": 2}, probe=ProbeOutcome(40.0, 20.0),
    )  # fmt: skip
    print_predict(PredictSummary("out", receipt, 5, already_done=False, verdict="as in training"))
    printed = lines()
    for line in (
        "5 rows were done before.",
        "failed 2 (CORRUPT 1, NOT_FOUND 1)",
        "excluded 3 (see out/_plan)",
        "needs review 2 (25.0% of the labels)",
        "probe estimated 40.0 images/s; 50% of that was reached",
        "beside training as in training",
    ):
        assert line in printed
    assert [line for line in printed if line.startswith("update ") and line.endswith("; from old")]


def test_a_finished_run_prints_no_speed(lines):
    print_predict(PredictSummary("out", make_receipt(), 0, already_done=True))
    printed = lines()
    assert printed[0] == "Already labelled; nothing was done."
    assert not [line for line in printed if line.startswith("speed")]


WHOLE = VerifySummary("out", 3, 2, 1, {"CORRUPT": 1}, 1, "f" * 64, ())


def test_a_whole_output_is_said_to_be_whole(lines):
    print_verify(WHOLE)
    printed = lines()
    assert "failed 1 (CORRUPT 1)" in printed
    assert printed[-1] == "Whole: every planned row is there exactly once, by one model."


def test_faults_are_listed_up_to_a_limit(lines):
    print_verify(replace(WHOLE, faults=tuple(f"fault {index}" for index in range(22))))
    printed = lines()
    assert [line for line in printed if line.startswith("wrong: ")] == [f"wrong: fault {index}" for index in range(20)]
    assert printed[-1] == "... and 2 more"


def test_one_image_gets_a_line_for_each_class(lines):
    print_prediction("a.png", [Prediction(1, "cat", 0.75), Prediction(0, "dog", 0.25)])
    assert lines() == ["a.png", "cat 0.7500 (index 1)", "dog 0.2500 (index 0)"]
