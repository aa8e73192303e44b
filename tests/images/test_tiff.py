import numpy as np
import pytest

from tests.images.tiffs import make_ramp, make_tiff
from tlray.images import tiff

RAMP = make_ramp(np.uint16, 65535)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (make_tiff(RAMP), "a TIFF of 16-bit unsigned samples"),
        (make_tiff(make_ramp(np.float32, 1, bands=5)), "a TIFF of 5 bands of 32-bit float samples"),
        (make_tiff(make_ramp(np.int8, 1, bands=3), t284=2, t259=34887),
         "a TIFF of 3 bands of 8-bit signed samples, a plane for each band (LERC)"),
        (make_tiff(RAMP, t259=60_000), "a TIFF of 16-bit unsigned samples (compression 60000)"),
    ],
)  # fmt: skip
def test_samples_and_compression_are_described(data, text):
    assert tiff.describe(tiff.read_tags(data)) == text


def test_only_compressions_of_every_build_count_as_read():
    tags = tiff.read_tags(make_tiff(RAMP))
    assert tiff.is_read(tags)
    assert not tiff.is_read({**tags, 259: 50001})


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, None),
        ({281: (4095,)}, (0, 4095)),
        ({280: 100, 281: 4095}, (100, 4095)),
        ({281: 255, 340: -1.0, 341: 1.0}, (-1, 1)),
        ({280: 9, 281: 9}, None),
    ],
)
def test_ranges_are_those_that_the_tags_declare(tags, expected):
    assert tiff.get_range(tags) == expected


@pytest.mark.parametrize("data", [b"", b"II*\0", make_tiff(RAMP)[:60], b"II*\0" + b"\xff" * 100])
def test_damaged_directories_have_no_tags(data):
    assert tiff.read_tags(data) is None
