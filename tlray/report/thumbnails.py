"""Thumbnails embedded in a page as small JPEG data URIs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tlray.errors import FetchError
from tlray.images.limits import Limits
from tlray.images.thumbnail import SIDE_PX, make_thumbnail
from tlray.sources.places import Places

Key = TypeVar("Key", bound=Hashable)

Reader = Callable[[Sequence[Key]], Iterator[bytes | None]]
"""A function that yields the encoded image of each key (a uri or a row id) in order; None where it cannot be read."""

MAX_BYTES = 4 * 2**20

DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Thumbnails(Generic[Key]):
    """The thumbnails of a page.

    Attributes:
        uris: data URI by key; missing where an image could not be read or decoded, or exceeded the size limit.
        full: True if the size limit was reached.
    """

    uris: dict[Key, str]
    full: bool

    def get(self, key: Key) -> str | None:
        """Return the data URI of an image; None if it has none."""
        return self.uris.get(key)


def make_reader(places: Places, limits: Limits) -> Reader[str]:
    """Return a reader of images by address."""

    def read(uris: Sequence[str]) -> Iterator[bytes | None]:
        rows = {uri: row for row, uri in enumerate(places.list_names(range(len(places))))}
        fetched = places.fetch([rows[uri] for uri in uris], limits.max_bytes)
        return (None if isinstance(data, FetchError) else data for data in fetched)

    return read


def make_thumbnails(
    keys: Sequence[Key],
    read: Reader[Key],
    max_bytes: int = MAX_BYTES,
    side_px: int = SIDE_PX,
    limits: Limits = DEFAULT_LIMITS,
) -> Thumbnails[Key]:
    """Read each distinct key once, in order, and make thumbnails until their data URIs reach `max_bytes`."""
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
