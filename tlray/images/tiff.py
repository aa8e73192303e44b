"""TIFF: what a file holds, by its first directory, and the range of its samples (TIFF 6.0; DNG 1.7; TIFF/EP)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal

from PIL import TiffImagePlugin

_NEW_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR = 254, 258, 259, 262, 277, 284
_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES, _SUBSAMPLING = 273, 279, 324, 325, 530
_MIN_SAMPLE, _MAX_SAMPLE, _SUB_FOLDERS, _EXTRA, _FORMAT, _S_MIN, _S_MAX, _DNG = 280, 281, 330, 338, 339, 340, 341, 50706

_ALPHA = (1, 2)
_PREVIEW = 1
_FORMATS = {1: "unsigned", 2: "signed", 3: "float", 5: "complex", 6: "complex float"}
_COMPRESSIONS = {
    1: "", 2: "CCITT", 3: "CCITT G3", 4: "CCITT G4", 5: "LZW", 6: "JPEG", 7: "JPEG", 8: "Deflate", 32773: "PackBits",
    32946: "Deflate", 33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC", 34892: "lossy JPEG",
    34925: "LZMA", 34933: "PNG", 50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
_SIZES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value by its type, where they are more than one."""

_READ = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000)
"""Compressions that every build of Pillow reads."""

_YCBCR = 6
_JPEGS = (6, 7)

Tags = Mapping[int, Any]


def read_tags(data: bytes) -> Tags | None:
    """Return the tags of the first directory, None if it is damaged or missing."""
    try:
        is_big = data[2:4] in (b"+\x00", b"\x00+")
        folder = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if is_big else 8])
        file = io.BytesIO(data)
        file.seek(folder.next)
        folder.load(file)
        return dict(folder) if _SAMPLES in folder or _BITS in folder or _PHOTOMETRIC in folder else None
    except Exception:  # Pillow's parser raises anything on hostile bytes
        return None


def is_cut_short(data: bytes) -> bool | None:
    """Return whether the first directory, or pixels to which it points, lie behind the end; None if nothing tells."""
    if _find_end(data) > len(data):
        return True
    tags = read_tags(data) or {}
    ends = [
        start + length
        for offsets, lengths in ((_STRIPS, _STRIP_BYTES), (_TILES, _TILE_BYTES))
        for start, length in zip(_list(tags, offsets), _list(tags, lengths), strict=False)
    ]
    return any(end > len(data) for end in ends) if ends else None


def _find_end(data: bytes) -> int:
    """Return where the first directory and the values that it points to end."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    is_big = data[2:4] in (b"+\x00", b"\x00+")
    width, count_bytes = (8, 8) if is_big else (4, 2)

    def read(start: int, length: int) -> int:
        return int.from_bytes(data[start : start + length], order)

    first = read(width, width) + count_bytes
    end = first
    for _ in range(read(first - count_bytes, count_bytes)):
        if end > len(data):
            break
        size = _SIZES.get(read(end + 2, 2), 1) * read(end + 4, width)
        if size > width and (outside := read(end + 4 + width, width) + size) > len(data):
            return outside
        end += 4 + 2 * width
    return end + width


def find_raw_kind(tags: Tags) -> str | None:
    """Return what a camera's raw file is; None for a picture."""
    if _DNG in tags:
        return "a DNG raw file"
    if _get(tags, _NEW_SUBFILE, 0) & _PREVIEW and _SUB_FOLDERS in tags:
        return "a raw file whose first picture is a preview"
    return None


def describe(tags: Tags) -> str:
    """Describe the samples and the compression, as in "a TIFF of 8 bands of 16-bit unsigned samples (LERC)"."""
    bits = _get(tags, _BITS, 1)
    form = _FORMATS.get(_get(tags, _FORMAT, 1), "unknown")
    bands = _get(tags, _SAMPLES, 1)
    planar = ", a plane for each band" if _get(tags, _PLANAR, 1) == 2 else ""
    number = _get(tags, _COMPRESSION, 1)
    packed = _COMPRESSIONS.get(number, f"compression {number}")
    of = f"{bands} bands of {bits}-bit {form} samples" if bands > 1 else f"{bits}-bit {form} samples"
    return f"a TIFF of {of}{planar}" + (f" ({packed})" if packed else "")


def is_read(tags: Tags) -> bool:
    """Return whether the compression is one that Pillow reads, of colours that it can put together."""
    packed = _get(tags, _COMPRESSION, 1)
    parted = _get(tags, _PHOTOMETRIC, 1) == _YCBCR and packed not in _JPEGS and tags.get(_SUBSAMPLING, (2, 2)) != (1, 1)
    return packed in _READ and not parted


def has_alpha(tags: Tags) -> bool:
    """Return whether a band is declared to be alpha; another fourth band, as near infrared, is none."""
    return _get(tags, _EXTRA, 0) in _ALPHA


def is_white_zero(tags: Tags) -> bool:
    """Return whether 0 is white."""
    return bool(_get(tags, _PHOTOMETRIC, 1) == 0)


def is_unsigned(tags: Tags) -> bool:
    """Return whether samples are unsigned integers."""
    return bool(_get(tags, _FORMAT, 1) == 1)


def get_bits(tags: Tags) -> int:
    """Return the bits of a sample."""
    return int(_get(tags, _BITS, 1))


def get_range(tags: Tags) -> tuple[float, float] | None:
    """Return the samples' declared range, from black to white; None if it isn't declared."""
    high = _get(tags, _S_MAX, _get(tags, _MAX_SAMPLE, None))
    low = _get(tags, _S_MIN, _get(tags, _MIN_SAMPLE, 0))
    return (float(low), float(high)) if high is not None and high > low else None


def _get(tags: Tags, tag: int, default: Any) -> Any:
    """Return a tag's number, the first of several; the default if it is missing or something else, as text."""
    value = tags.get(tag, default)
    if isinstance(value, tuple):
        value = value[0] if value else default
    return value if isinstance(value, Real) else default


def _list(tags: Tags, tag: int) -> list[int]:
    value = tags.get(tag, ())
    return [number for number in (value if isinstance(value, tuple) else (value,)) if isinstance(number, int)]
