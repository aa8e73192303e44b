"""The report pages in a real browser: what it lays out, and that it complains of nothing."""

import re

import numpy as np
import pytest

from tests.browser import PHONE, visit
from tests.report import data
from tests.report.pages import read_jpegs
from tlray.prediction.monitor import ThroughputSample
from tlray.report import render_evaluation, render_prediction, render_training

MEASURE = """() => ({
  page: document.documentElement.scrollWidth,
  pictures: [...document.images].filter(image => image.complete && image.naturalWidth > 0).length,
  tallest: Math.max(0, ...[...document.images].map(image => Math.max(image.naturalWidth, image.naturalHeight))),
  charts: document.querySelectorAll("svg.chart").length,
  outside: [...document.querySelectorAll("svg.chart text")].filter(text => {
    const [own, frame] = [text.getBoundingClientRect(), text.ownerSVGElement.getBoundingClientRect()];
    return own.left < frame.left - 2 || own.right > frame.right + 2 || own.bottom > frame.bottom + 2;
  }).map(text => text.textContent),
  small: [...document.querySelectorAll("svg.chart text")].filter(text => {
    return parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a < 9;
  }).length,
  background: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.body).color,
  big: document.querySelector(".big").textContent,
})"""

SIZES = ((1000, 900), PHONE)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    uris = [f"/photos/{index}.jpg" for index in range(24)]
    labels = data.make_labels(0, 600, np.random.default_rng(0))
    timeline = [ThroughputSample(10.0 * step, 310 * step, 300 * step) for step in range(20)]
    _, facts = data.gather(folder / "labelled", [labels], timeline=timeline)
    label_errors = data.make_label_errors(uris, data.CLASSES)
    hostile = data.make_manifest(data.HOSTILE)
    pages = {
        "training": render_training(data.make_manifest(), data.make_history(), label_errors, read_jpegs),
        "evaluation": render_evaluation(data.make_evaluation(data.CLASSES, uris), read_jpegs),
        "prediction": render_prediction(facts, read_jpegs),
        "hostile": render_training(
            hostile, data.make_history(), data.make_label_errors(uris, data.HOSTILE), read_jpegs
        ),
    }
    for name, page in pages.items():
        (folder / f"{name}.html").write_bytes(page)
    (folder / "broken.html").write_bytes(
        pages["training"].replace(b"</body>", b"<script>alert(1)</script><img src='https://example.com/x.png'></body>")
    )
    return folder


@pytest.mark.parametrize(
    ("name", "pictures", "charts"),
    [("training", 12 + 24, 5), ("evaluation", 24 + 8 + 16, 3), ("prediction", 84 + 360, 3)],
)
def test_a_page_is_laid_out(browser, pages, name, pictures, charts):
    trained = data.make_manifest().metrics.test.accuracy
    evaluated = data.make_evaluation(data.CLASSES, []).accuracy
    big = {"training": f"{trained:.1%}", "evaluation": f"{evaluated:.1%}", "prediction": "600"}
    for size in SIZES:
        with visit(browser, pages / f"{name}.html", size) as (page, said):
            found = page.evaluate(MEASURE)
            assert "This page loads nothing from elsewhere." in page.content()
            assert said == []
        assert found["page"] <= size[0]
        assert found["pictures"] == pictures
        assert found["tallest"] == 96
        assert found["charts"] == charts
        assert found["outside"] == []
        assert found["small"] == 0
        assert found["big"] == big[name]
        assert found["background"] == "rgb(255, 255, 255)"


def test_rows_of_a_class_are_browsed_a_page_at_a_time(browser, pages):
    with visit(browser, pages / "prediction.html", PHONE) as (page, _):
        details = page.locator("details").first
        details.locator("summary").click()
        lists = details.locator("ul")
        for number in range(5):
            details.locator("label").nth(number).click()
            assert [lists.nth(other).is_visible() for other in range(5)] == [other == number for other in range(5)]
        page.keyboard.press("ArrowLeft")
        assert lists.nth(3).is_visible()
        assert page.evaluate(MEASURE)["page"] <= PHONE[0]


def test_a_dark_screen_gets_a_dark_page(browser, pages):
    with visit(browser, pages / "training.html", color_scheme="dark") as (page, _):
        found = page.evaluate(MEASURE)
    background, ink = (sum(map(int, re.findall(r"\d+", found[key]))) for key in ("background", "ink"))
    assert background < 150
    assert ink > 600


def test_hostile_names_break_nothing(browser, pages):
    with visit(browser, pages / "hostile.html", PHONE) as (page, said):
        found = page.evaluate(MEASURE)
        assert "<script" not in page.content()
        assert said == []
    assert found["page"] <= PHONE[0]
    assert found["outside"] == []


def test_what_a_page_must_not_do_would_be_told(browser, pages):
    """The page's own policy stops scripts and requests, and the console would say so."""
    with visit(browser, pages / "broken.html") as (_, said):
        assert len(said) >= 2
