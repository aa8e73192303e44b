import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tlray.errors import Code, ImageError
from tlray.images.decode import decode
from tlray.images.limits import Limits

SIZE = 48


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_gradient(width: int = 120, height: int = 90) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8))


def get_code(data: bytes, **limits: int) -> Code:
    with pytest.raises(ImageError) as caught:
        decode(data, SIZE, Limits(**limits))
    return caught.value.code


def test_decodes_to_an_rgb_square_by_bilinear_resizing():
    image = make_gradient()
    decoded = decode(encode(image), SIZE)
    assert (decoded.width, decoded.height) == (120, 90)
    assert decoded.pixels.dtype == np.uint8
    expected = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(decoded.pixels, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_gives_the_upright_picture(orientation):
    upright = make_gradient()
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(back[orientation]) if orientation in back else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encode(stored, exif=exif), SIZE)
    assert (decoded.width, decoded.height) == upright.size
    np.testing.assert_array_equal(decoded.pixels, decode(encode(upright), SIZE).pixels)


def test_alpha_is_laid_over_white():
    clear = Image.new("RGBA", (60, 60), (255, 0, 0, 0))
    assert (decode(encode(clear), SIZE).pixels == 255).all()
    palette = Image.new("P", (60, 60), 0)
    palette.putpalette([0, 0, 255] * 256)
    assert (decode(encode(palette, transparency=0), SIZE).pixels == 255).all()


def test_modes_agree_with_their_rgb_twin():
    grey = make_gradient().convert("L")
    twin = decode(encode(grey.convert("RGB")), SIZE).pixels
    np.testing.assert_array_equal(decode(encode(grey), SIZE).pixels, twin)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    np.testing.assert_array_equal(decode(encode(deep), SIZE).pixels, twin)
    bits = grey.point(lambda value: 255 * (value > 99)).convert("1")
    expected = decode(encode(bits.convert("RGB")), SIZE).pixels
    np.testing.assert_array_equal(decode(encode(bits), SIZE).pixels, expected)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(kind):
    first, second = Image.new("RGB", (50, 50), "black"), Image.new("RGB", (50, 50), "white")
    data = encode(first, kind, save_all=True, append_images=[second], duration=100)
    assert decode(data, SIZE).pixels.max() < 8


def test_draft_is_close_to_full_decoding():
    image = make_gradient(640, 480)
    data = encode(image, "JPEG", quality=95)
    full = np.asarray(Image.open(io.BytesIO(data)).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    decoded = decode(data, SIZE)
    assert (decoded.width, decoded.height) == (640, 480)
    assert np.abs(decoded.pixels.astype(int) - full).mean() < 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_file_cut_short_is_truncated(kind, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8))
    data = encode(noise, kind)
    assert get_code(data[: int(len(data) * share)]) is Code.TRUNCATED


@pytest.mark.parametrize("length", [4, 12, 30, 100])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_cut_in_its_header_is_truncated(kind, length):
    assert get_code(encode(make_gradient(), kind)[:length]) is Code.TRUNCATED


def test_what_is_not_an_image_is_unsupported():
    assert get_code(b"<!DOCTYPE html><html></html>") is Code.UNSUPPORTED
    assert get_code(b"plain text") is Code.UNSUPPORTED


def test_no_bytes_are_empty():
    assert get_code(b"") is Code.EMPTY


def test_damage_inside_a_whole_file_is_corrupt():
    for kind in ("GIF", "WEBP", "PNG"):
        data = bytearray(encode(make_gradient(), kind))
        middle = len(data) // 2
        data[middle : middle + 40] = bytes(40)
        assert get_code(bytes(data)) is Code.CORRUPT


def test_limits_hold_before_decoding():
    data = encode(make_gradient())
    assert get_code(data, max_bytes=100) is Code.TOO_LARGE
    with pytest.raises(ImageError) as caught:
        decode(data, SIZE, Limits(max_pixels=1000))
    assert caught.value.code is Code.BOMB
    assert (caught.value.width, caught.value.height) == (120, 90)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(13_000, 13_000), (40_000, 25_000)])
def test_a_header_of_a_bomb_is_refused(width, height):
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    assert get_code(data) is Code.BOMB


def test_the_awkward_files_come_out_as_they_should(test_data):
    codes: dict[str, int] = {}
    for path in sorted((test_data / "dirty").iterdir()):
        try:
            decode(path.read_bytes(), SIZE)
            code = "ok"
        except ImageError as error:
            code = error.code.value
        codes[code] = codes.get(code, 0) + 1
    assert codes == {"ok": 33, "EMPTY": 1, "UNSUPPORTED": 1, "TRUNCATED": 4}
