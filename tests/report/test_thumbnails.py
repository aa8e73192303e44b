import base64
import io

import pytest
from PIL import Image

from tests.factories import make_files
from tests.report.pages import make_jpeg
from tlray.images.limits import Limits
from tlray.report.thumbnails import make_reader, make_thumbnail, make_thumbnails


def open_uri(uri):
    head, _, encoded = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


@pytest.mark.parametrize(
    ("size", "expected"), [((320, 120), (96, 36)), ((120, 320), (36, 96)), ((10, 5), (96, 48)), ((2000, 1), (96, 1))]
)
def test_a_thumbnail_keeps_the_shape_of_its_image(size, expected):
    assert open_uri(make_thumbnail(make_jpeg(*size))).size == expected


def test_a_thumbnail_keeps_the_colour_of_its_image():
    assert open_uri(make_thumbnail(make_jpeg())).getpixel((48, 18)) == pytest.approx((200, 90, 20), abs=4)


def test_bytes_that_are_not_an_image_have_no_thumbnail():
    assert make_thumbnail(b"no image") is None


def test_thumbnails_stop_at_their_size_limit_and_read_each_image_once():
    taken = []

    def read(keys):
        for key in keys:
            taken.append(key)
            yield None if key == 1 else make_jpeg()

    size = len(make_thumbnail(make_jpeg()))
    thumbnails = make_thumbnails([0, 1, 2, 0, 3, 4, 5], read, max_bytes=2 * size)
    assert sorted(thumbnails.uris) == [0, 2]
    assert thumbnails.full
    assert taken == [0, 1, 2, 3]
    assert thumbnails.get(1) is None
    assert open_uri(thumbnails.get(2)).size == (96, 36)
    assert not make_thumbnails([0, 2], read, max_bytes=2 * size).full


def test_no_keys_read_nothing():
    def read(keys):
        raise AssertionError

    assert make_thumbnails([], read).uris == {}


def test_files_are_read_in_order_and_missing_ones_are_none(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "b.jpg").write_bytes(b"b")
    uris = [str(tmp_path / name) for name in ("b.jpg", "missing.jpg", "a.jpg")]
    assert list(make_reader(make_files(sorted(uris)), Limits())(uris)) == [b"b", None, b"a"]
