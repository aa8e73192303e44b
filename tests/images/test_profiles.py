import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from tlray.images import flatten
from tlray.images.decode import decode

SIZE = 48


def make_profile(name):
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


def turn_channels(profile):
    """A profile whose red, green and blue are sRGB's green, blue and red: its three colorant tags change places."""
    data = bytearray(profile)
    count = int.from_bytes(data[128:132], "big")
    where = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green, blue = (bytes(data[where[name] + 4 : where[name] + 12]) for name in (b"rXYZ", b"gXYZ", b"bXYZ"))
    for name, place in ((b"rXYZ", green), (b"gXYZ", blue), (b"bXYZ", red)):
        data[where[name] + 4 : where[name] + 12] = place
    return bytes(data)


SRGB = make_profile("sRGB")
TURNED = turn_channels(SRGB)


def make_picture():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((120, 90), Image.Resampling.BICUBIC)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(data):
    return decode(data, SIZE).pixels.astype(int)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_profile_gives_the_colours_that_a_browser_shows(kind):
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    image = make_picture()
    red, green, blue = image.split()
    twin = read(encode(image, kind, **options))
    turned = Image.merge("RGB", (green, blue, red))  # what the turned profile brings back
    assert np.abs(read(encode(turned, kind, icc_profile=TURNED, **options)) - twin).mean() < 4


def test_srgb_under_any_name_changes_nothing():
    data = encode(make_picture())
    np.testing.assert_array_equal(read(encode(make_picture(), icc_profile=SRGB)), read(data))
    assert flatten._make_transform(SRGB, "RGB") is None
    assert flatten._make_transform(TURNED, "RGB") is not None


@pytest.mark.parametrize("profile", [b"", b"no profile", SRGB[:200], make_profile("LAB"), b"\0" * (5 * 2**20)], ids=len)
def test_a_profile_that_cannot_be_used_is_left_out(profile):
    np.testing.assert_array_equal(read(encode(make_picture(), icc_profile=profile)), read(encode(make_picture())))


def test_modes_other_than_the_profiles_are_plain():
    image = make_picture()
    for mode in ("L", "CMYK"):
        assert flatten.convert_to_srgb(image.convert(mode), TURNED).mode == "RGB"
        expected = np.asarray(image.convert(mode).convert("RGB"))
        np.testing.assert_array_equal(np.asarray(flatten.convert_to_srgb(image.convert(mode), TURNED)), expected)


def test_alpha_and_palettes_have_profiles_too():
    image = make_picture()
    red, green, blue = image.split()
    turned = Image.merge("RGB", (green, blue, red))
    half = Image.new("L", image.size, 128)
    clear, twin = turned.copy(), image.copy()
    clear.putalpha(half)
    twin.putalpha(half)
    assert np.abs(read(encode(clear, icc_profile=TURNED)) - read(encode(twin))).mean() < 4
    assert np.abs(read(encode(turned.quantize(64), icc_profile=TURNED)) - read(encode(image))).mean() < 12


def test_a_transform_is_made_once_for_a_profile():
    flatten._make_transform.cache_clear()
    for _ in range(5):
        read(encode(make_picture(), icc_profile=TURNED))
    assert flatten._make_transform.cache_info()[:2] == (4, 1)
