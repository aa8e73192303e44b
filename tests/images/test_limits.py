import pytest
from PIL import Image

from tlray.images.limits import MAX_BYTES, MAX_PIXELS, PILLOW_MAX_PIXELS, Limits


def test_defaults_are_the_named_limits():
    assert Limits() == Limits(max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS)
    assert (MAX_BYTES, MAX_PIXELS) == (67_108_864, 100_000_000)


def test_pillows_limit_is_pillows():
    assert PILLOW_MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS
    Image._decompression_bomb_check((PILLOW_MAX_PIXELS // 2, 1))
    with pytest.raises(Image.DecompressionBombError):
        Image._decompression_bomb_check((PILLOW_MAX_PIXELS + 1, 1))
    assert MAX_PIXELS <= PILLOW_MAX_PIXELS
