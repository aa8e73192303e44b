"""Damaged files of every format, by seeded mutations, each format in a process of its own."""

import json
import subprocess
import sys

import pytest

FORMATS = ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000", "PPM"]

FUZZ = """
import io, json, signal, sys
from pathlib import Path
import numpy as np
from PIL import Image, ImageOps
from tlray.errors import ImageError
from tlray.images.decode import decode
from tlray.images.formats import FORMATS, sniff

kind, count = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(sum(map(ord, kind)))
small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((64, 48), Image.Resampling.BICUBIC)
if kind == "HEIF":
    whole = Path(sys.argv[3]).read_bytes()
else:
    buffer = io.BytesIO()
    small.save(buffer, kind)
    whole = buffer.getvalue()

def mutate(data):
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        start, length = int(rng.integers(len(data))), int(rng.integers(1, 40))
        match rng.integers(5):
            case 0:
                del data[max(start, 16):]
            case 1:
                data[start] ^= 1 << rng.integers(8)
            case 2:
                data[start : start + length] = rng.bytes(length)
            case 3:
                data[start : start] = data[int(rng.integers(len(data))) :][:length]
            case 4:
                del data[start : start + length]
        if not data:
            return b"x"
    return bytes(data)

def check_pixels(data, pixels):
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    plain = image.mode in ("RGB", "L") and not image.has_transparency_data and "icc_profile" not in image.info
    plain = plain and not (image.format == "JPEG" and min(image.size) >= 64)  # which are decoded in another scale
    image.load()
    if plain and image.format not in ("TIFF", "MPO"):
        upright = ImageOps.exif_transpose(image)
        expected = upright.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
        assert np.array_equal(np.asarray(expected), pixels), "other pixels than Pillow's"

codes = {}
for number in range(count):
    data = mutate(whole)
    signal.alarm(5)
    try:
        decoded = decode(data, 32)
    except ImageError as error:
        code = str(error.code)
        assert len(str(error)) < 500, str(error)
    else:
        code = "ok"
        check_pixels(data, decoded.pixels)
    signal.alarm(0)
    codes[code] = codes.get(code, 0) + 1
# of this program alone: ru_maxrss would tell of the one that started it too
peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024
print(json.dumps({"codes": codes, "peak": peak}))
"""


@pytest.mark.parametrize("count", [300, pytest.param(3000, marks=pytest.mark.chaos)])
@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_are_told_and_never_wrong_pictures(kind, count, request):
    heic = request.path.with_name("data") / "plain.heic"
    command = [sys.executable, "-W", "ignore", "-c", FUZZ, kind, str(count), str(heic)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    told = json.loads(result.stdout.splitlines()[-1])
    assert sum(told["codes"].values()) == count
    assert len(told["codes"]) > 1
    assert told["peak"] < 1024
