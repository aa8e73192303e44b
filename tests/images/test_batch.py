import io

import numpy as np
import pytest
from PIL import Image

from tlray.errors import Code, FetchError
from tlray.images.batch import decode_images
from tlray.images.decode import decode
from tlray.images.limits import Limits

SIZE = 8
LIMITS = Limits()


def encode(colour, width=20, height=10):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


RED, GREEN = encode((255, 0, 0)), encode((0, 255, 0), 12, 30)


def test_images_are_decoded_in_order():
    batch = decode_images([RED, GREEN], 2, SIZE, LIMITS)
    assert (batch.pixels.shape, batch.pixels.dtype) == ((2, SIZE, SIZE, 3), np.uint8)
    assert (batch.pixels[0] == (255, 0, 0)).all()
    assert (batch.pixels[1] == (0, 255, 0)).all()
    assert (batch.status, batch.errors) == (["ok", "ok"], [None, None])
    assert (batch.widths, batch.heights) == ([20, 12], [10, 30])


def test_a_faulty_image_does_not_affect_the_others():
    denied = FetchError(Code.DENIED, "access denied")
    batch = decode_images([RED, denied, b"", RED[:45], GREEN], 5, SIZE, LIMITS)
    assert batch.status == ["ok", "DENIED", "EMPTY", "TRUNCATED", "ok"]
    assert batch.errors[0] is batch.errors[4] is None
    assert batch.errors[1:3] == ["access denied", "the file holds 0 bytes"]
    assert batch.errors[3].startswith("PNG cannot be decoded: ")
    assert not batch.pixels[1:4].any()
    np.testing.assert_array_equal(batch.pixels[4], decode(GREEN, SIZE).pixels)


def test_sizes_are_kept_where_the_header_was_read():
    limits = Limits(max_pixels=359)
    batch = decode_images([RED, GREEN, FetchError(Code.TIMEOUT, "timeout"), b"text"], 4, SIZE, limits)
    assert batch.status == ["ok", "BOMB", "TIMEOUT", "UNSUPPORTED"]
    assert (batch.widths, batch.heights) == ([20, 12, None, None], [10, 30, None, None])
    assert not batch.pixels[1:].any()


@pytest.mark.parametrize(
    ("limits", "status"),
    [
        (Limits(max_bytes=len(RED), max_pixels=200), "ok"),
        (Limits(max_bytes=len(RED) - 1), "TOO_LARGE"),
        (Limits(max_pixels=199), "BOMB"),
    ],
)
def test_an_image_may_be_exactly_as_large_as_its_limits(limits, status):
    assert decode_images([RED], 1, SIZE, limits).status == [status]


def test_errors_carry_no_secrets():
    error = FetchError(Code.DENIED, "https://user:hunter2@host/x?X-Amz-Signature=abc was refused")
    batch = decode_images([error], 1, SIZE, LIMITS)
    assert batch.errors == ["https://***@host/x?X-Amz-Signature=*** was refused"]


def test_no_images_are_an_empty_batch():
    batch = decode_images([], 0, SIZE, LIMITS)
    assert batch.pixels.shape == (0, SIZE, SIZE, 3)
    assert batch.status == batch.errors == batch.widths == batch.heights == []
