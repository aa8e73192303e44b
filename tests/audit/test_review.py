import json
import re
from importlib.resources import files

import pyarrow as pa
import pytest
from PIL import Image

from tests.audit.data import make_sample
from tests.report.pages import Parser
from tlray.audit import review
from tlray.audit.review import make_review_page
from tlray.images.limits import Limits


@pytest.fixture
def sample(tmp_path):
    """Rows of three classes; 5 is damaged, 6 is gone, 7 has many bytes."""
    rows = []
    for row_id, name in ((2, "glass"), (5, "glass"), (6, "</script><b>"), (7, "paper"), (9, "paper")):
        path = tmp_path / f"{row_id}.png"
        if row_id == 7:
            Image.effect_noise((64, 64), 100).save(path)
        elif row_id != 6:
            Image.new("RGB", (30, 20), "red").save(path)
        rows.append((row_id, str(path), name, False))
    (tmp_path / "5.png").write_bytes(b"no image")
    return make_sample(rows, ["glass", "</script><b>", "paper"], {"glass": 40, "</script><b>": 1, "paper": 2345})


def plan(sample):
    """The rows of a sample as files of a plan."""
    uris = [row.uri for row in sorted(sample.rows, key=lambda row: row.row_id)]
    empty = pa.nulls(len(uris))
    columns = {"row_id": sorted(row.row_id for row in sample.rows), "uri": uris, "source": ["file"] * len(uris)}
    return pa.table(columns | dict.fromkeys(("member", "offset", "length", "size", "etag", "mtime_ns", "crc32"), empty))


def make(sample, limits=None):
    page, pictures = make_review_page(
        sample, sample.rows, plan(sample), limits or Limits(), None, "out/audit/sample.csv", "tlray audit out"
    )
    return page.decode(), pictures


def read_json(text, attributes):
    return [json.loads(found) for found in re.findall(rf'<script type="application/json" {attributes}>(.*?)</', text)]


def test_pictures_stand_in_the_order_of_the_rows(sample, monkeypatch):
    monkeypatch.setattr(review, "_PER_BLOCK", 2)
    text, pictures = make(sample)
    blocks = read_json(text, 'class="pictures"')
    assert [len(block) for block in blocks] == [2, 2, 1]
    uris = [uri for block in blocks for uri in block]
    assert [uri is None for uri in uris] == [row.row_id in (5, 6) for row in sample.rows]
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in uris if uri)
    assert pictures == 3


def test_images_above_the_limits_of_the_run_have_no_picture(sample):
    assert make(sample, Limits(max_pixels=30 * 20))[1] == 2
    assert make(sample, Limits(max_bytes=1000))[1] == 2


def test_pictures_end_where_the_page_is_full(sample, monkeypatch):
    monkeypatch.setattr(review, "_MAX_PICTURE_BYTES", 3000)
    text, pictures = make(sample)
    assert pictures == 1
    assert "4 rows have no picture here" in text


def test_the_script_gets_rows_and_classes(sample):
    (data,) = read_json(make(sample)[0], 'id="data"')
    assert [row["id"] for row in data["rows"]] == [2, 5, 6, 7, 9]
    assert [row["label"] for row in data["rows"]] == [0, 0, 1, 2, 2]
    assert data["rows"][2]["cells"] == ["6", sample.rows[2].uri, "</script><b>", "0.506000"]
    assert [one["name"] for one in data["classes"]] == sample.classes
    assert data["buttons"] == [0, 1, 2]
    assert data["form"] == "sample.csv"
    assert data["named_right"] is False


def test_the_most_frequent_classes_have_buttons(sample, monkeypatch):
    monkeypatch.setattr(review, "_MAX_BUTTONS", 2)
    (data,) = read_json(make(sample)[0], 'id="data"')
    assert data["buttons"] == [0, 2]


def test_answers_of_another_round_are_kept_apart():
    rows = [(1, "a", "glass", False), (2, "b", "glass", False)]
    keys = [
        review._describe(make_sample(rows, rounds=[number, number]), make_sample(rows, rounds=[number, number]).rows)
        for number in (1, 2)
    ]
    assert keys[0]["key"] != keys[1]["key"]
    assert keys[1]["form"] == "sample-2.csv"


def test_the_page_allows_its_own_script_and_no_names_get_out_of_it(sample):
    text, _ = make(sample)
    assert review._hash_script("alert(1)") == "sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI="
    script = "\n".join((files("tlray.report") / "templates" / name).read_text() for name in review.SCRIPTS)
    assert f"<script>{script}</script>" in text
    assert f"script-src '{review._hash_script(script)}'" in text
    assert text.count("<script") == 3
    assert "http:" not in text
    assert "https:" not in text
    parser = Parser()
    parser.feed(text)
    assert not any(name.startswith("on") for name, _ in parser.attributes)
    assert "innerHTML" not in script


def test_names_that_look_the_same_are_told_apart():
    assert review._list_shown(["a", "\u202eb", "\u200eb"]) == ["a", "\ufffdb (1)", "\ufffdb (2)"]
