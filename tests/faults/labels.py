"""Pictures to label, the command that labels them, and what it left, for the tests that break something in between."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

SABOTAGE = {"PYTHONPATH": str(Path(__file__).parent / "sabotage"), "RAY_ADDRESS": "local"}
BUCKET = "tlray-faults"
PROBABILITY_TOLERANCE = 1e-5


def encode(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def make_picture(seed, size=(64, 48)):
    """A picture with structure, so that its label doesn't hang on noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def make_png_header(width, height):
    """A PNG whose header tells of a size that its data doesn't have."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def make_options(bundle, output, *inputs, **more):
    options = ["predict", "--model", str(bundle), "--output", str(output), "--input", *map(str, inputs)]
    for name, value in more.items():
        options += ["--" + name.replace("_", "-"), *([] if value is None else [str(value)])]
    return options


def read_rows(output):
    """The labels by what follows the last slash of their address."""
    rows = pq.read_table(Path(output) / "labels").to_pylist()
    return {row["uri"].rpartition("/")[2]: row for row in rows}


def read_receipt(output):
    return json.loads((Path(output) / "_receipt.json").read_text())


def read_excluded(output):
    """Reasons by address."""
    table = pq.read_table(Path(output) / "_plan" / "excluded-00000.parquet")
    return dict(zip(table["uri"].to_pylist(), table["reason"].to_pylist(), strict=True))


def check_same_labels(ours, theirs):
    """The same rows with the same answers."""
    one, two = (pq.read_table(Path(output) / "labels").sort_by("row_id").to_pylist() for output in (ours, theirs))
    for row, twin in zip(one, two, strict=True):
        for name in ("row_id", "uri", "status", "predicted_index", "class_name"):
            assert row[name] == twin[name]
        assert row["probability"] == pytest.approx(twin["probability"], abs=PROBABILITY_TOLERANCE)
