"""Whole files of kinds that few programs write, and files cut where no checksum tells."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.images.tiffs import make_ramp, make_tiff
from tlray.errors import Code, ImageError
from tlray.images.decode import decode
from tlray.images.formats import has_all_rows

SIZE = 16
WHITE = 255
PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
"""First column and row of each pass of an interlaced PNG, and the steps to the next ones."""


def make_png(rows, bits, kind, width, *, height=None, interlaced=0, key=None, kept=None, apple=False):
    """A PNG of packed rows, each without its filter; `kept` rows of them only, or as Apple's tools pack it."""
    packer = zlib.compressobj(wbits=-15 if apple else 15)
    packed = packer.compress(b"".join(b"\0" + row for row in rows[:kept])) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height or len(rows), bits, kind, 0, 0, interlaced)
    chunks = [
        (b"CgBI", bytes(4) if apple else None),
        (b"IHDR", header),
        (b"tRNS", key),
        (b"IDAT", packed),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
        if data is not None
    )


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(data):
    return decode(data, SIZE).pixels


def refuse(data):
    with pytest.raises(ImageError) as caught:
        decode(data, SIZE)
    return caught.value.code, str(caught.value)


@pytest.mark.parametrize(("bits", "key"), [(1, 0), (1, 1), (2, 0), (2, 1), (2, 3), (4, 5), (8, 77)])
def test_a_transparent_grey_of_few_bits_is_white(bits, key):
    row = np.full(SIZE * bits // 8, sum(key << shift for shift in range(0, 8, bits)), np.uint8).tobytes()
    assert (read(make_png([row] * SIZE, bits, 0, SIZE, key=struct.pack(">H", key))) == WHITE).all()
    other = (key + 1) % 2**bits
    kept = read(make_png([row] * SIZE, bits, 0, SIZE, key=struct.pack(">H", other)))
    assert (kept == key * 255 // (2**bits - 1)).all()


def test_a_transparent_colour_of_16_bits_is_not_read():
    png = make_png([bytes(SIZE * 6)] * SIZE, 16, 2, SIZE, key=struct.pack(">3H", 0x1234, 0, 0))
    code, message = refuse(png)
    assert code is Code.UNSUPPORTED
    assert "16 bits a sample with a transparent colour" in message


@pytest.mark.parametrize(("bits", "kind", "samples"), [(8, 0, 1), (8, 2, 3), (16, 6, 4), (1, 0, 1)])
def test_a_png_whose_pixels_end_early_is_truncated(bits, kind, samples):
    rows = [b"\xaa" * (SIZE * samples * bits // 8)] * SIZE
    assert read(make_png(rows, bits, kind, SIZE)).shape == (SIZE, SIZE, 3)
    for kept in (1, 8, 15):
        assert refuse(make_png(rows, bits, kind, SIZE, kept=kept))[0] is Code.TRUNCATED


def list_passes(width, height, passes, value):
    """The rows of white or black grey pixels, pass by pass."""
    counts = [(len(range(x, width, dx)), len(range(y, height, dy))) for x, y, dx, dy in passes]
    return [bytes([value]) * columns for columns, rows in counts if columns for _ in range(rows)]


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (16, 16), (17, 5), (8, 1)])
@pytest.mark.parametrize("interlaced", [0, 1])
def test_rows_are_counted_pass_by_pass(size, interlaced):
    rows = list_passes(*size, PASSES if interlaced else [(0, 0, 1, 1)], 0)
    assert has_all_rows(make_png(rows, 8, 0, size[0], height=size[1], interlaced=interlaced))
    assert not has_all_rows(make_png(rows[:-1], 8, 0, size[0], height=size[1], interlaced=interlaced))


def test_an_interlaced_png_without_its_last_pass_is_truncated():
    whole, cut = (
        make_png(list_passes(17, 17, passes, WHITE), 8, 0, 17, height=17, interlaced=1)
        for passes in (PASSES, PASSES[:-1])
    )
    assert (read(whole) == WHITE).all()
    assert refuse(cut)[0] is Code.TRUNCATED


def test_a_small_first_frame_lies_on_white():
    frame = Image.new("P", (8, 4), 1)
    frame.putpalette([255, 0, 0, 0, 0, 255] + [0] * 762)
    data = bytearray(encode(frame, "GIF"))
    data[6:10] = struct.pack("<2H", 16, 16)  # the canvas
    place = data.index(b"\x2c")
    data[place + 1 : place + 5] = struct.pack("<2H", 4, 8)
    pixels = read(bytes(data)).copy()
    assert (pixels[8:12, 4:12] == (0, 0, 255)).all()
    pixels[8:12, 4:12] = WHITE
    assert (pixels == WHITE).all()


def test_unsigned_samples_of_32_bits_reach_above_signed_ones():
    samples = np.repeat(np.array([[0], [2**31], [2**32 - 1]], np.uint32), 3, axis=1)
    pixels = decode(make_tiff(samples, t281=2**32 - 1), 3).pixels
    assert pixels[:, 0, 0].tolist() == [0, 127, 255]


def test_floats_outside_0_to_1_are_not_read():
    header = b"Pf\n16 16\n-1.0\n"
    assert (read(header + np.full(256, 0.5, "<f4").tobytes()) == 127).all()
    code, message = refuse(header + np.full(256, 50, "<f4").tobytes())
    assert code is Code.UNSUPPORTED
    assert "nothing tells which value is white" in message


def test_floats_of_which_none_is_a_number_are_not_read():
    samples = np.full((8, 8), np.nan, np.float32)
    assert "none of them is a number" in refuse(make_tiff(samples))[1]
    samples[0] = 0.5
    assert read(make_tiff(samples))[0, 0, 0] == 127


def test_premultiplied_grey_is_laid_over_white():
    samples = np.dstack([make_ramp(np.uint8, 100), np.full_like(make_ramp(np.uint8, 100), 100)])
    pixels = read(make_tiff(samples, extra=(1,)))
    assert (pixels >= 255 - 100).all()


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("cut", [1, 5, 200])
def test_a_tiff_cut_anywhere_is_truncated(compression, cut):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    data = encode(Image.fromarray(noise), "TIFF", compression=compression)
    assert refuse(data[:-cut])[0] is Code.TRUNCATED


@pytest.mark.parametrize("tag", [273, 277, 258])
def test_a_tiff_whose_numbers_are_text_is_refused(tag):
    data = bytearray(make_tiff(make_ramp(np.uint8, 255)))
    place = data.index(struct.pack("<HH", tag, 4), 8)
    data[place + 2 : place + 4] = struct.pack("<H", 2)
    assert refuse(bytes(data))[0] in (Code.CORRUPT, Code.UNSUPPORTED, Code.TRUNCATED)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_jpeg_2000_cut_short_is_truncated(share):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = encode(Image.fromarray(noise), "JPEG2000", irreversible=False)
    assert refuse(data[: int(len(data) * share)])[0] is Code.TRUNCATED


@pytest.mark.parametrize("side", [16, 64])
def test_a_lossless_jpeg_is_read_at_any_size(side):
    """A grey one whose samples are as predicted, each by one bit; libjpeg makes none smaller while it decodes."""
    frame = b"\xff\xc3" + struct.pack(">HBHHBBBB", 11, 8, side, side, 1, 1, 0x11, 0)
    table = b"\xff\xc4" + struct.pack(">HB", 20, 0) + bytes([1, *[0] * 15]) + b"\0"
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 0, 0) + bytes(side * side // 8)
    assert (read(b"\xff\xd8" + frame + table + scan + b"\xff\xd9") == 128).all()


def test_kinds_that_are_not_read_are_named():
    apple = make_png([bytes(SIZE)] * SIZE, 8, 0, SIZE, apple=True)
    code, message = refuse(apple)
    assert (code, "CgBI" in message) == (Code.UNSUPPORTED, True)
    parted = make_tiff(
        make_ramp(np.uint8, 255, 24, 16), photometric=6, t277=3, t258=[8, 8, 8], t257=32, t278=32, t530=[2, 2]
    )
    assert refuse(parted)[0] is Code.UNSUPPORTED
    masks = bytearray(encode(Image.new("RGB", (SIZE, SIZE)), "BMP"))
    masks[10:14] = struct.pack("<I", 66)
    masks[28:30], masks[30:34] = struct.pack("<H", 16), struct.pack("<I", 3)
    masks[54:54] = struct.pack("<3I", 0xF00, 0xF0, 0xF)
    assert refuse(bytes(masks))[0] is Code.UNSUPPORTED
