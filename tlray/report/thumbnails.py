"""Images -> small JPEGs inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from PIL import Image

from tlray import storage
from tlray.errors import FetchError, ImageError
from tlray.images.decode import decode
from tlray.images.limits import Limits

Key = TypeVar("Key", bound=Hashable)

Reader = Callable[[Sequence[Key]], Iterator[bytes | None]]
"""The encoded image of each key (a uri, or a row id of the plan) in the order asked; None where it cannot be read."""

SIDE_PX = 96
MAX_BYTES = 4 * 2**20

DEFAULT_LIMITS = Limits()

_QUALITY = 80
_HEAD = "data:image/jpeg;base64,"


@dataclass(frozen=True)
class Thumbnails(Generic[Key]):
    """What a page shows of its images.

    Attributes:
        uris: data URI by key; a key without one could not be read or decoded, or there was no room.
        full: whether the page's room ran out.
    """

    uris: dict[Key, str]
    full: bool

    def get(self, key: Key) -> str | None:
        """The data URI of an image, None where there is none."""
        return self.uris.get(key)


def read_files(uris: Sequence[str]) -> Iterator[bytes | None]:
    """A `Reader` of local paths and s3:// addresses."""
    return (None if isinstance(data, FetchError) else data for data in storage.get_many(uris))


def make_thumbnails(
    keys: Sequence[Key],
    read: Reader[Key],
    max_bytes: int = MAX_BYTES,
    side_px: int = SIDE_PX,
    limits: Limits = DEFAULT_LIMITS,
) -> Thumbnails[Key]:
    """Read images one by one until all are there or `max_bytes` of data URIs are full; each key is read once."""
    uris: dict[Key, str] = {}
    wanted = list(dict.fromkeys(keys))
    used = 0
    for key, data in zip(wanted, read(wanted) if wanted else (), strict=False):
        uri = None if data is None else make_thumbnail(data, side_px, limits)
        if uri is None:
            continue
        used += len(uri)
        if used > max_bytes:
            return Thumbnails(uris, full=True)
        uris[key] = uri
    return Thumbnails(uris, full=False)


def make_thumbnail(data: bytes, side_px: int = SIDE_PX, limits: Limits = DEFAULT_LIMITS) -> str | None:
    """An encoded image as a data URI of at most `side_px` a side, None where it cannot be decoded."""
    try:
        decoded = decode(data, 2 * side_px, limits)  # squashed to a square; twice the size keeps both sides sharp
    except ImageError:
        return None
    scale = side_px / max(decoded.width, decoded.height)
    size = (max(1, round(decoded.width * scale)), max(1, round(decoded.height * scale)))
    buffer = io.BytesIO()
    small = Image.fromarray(decoded.pixels).resize(size, Image.Resampling.LANCZOS)
    small.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return _HEAD + base64.b64encode(buffer.getvalue()).decode()
