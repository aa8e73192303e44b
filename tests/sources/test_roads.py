"""Whatever a file is, every road gives it the same answer, and what goes in comes out or is excluded."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.roads import ROADS, write_roads
from tlray.errors import FetchError, ImageError
from tlray.images.decode import decode
from tlray.output.plan import write_plan
from tlray.sources.listing import Selection, find_candidates
from tlray.sources.reading import read_rows

HEIC = Path(__file__).parents[1] / "images" / "data" / "turned.heic"
MAX_BYTES = 2**24


def encode(form, **options):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def make_files():
    twelve_bits = io.BytesIO()
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(twelve_bits, "TIFF")
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg, png = encode("JPEG"), encode("PNG")
    return {
        "plain.jpg": jpeg,
        "turned.tif": encode("TIFF", exif=exif),
        "photo.HEIC": HEIC.read_bytes(),
        "photo.jpg": HEIC.read_bytes(),
        "moving.webp": encode("WEBP"),
        "twelve.tif": twelve_bits.getvalue(),
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "damaged.png": png[:60] + b"\0\0" + png[62:],
        "empty.jpg": b"",
        "page.jpg": b"<!DOCTYPE html>",
        "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "a blank.png": png,
        "hash#tag.png": png,
        "per%20cent.png": png,
        "ümläut.png": png,
        "bare": png,
        "UPPER.PNG": png,
        "._fork.jpg": b"\0\5\x16\7",
        "Thumbs.db": b"\0",
        "notes.txt": b"words",
    }


def read_roads(files, root):
    """Answers by road and name: a code, or a digest of the pixels; and the number of excluded addresses by road."""
    answers, excluded = {}, {}
    for road, address in zip(ROADS, write_roads(files, root / "in"), strict=True):
        found = find_candidates([address], Selection(image_column="image"))
        plan = write_plan(str(root / road), found, {}, "image")
        rows = plan.read(0, plan.num_rows)
        names = rows["input_name"].to_pylist() if road in ("manifest", "d.parquet") else rows["uri"].to_pylist()
        names = [name.removeprefix(f"{address}#").removeprefix(f"{address}/") for name in names]
        answers[road] = {
            name: answer(fetched.data) for name, fetched in zip(names, read_rows(rows, MAX_BYTES, "image"), strict=True)
        }
        excluded[road] = plan.measures.num_excluded
        assert len(answers[road]) == plan.num_rows
    return answers, excluded


def answer(data):
    try:
        if isinstance(data, FetchError):
            raise data
        return hashlib.sha256(decode(data, 32).pixels.tobytes()).hexdigest()
    except (FetchError, ImageError) as error:
        return str(error.code)


@pytest.fixture(scope="module")
def roads(tmp_path_factory):
    return read_roads(make_files(), tmp_path_factory.mktemp("roads"))


@pytest.mark.parametrize("road", ROADS)
def test_every_road_gives_a_file_the_same_answer(roads, road):
    answers, excluded = roads
    named = answers["manifest"]  # where each line is a row, whatever its name
    assert len(named) == len(make_files())
    assert answers[road] == {name: named[name] for name in answers[road]}
    assert len(answers[road]) + excluded[road] == len(named)
    left_out = set() if road in ("manifest", "d.parquet") else {"._fork.jpg", "Thumbs.db", "notes.txt"}
    assert set(named) - set(answers[road]) == left_out


def test_what_can_be_read_right_is_read(roads):
    codes = {name: answer for name, answer in roads[0]["folder"].items() if len(answer) < 64}
    assert codes == {
        "twelve.tif": "UNSUPPORTED",
        "cut.jpg": "TRUNCATED",
        "damaged.png": "CORRUPT",
        "empty.jpg": "EMPTY",
        "page.jpg": "UNSUPPORTED",
        "drawing.png": "UNSUPPORTED",
    }
