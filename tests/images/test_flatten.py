import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.images.tiffs import make_ramp, make_tiff
from tlray.errors import Code, ImageError
from tlray.images import flatten
from tlray.images.decode import decode
from tlray.images.limits import Limits

SIZE = 48
RAMP = make_ramp(np.uint8, 255)


def read(data):
    return decode(data, SIZE).pixels


def refuse(data):
    with pytest.raises(ImageError) as caught:
        decode(data, SIZE)
    assert caught.value.code is Code.UNSUPPORTED
    return str(caught.value)


def check_ramp(data, tolerance=2):
    expected = read(make_tiff(RAMP)).astype(int)
    assert np.abs(read(data).astype(int) - expected).max() <= tolerance


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_is_turned_once(orientation, compression):
    upright = Image.fromarray(
        np.dstack([make_ramp(np.uint8, 255, 60, 40), make_ramp(np.uint8, 255, 40, 60).T] * 2)[:, :, :3]
    )
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's numbers of the transpositions
    stored = upright.transpose(Image.Transpose(back[orientation])) if orientation > 1 else upright
    data = encode(stored, "TIFF", compression=compression, tiffinfo={274: orientation})
    decoded = decode(data, SIZE)
    assert (decoded.width, decoded.height) == (60, 40)
    np.testing.assert_array_equal(decoded.pixels, read(encode(upright)))


# ---- ranges of samples


@pytest.mark.parametrize(
    "data",
    [
        make_tiff(make_ramp(np.uint16, 65535)),
        make_tiff(make_ramp(np.uint16, 4095), t281=4095),
        make_tiff(make_ramp(np.uint16, 1023), t281=1023),
        make_tiff(65535 - make_ramp(np.uint16, 65535), photometric=0),
        make_tiff(make_ramp(np.int16, 2000) - np.int16(1000), t340=-1000.0, t341=1000.0),
        make_tiff(make_ramp(np.int32, 2000), t281=2000),
        make_tiff(make_ramp(np.float32, 1)),
        make_tiff(make_ramp(np.float32, 300), t340=0.0, t341=300.0),
        make_tiff(make_ramp(np.uint16, 65535, bands=3)),
    ],
    ids=["u16", "12 bits", "10 bits", "white is 0", "i16", "i32", "f32", "f32 declared", "rgb16"],
)
def test_samples_are_scaled_by_their_declared_range(data):
    check_ramp(data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (make_tiff(make_ramp(np.uint16, 4095)), "16-bit unsigned samples is not read: they reach only to 4,095"),
        (make_tiff(make_ramp(np.uint16, 900)), "12 bits or fewer in 16"),
        (make_tiff(make_ramp(np.int16, 30000)), "16-bit signed samples is not read: no tag tells"),
        (make_tiff(make_ramp(np.int8, 100)), "8-bit signed samples is not read: they are signed"),
        (make_tiff(make_ramp(np.int32, 255)), "no tag tells which value is white"),
        (make_tiff(make_ramp(np.float32, 300) + 1), "they lie between 1 and 301"),
        (make_tiff(make_ramp(np.uint16, 4095, bands=3)), "they hold 12 bits or fewer in 16"),
        (make_tiff(make_ramp(np.uint16, 4095, bands=3), t281=4095), "they reach to 4,095, and only the high byte"),
    ],
)
def test_samples_of_an_unknown_range_are_not_read(data, expected):
    assert expected in refuse(data)


def test_a_black_picture_is_black():
    assert read(make_tiff(np.zeros((40, 60), np.uint16))).max() == 0


def test_values_that_are_no_numbers_are_black():
    samples = make_ramp(np.float32, 1).copy()
    samples[:, :30] = np.nan
    assert read(make_tiff(samples))[:, :20].max() == 0


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (make_tiff(make_ramp(np.uint8, 255, bands=8)), "a TIFF of 8 bands of 8-bit unsigned samples is not read"),
        (make_tiff(make_ramp(np.float32, 1, bands=3)), "a TIFF of 3 bands of 32-bit float samples is not read"),
        (make_tiff(make_ramp(np.uint8, 255, bands=3), t259=34887), "unsigned samples (LERC) is not read"),
        (make_tiff(make_ramp(np.uint8, 255, bands=3), t284=2, photometric=1), "a plane for each band is not read"),
        (make_tiff(RAMP, t50706=[1, 4, 0, 0]), "a DNG raw file is not read"),
        (make_tiff(RAMP, t254=1, t330=8), "a raw file whose first picture is a preview is not read"),
    ],
)
def test_other_tiffs_are_named(data, expected):
    assert expected in refuse(data)


# ---- alpha


@pytest.mark.parametrize(("extra", "transparent"), [((), False), ((0,), False), ((1,), True), ((2,), True)])
def test_a_fourth_band_is_alpha_only_where_it_is_declared(extra, transparent):
    pixels = np.dstack([np.full((40, 60, 3), 100, np.uint8), np.zeros((40, 60), np.uint8)])
    assert read(make_tiff(pixels, extra=extra)).min() == (255 if transparent else 100)


def test_strips_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    pictures = [
        encode(Image.fromarray(rng.integers(0, 256, (90, 120, 4), np.uint8))),
        encode(Image.fromarray(rng.integers(0, 256, (90, 120, 2), np.uint8))),
        encode(Image.fromarray(rng.integers(0, 65536, (90, 120), np.uint16))),
    ]
    whole = [read(data) for data in pictures]
    monkeypatch.setattr(flatten, "_STRIP_PIXELS", 700)
    for data, expected in zip(pictures, whole, strict=True):
        np.testing.assert_array_equal(read(data), expected)


def test_grey_with_alpha_agrees_with_its_rgba_twin():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (90, 120, 2), np.uint8))
    np.testing.assert_array_equal(read(encode(image)), read(encode(image.convert("RGBA"))))


MEASURE = """
import sys
from tlray.images.decode import decode
from tlray.images.limits import Limits
decode(open(sys.argv[1], "rb").read(), 48)
# of this program alone: ru_maxrss would tell of the one that started it too
print(int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) // 1024)
"""


@pytest.mark.parametrize(("color", "depth", "bytes_per_pixel"), [(4, 8, 2), (6, 8, 4), (0, 16, 2)])
def test_no_picture_takes_a_gibibyte(tmp_path, color, depth, bytes_per_pixel):
    side = 9_000
    packer = zlib.compressobj(1)
    pixels = [packer.compress(bytes(1 + side * bytes_per_pixel)) for _ in range(side)]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, color, 0, 0, 0))]
    chunks += [(b"IDAT", b"".join(pixels) + packer.flush()), (b"IEND", b"")]
    with (tmp_path / "large.png").open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, body in chunks:
            file.write(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)))
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "large.png")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 1024


def test_a_bomb_is_told_before_its_picture_is_loaded(monkeypatch):
    def load(image):
        raise AssertionError("the picture was loaded")

    data = encode(Image.new("RGB", (1200, 900)))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(ImageError) as caught:
        decode(data, SIZE, Limits(max_pixels=1_000_000))
    assert caught.value.code is Code.BOMB
