"""TIFFs of any samples and tags, which Pillow alone would not write."""

import struct

import numpy as np

_FORMATS = {"u": 1, "i": 2, "f": 3}


def make_tiff(samples, *, photometric=None, extra=(), **tags):
    """A little-endian TIFF of samples `[H, W]` or `[H, W, C]`, in one strip.

    Args:
        tags: further tags by number, as `t281=4095`; None leaves one of the usual tags out.
    """
    array = samples if samples.ndim == 3 else samples[:, :, None]
    height, width, bands = array.shape
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    values = {
        256: width, 257: height, 258: [array.dtype.itemsize * 8] * bands, 259: 1,
        262: photometric if photometric is not None else (2 if bands >= 3 else 1), 273: 8, 277: bands, 278: height,
        279: len(data), 339: [_FORMATS[array.dtype.kind]] * bands,
    }  # fmt: skip
    if extra:
        values[338] = list(extra)
    values |= {int(name[1:]): value for name, value in tags.items()}
    entries = sorted((tag, value) for tag, value in values.items() if value is not None)
    start = 8 + len(data) + len(data) % 2
    outside_at = start + 2 + 12 * len(entries) + 4
    folder, outside = struct.pack("<H", len(entries)), b""
    for tag, value in entries:
        listed = value if isinstance(value, list) else [value]
        floats = any(isinstance(one, float) for one in listed)
        packed = struct.pack(f"<{len(listed)}{'f' if floats else 'I'}", *listed)
        if len(packed) > 4:
            outside += packed
            packed = struct.pack("<I", outside_at + len(outside) - len(packed))
        folder += struct.pack("<HHI", tag, 11 if floats else 4, len(listed)) + packed
    return b"II*\0" + struct.pack("<I", start) + data + b"\0" * (len(data) % 2) + folder + bytes(4) + outside


def make_ramp(kind, high, width=60, height=40, bands=None):
    """Samples from 0 to `high` from left to right."""
    row = np.linspace(0, high, width)
    shape = (height, width) if bands is None else (height, width, bands)
    return np.broadcast_to(row if bands is None else row[:, None], shape).astype(kind)
