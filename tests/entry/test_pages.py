"""The report pages in a real browser: what it lays out, and that it complains of nothing."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import numpy as np
import pytest

from tests.report import data
from tests.report.pages import read_jpegs
from tlray.prediction.monitor import ThroughputSample
from tlray.report import render_evaluation, render_prediction, render_training

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

MEASURE = """<script>
const found = {};
found.width = innerWidth;
found.page = document.documentElement.scrollWidth;
found.pictures = [...document.images].filter(image => image.complete && image.naturalWidth > 0).length;
found.tallest = Math.max(0, ...[...document.images].map(image => Math.max(image.naturalWidth, image.naturalHeight)));
found.charts = document.querySelectorAll("svg.chart").length;
found.outside = [...document.querySelectorAll("svg.chart text")].filter(text => {
  const [own, frame] = [text.getBoundingClientRect(), text.ownerSVGElement.getBoundingClientRect()];
  return own.left < frame.left - 2 || own.right > frame.right + 2 || own.bottom > frame.bottom + 2;
}).map(text => text.textContent);
found.small = [...document.querySelectorAll("svg.chart text")].filter(text => {
  return parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a < 9;
}).length;
found.background = getComputedStyle(document.body).backgroundColor;
found.ink = getComputedStyle(document.body).color;
found.big = document.querySelector(".big").textContent;
const pre = document.createElement("pre");
pre.id = "found";
pre.textContent = JSON.stringify(found);
top.document.body.append(pre);
</script>"""

PHONE = '<!doctype html><body><iframe style="width: 390px; height: 800px; border: 0" srcdoc="{}"></iframe></body>'
"""A browser's window is 500 pixels wide at least; a frame may be as narrow as a phone."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on the PATH")
    profile = tmp_path_factory.mktemp("profile")

    def load(page: Path, *options: str) -> tuple[str, list[str]]:
        """The document as the browser has it after loading, and what it wrote to its console."""
        result = subprocess.run(
            [
                path, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--no-first-run", f"--user-data-dir={profile}", "--window-size=1000,900",
                "--virtual-time-budget=3000", "--enable-logging=stderr", *options, "--dump-dom", page.as_uri(),
            ],
            capture_output=True, timeout=120, check=True,
        )  # fmt: skip
        said = [line for line in result.stderr.decode(errors="replace").splitlines() if ":CONSOLE" in line]
        return result.stdout.decode(), said

    return load


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
        own = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.decode())
        own = own.replace("</body>", f"{MEASURE}</body>")
        (folder / f"{name}-measured.html").write_text(own)
        (folder / f"{name}-phone.html").write_text(PHONE.format(escape(own)))
    (folder / "broken.html").write_bytes(
        pages["training"].replace(b"</body>", b"<script>alert(1)</script><img src='https://example.com/x.png'></body>")
    )
    return folder


def measure(browser, page, *options):
    document, said = browser(page, *options)
    assert said == []
    return json.loads(unescape(re.search(r'<pre id="found">(.*?)</pre>', document)[1]))


@pytest.mark.parametrize(
    ("name", "pictures", "charts"), [("training", 12 + 24, 5), ("evaluation", 24 + 8 + 16, 3), ("prediction", 84, 3)]
)
def test_a_page_is_laid_out(browser, pages, name, pictures, charts):
    document, said = browser(pages / f"{name}.html")
    assert said == []
    assert "This page loads nothing from elsewhere." in document
    wide = measure(browser, pages / f"{name}-measured.html")
    narrow = measure(browser, pages / f"{name}-phone.html")
    for found in (wide, narrow):
        assert found["page"] <= found["width"]
        assert found["pictures"] == pictures
        assert found["tallest"] == 96
        assert found["charts"] == charts
        assert found["outside"] == []
        assert found["small"] == 0
    trained = data.make_manifest().metrics.test.accuracy
    evaluated = data.make_evaluation(data.CLASSES, []).accuracy
    big = {"training": f"{trained:.1%}", "evaluation": f"{evaluated:.1%}", "prediction": "600"}
    assert wide["big"] == big[name]
    assert (wide["width"], narrow["width"]) == (1000, 390)
    assert wide["background"] == "rgb(255, 255, 255)"


def test_a_dark_screen_gets_a_dark_page(browser, pages):
    found = measure(browser, pages / "training-measured.html", "--blink-settings=preferredColorScheme=0")
    background, ink = (sum(map(int, re.findall(r"\d+", found[key]))) for key in ("background", "ink"))
    assert background < 150
    assert ink > 600


def test_hostile_names_break_nothing(browser, pages):
    document, said = browser(pages / "hostile.html")
    assert said == []
    assert "<script" not in document
    found = measure(browser, pages / "hostile-phone.html")
    assert found["page"] <= found["width"]
    assert found["outside"] == []


def test_what_a_page_must_not_do_would_be_told(browser, pages):
    """The page's own policy stops scripts and requests, and the console would say so."""
    _, said = browser(pages / "broken.html")
    assert len(said) >= 2
