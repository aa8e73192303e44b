import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlray.errors import Code, ImageError
from tlray.images import formats
from tlray.images.decode import decode
from tlray.images.formats import EXTENSIONS, find_unread_kind, sniff, strip_text

SIZE = 48
DATA = Path(__file__).parent / "data"
"""HEIC files: four rectangles, drawn for these tests and encoded by libheif's heif-enc 1.15; `turned.heic` is stored a
quarter turned, with an EXIF orientation of 6 and an `irot` box that says the same, as phones write them."""


def make_picture():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((64, 48), Image.Resampling.BICUBIC)


def encode(kind="JPEG", **options):
    buffer = io.BytesIO()
    make_picture().save(buffer, kind, **options)
    return buffer.getvalue()


def refuse(data):
    with pytest.raises(ImageError) as caught:
        decode(data, SIZE)
    return caught.value.code, str(caught.value)


def change_frame(marker=0xC0, bits=8):
    """A JPEG whose frame header tells of another process or depth."""
    data = bytearray(encode())
    place = data.index(b"\xff\xc0")
    data[place + 1], data[place + 4] = marker, bits
    return bytes(data)


# ---- HEIC


def test_heic_is_read():
    decoded = decode((DATA / "plain.heic").read_bytes(), SIZE)
    assert (decoded.width, decoded.height) == (64, 48)
    corners = decoded.pixels[[5, 5, 40, 40], [5, 40, 5, 40]]
    expected = [(40, 200, 40), (200, 40, 40), (200, 40, 40), (40, 40, 200)]
    assert np.abs(corners.astype(int) - expected).max() < 12


def test_a_heic_is_turned_once():
    plain, turned = (decode((DATA / f"{name}.heic").read_bytes(), SIZE) for name in ("plain", "turned"))
    assert (turned.width, turned.height) == (64, 48)
    assert np.abs(turned.pixels.astype(int) - plain.pixels).mean() < 5


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_heic_cut_short_is_truncated(share):
    data = (DATA / "plain.heic").read_bytes()
    assert refuse(data[: int(len(data) * share)])[0] is Code.TRUNCATED


# ---- kinds that are not read


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (change_frame(bits=12), "a JPEG of 12 bits a sample"),
        (change_frame(0xC3, 16), "a lossless JPEG of 16 bits a sample"),
        (change_frame(0xF7), "a JPEG-LS image"),
        (change_frame(0xC5), "a hierarchical JPEG"),
        (b"\xff\x0a" + bytes(100), "a JPEG XL image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100), "a JPEG XL image"),
        (b"II\xbc\x01" + bytes(100), "a JPEG XR image"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG image"),
        (b"\xef\xbb\xbf<svg/>", "an SVG image"),
        (b"\0\0\0\x18ftypcrx " + bytes(100), "a Canon raw file"),
        (b"II*\0\x10\0\0\0CR\x02\0" + bytes(100), "a Canon raw file"),
        (b"FUJIFILMCCD-RAW " + bytes(100), "a Fujifilm raw file"),
        (b"\0\0\0\x18ftypmp42" + bytes(100), "a video"),
        (bytes(128) + b"DICM" + bytes(100), "a DICOM file"),
        (b"%PDF-1.7\n" + bytes(100), "a PDF file"),
    ],
)
def test_kinds_that_are_not_read_are_named(data, kind):
    assert find_unread_kind(data) == kind
    assert refuse(data) == (Code.UNSUPPORTED, f"{kind} is not read; save it as 8-bit JPEG or PNG")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"<!DOCTYPE html><html></html>", "it looks like HTML or XML"),
        (b"plain text", "it looks like text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer"),
        (bytes(range(255, 100, -1)), "unknown binary data"),
    ],
)
def test_what_is_no_image_is_described(data, text):
    code, message = refuse(data)
    assert code is Code.UNSUPPORTED
    assert text in message


def test_images_that_are_read_are_of_no_other_kind():
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000"):
        data = encode(kind)
        assert find_unread_kind(data) is None, kind
        assert sniff(data) == kind
        assert decode(data, SIZE).width == 64
    assert {".jpg", ".heic", ".avif", ".tiff"} <= EXTENSIONS


# ---- PNG's metadata


def add_chunk(data, name, body, *, before=b"IDAT", wrong_checksum=False):
    place = data.index(before) - 4
    checksum = zlib.crc32(name + body) ^ wrong_checksum
    return data[:place] + struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum) + data[place:]


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize(
    ("name", "body", "wrong"),
    [
        (b"zTXt", b"key\0\0" + zlib.compress(bytes(20 * 2**20)), False),
        (b"iTXt", b"key\0\1\0\0\0" + zlib.compress(bytes(20 * 2**20)), False),
        (b"tEXt", b"key\0value", True),
        (b"zTXt", b"key\0\0no zlib stream", False),
    ],
)
def test_large_or_damaged_text_in_a_png_does_not_matter(before, name, body, wrong):
    plain = encode("PNG")
    data = add_chunk(plain, name, body, before=before, wrong_checksum=wrong)
    np.testing.assert_array_equal(decode(data, SIZE).pixels, decode(plain, SIZE).pixels)
    assert strip_text(data) == plain


def test_a_damaged_picture_with_text_is_corrupt():
    data = bytearray(add_chunk(encode("PNG"), b"tEXt", b"key\0value"))
    place = data.index(b"IDAT")
    data[place + 20 : place + 60] = bytes(40)
    assert refuse(bytes(data))[0] is Code.CORRUPT


def test_what_follows_the_end_of_a_png_costs_nothing(monkeypatch):
    """Zeros, as after a download that was never finished, or anything else."""
    chunks = []
    real = formats._iter_chunks
    monkeypatch.setattr(
        formats, "_iter_chunks", lambda data: (chunks.append(chunk[0]) or chunk for chunk in real(data))
    )
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    whole = buffer.getvalue()
    for data in (whole + bytes(12_000), whole + b"\0\0\0\0abcd\0\0\0\0" * 1000, whole[:-12] + bytes(12_000)):
        assert decode(data, 8).pixels[0, 0].tolist() == [255, 0, 0]
    assert len(chunks) <= 20
