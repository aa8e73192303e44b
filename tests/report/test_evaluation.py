import re
from dataclasses import replace

import pytest

from tests.report import data
from tests.report.pages import parse, read_jpegs, read_nothing
from tlray.report.evaluation import EvaluationRecord, OodShares, render_evaluation
from tlray.storage.records import dump_record, parse_record


def test_the_page_shows_the_numbers_of_the_evaluation():
    result = data.make_evaluation(data.CLASSES, [f"/p/{index}.jpg" for index in range(40)])
    page = render_evaluation(result, read_jpegs)
    parser, text = parse(page)
    assert f"{result.accuracy:.1%} of 179 labelled images" in text
    assert "2 images could not be measured" in text
    assert "Not measuredTRUNCATED 2" in text
    assert f"Macro F1{result.macro_f1:.3f}" in text
    assert parser.tags.count("img") == 24 + 8 + 16
    cells = re.findall(r'class="same[^"]*" style="--s:([0-9.]+)', page.decode())
    shares = [
        sum(images for true, predicted, images in result.confusion if true == predicted == index)
        / sum(images for true, _, images in result.confusion if true == index)
        for index in range(len(result.classes))
    ]
    assert [float(cell) for cell in cells] == pytest.approx(shares, abs=6e-4)


@pytest.mark.parametrize(("above_1", "warns"), [(0.05, False), (0.051, True)])
def test_many_images_out_of_distribution_are_a_warning(above_1, warns):
    result = replace(data.make_evaluation(data.CLASSES, []), ood_score=OodShares(0.7, above_1))
    _, text = parse(render_evaluation(result, read_nothing))
    assert ("out of distribution, unlike the training images" in text) == warns
    assert f"median 0.70; {above_1:.1%} of the images above 1" in text


def test_a_page_leaves_out_what_was_not_found():
    result = replace(data.make_evaluation(data.CLASSES, []), ood_score=None, failed_by_code={})
    _, text = parse(render_evaluation(result, read_nothing))
    for absent in ("Out-of-distribution", "Not measured", "could not be measured", "Most confident mistakes"):
        assert absent not in text


def test_hostile_names_stay_text():
    uris = [f"{data.HOSTILE_URI}{index}" for index in range(40)]
    result = replace(data.make_evaluation(data.HOSTILE, uris), data=data.HOSTILE_URI)
    _, text = parse(render_evaluation(result, read_nothing))
    assert "script>" in text
    assert "no image" in text


def test_many_classes_are_cut():
    result = data.make_evaluation([f"class {index}" for index in range(400)], [], images=2000)
    page = render_evaluation(result, read_nothing)
    _, text = parse(page)
    assert "370 more are not shown" in text
    assert "only the most confused pairs are shown" in text
    assert "confusion matrix" not in page.decode()


def test_a_record_survives_its_file():
    result = data.make_evaluation(data.CLASSES, [f"/p/{index}.jpg" for index in range(40)])
    assert parse_record(EvaluationRecord, dump_record(result)) == result
