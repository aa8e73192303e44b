import re

import pyarrow as pa
import pytest
from PIL import Image

from tests.audit.data import make_sample
from tlray.audit import sheet
from tlray.audit.sheet import make_sheet
from tlray.images.limits import Limits


@pytest.fixture
def sample(tmp_path):
    """Rows of three classes; 5 is damaged, 6 is gone, 7 has many bytes."""
    rows = []
    for row_id, name in ((2, "glass"), (5, "glass"), (6, "<b>metal</b>"), (7, "paper"), (9, "paper")):
        path = tmp_path / f"{row_id}.png"
        if row_id == 7:
            Image.effect_noise((64, 64), 100).save(path)
        elif row_id != 6:
            Image.new("RGB", (30, 20), "red").save(path)
        rows.append((row_id, str(path), name, False))
    (tmp_path / "5.png").write_bytes(b"no image")
    return make_sample(rows, ["glass", "<b>metal</b>", "paper"], {"glass": 40, "<b>metal</b>": 1, "paper": 2345})


def plan(sample):
    """The rows of a sample as files of a plan."""
    uris = [row.uri for row in sorted(sample.rows, key=lambda row: row.row_id)]
    empty = pa.nulls(len(uris))
    columns = {"row_id": sorted(row.row_id for row in sample.rows), "uri": uris, "source": ["file"] * len(uris)}
    return pa.table(columns | dict.fromkeys(("member", "offset", "length", "size", "etag", "mtime_ns", "crc32"), empty))


def make(sample, limits=None):
    page, pictures = make_sheet(sample, sample.rows, plan(sample), limits or Limits(), None)
    return page.decode(), pictures


def find_row(text, row_id):
    return re.search(rf'<li id="row-{row_id}">(.*?)</li>', text, re.DOTALL)[1]


def test_each_row_has_its_picture_if_it_can_be_decoded(sample):
    text, pictures = make(sample)
    assert pictures == text.count("<img") == 3
    for row_id in (2, 7, 9):
        assert "data:image/jpeg;base64," in find_row(text, row_id)
    for row_id in (5, 6):
        assert "<img" not in find_row(text, row_id)
    assert "0.509" in find_row(text, 9)
    assert "9.png" in find_row(text, 9)


def test_images_above_the_limits_of_the_run_have_no_picture(sample):
    assert make(sample, Limits(max_pixels=30 * 20))[1] == 2
    assert make(sample, Limits(max_bytes=1000))[1] == 2


def test_classes_are_sections_in_the_order_of_the_sample(sample):
    text, _ = make(sample)
    headings = [re.sub("<.*?>", "", heading) for heading in re.findall("<h2>(.*?)</h2>", text, re.DOTALL)]
    assert headings == ["glass 2 of 40", "&lt;b&gt;metal&lt;/b&gt; 1 of 1", "paper 2 of 2,345"]
    places = [text.index(f'id="row-{row.row_id}"') for row in sample.rows]
    assert places == sorted(places)


def test_of_many_classes_the_first_are_named(sample, monkeypatch):
    monkeypatch.setattr(sheet, "_SHOWN_CLASSES", 1)
    head = make(sample)[0].partition("<h2>")[0]
    assert "glass" in head
    assert "paper" not in head
    assert "2 more" in head
    monkeypatch.setattr(sheet, "_SHOWN_CLASSES", 3)
    head = make(sample)[0].partition("<h2>")[0]
    assert "paper" in head
    assert not re.search(r"\d more", head)
