from dataclasses import replace

import numpy as np
import pytest

from tests.report import data
from tests.report.pages import parse, read_jpegs, read_nothing
from tlray.output.receipt import UpdateRecord
from tlray.prediction.monitor import ThroughputSample
from tlray.report.prediction import render_prediction
from tlray.report.prediction_facts import Failure, PredictionFacts
from tlray.report.shift import Validation


def make_facts(**values):
    """The facts of 1,000 rows that all have the label "glass"."""
    usual = PredictionFacts(
        receipt=data.make_run(1000, {}),
        classes=("glass", "metal"),
        class_counts={"glass": 1000},
        confidences=[0] * 19 + [1000],
        confidence=0.97,
        rows_read=1000,
        is_sample=False,
        needs_review=None,
        ood=None,
        failures={},
        surest={"glass": []},
        least_sure={"glass": []},
        browsed={"glass": []},
        most_ood=[],
        timeline=[],
        validation=None,
        corrected=None,
        duplicates=None,
        promise=None,
    )
    return replace(usual, **values)


def show(**values):
    return parse(render_prediction(make_facts(**values), read_nothing))[1]


def test_the_page_shows_the_labels_of_the_run(tmp_path):
    labels = [data.make_labels(start, 1000, np.random.default_rng(start)) for start in (0, 1000, 2000)]
    timeline = [ThroughputSample(10.0 * step, 310 * step, 300 * step) for step in range(20)]
    rows, facts = data.gather(tmp_path, labels, timeline=timeline)
    asked = []

    def read(row_ids):
        asked.extend(row_ids)
        return read_jpegs(row_ids)

    parser, text = parse(render_prediction(facts, read))
    assert asked == sorted(asked)
    assert parser.tags.count("img") == 6 * 12 + 12 + 6 * 60
    assert parser.tags.count("input") == 6 * 5
    assert text.count("Browse 60 drawn at random") == 6
    assert parser.tags.count("svg") == 3
    good = sum(row["status"] == "ok" for row in rows)
    assert f"labelled{good:,}" in text
    assert f"failed{3000 - good:,}" in text
    assert f"need review{facts.needs_review:,}" in text
    assert f"out of distribution{facts.ood:,}" in text
    assert "it is <b>broken</b>" in text


def test_a_sample_shows_shares_not_counts():
    text = show(is_sample=True, rows_read=200, class_counts={"glass": 200}, needs_review=50, ood=2)
    assert "are from a sample: 200 of 1,000 rows" in text
    assert "need review25.0%" in text
    assert "out of distribution1.0%" in text


def test_a_run_without_labels_has_a_page():
    text = show(
        receipt=data.make_run(3, {"EMPTY": 3}),
        class_counts={},
        confidences=[0] * 20,
        confidence=None,
        failures={"EMPTY": [Failure("/a.jpg", "it has no bytes")]},
        needs_review=0,
        ood=0,
    )
    assert "Rows without a label" in text
    assert "EMPTY 3" in text
    assert "it has no bytes" in text
    assert "Classes and confidence" not in text
    assert "100.0% of the rows have no label, most of them EMPTY (3)." in text


@pytest.mark.parametrize(
    ("failed", "tone", "sentence"),
    [
        ({}, "good", "Every row has its label."),
        ({"EMPTY": 3, "CORRUPT": 7}, "", "1.0% of the rows have no label, most of them CORRUPT (7)."),
        ({"EMPTY": 11}, "bad", "1.1% of the rows have no label, most of them EMPTY (11)."),
    ],
)
def test_more_than_one_percent_of_failures_is_a_warning(failed, tone, sentence):
    page = render_prediction(make_facts(receipt=data.make_run(1000, failed)), read_nothing).decode()
    assert f'<li class="{tone}">{sentence}</li>' in page


@pytest.mark.parametrize(("ood", "tone"), [(50, "good"), (51, "bad")])
def test_more_than_five_percent_out_of_distribution_is_a_warning(ood, tone):
    page = render_prediction(make_facts(ood=ood), read_nothing).decode()
    sentence = f"{ood / 10:.1f}% of the images are less like the training images than 99% of the validation images"
    assert f'<li class="{tone}">{sentence}; 1% is expected.</li>' in page


def test_a_comparison_with_validation_is_a_point_of_the_page():
    validation = Validation(1000, {"glass": 1.0}, 0.97, [0] * 19 + [1000])
    assert "Classes and confidence look like those of the validation images." in show(validation=validation)
    moved = replace(validation, shares={"metal": 1.0})
    assert "This archive differs from the validation images" in show(validation=moved)
    assert "archive differs" not in show()


def test_a_promise_says_what_it_assumes_and_how_that_was_tested():
    thresholds = data.make_manifest().thresholds
    validation = Validation(1000, {"glass": 1.0}, 0.97, [0] * 19 + [1000])
    page = render_prediction(make_facts(promise=thresholds, validation=validation), read_nothing)
    parser, text = parse(page)
    assert ("href", "#promise") in parser.attributes
    assert ("id", "promise") in parser.attributes
    assert "if this archive resembles the validation images" in text
    assert "chosen on its 1,000 validation images by exact binomial tests" in text
    assert (
        "Classes and confidence look like those of the validation images."
        in text.partition("The promised precision")[2]
    )
    assert "promise" not in show()


def test_shares_that_label_shift_explains_are_shown_where_they_differ():
    both = {"class_counts": {"glass": 700, "metal": 300}}
    both |= {name: {"glass": [], "metal": []} for name in ("surest", "least_sure", "browsed")}
    text = show(**both, corrected={"glass": 0.5, "metal": 0.5})
    assert "corrected for label shift, 20.0% of the images would be counted in other classes" in text
    assert "Shares corrected for label shift" in text
    assert "glass70.0%50.0%" in text
    assert "metal30.0%50.0%" in text
    assert "label shift" not in show(**both, corrected={"glass": 0.69, "metal": 0.31})
    assert "label shift" not in show()


def test_an_update_names_the_earlier_output():
    receipt = replace(data.make_run(1000, {}), update=UpdateRecord("/earlier", new=1, changed=2, kept=997, vanished=4))
    assert "Update997 kept, 1 new, 2 changed, 4 vanished; from /earlier" in show(receipt=receipt)


def test_facts_that_are_absent_have_no_line():
    text = show()
    assert "Excluded12 files" in text
    assert "51.1 images/s overall, first label after 16.2 s; 56.4 images/s from then on" in text
    assert "Retries3 requests were repeated" in text
    receipt = replace(
        data.make_run(1000, {}),
        excluded=0,
        retries=0,
        engines={},
        stages={},
        first_label_s=None,
        images_per_s_steady=51.1,
        config={"input": "photos"},
    )
    text = show(receipt=receipt)
    assert "Inputphotos" in text
    assert "Speed51.1 images/s overall" in text
    for absent in ("Excluded", "Retries", "Engines", "first label", "from then on", "Time"):
        assert absent not in text


def test_hostile_names_stay_text(tmp_path):
    classes = [name.encode("utf-8", "replace").decode() for name in data.HOSTILE]  # Parquet holds no lone surrogates
    labels = data.make_labels(0, 400, np.random.default_rng(0), classes, uri=data.HOSTILE_URI + "{}")
    _, facts = data.gather(tmp_path, [labels], data.make_manifest(classes))
    _, text = parse(render_prediction(facts, read_nothing))
    assert "script>" in text
    assert "no image" in text
