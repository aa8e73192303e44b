"""Sidecars: members of an archive that share an image's stem and tell of it, as WebDataset packs them.

    000017.jpg  000017.cls  000017.json

`--sidecars cls json` makes them the columns `input_cls` and `input_json` of the image's row, as text.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence

import pyarrow as pa

from tlray.sources.candidates import Candidate
from tlray.sources.columns import name_columns

MAX_BYTES = 2**16
"""Largest sidecar that is read; a larger one stays out of its column."""


def make_fields(extensions: Sequence[str]) -> list[pa.Field]:
    """Return the `input_*` columns of these extensions."""
    return [pa.field(name, pa.string()) for name in name_columns(extensions)]


def split_name(name: str) -> tuple[str, str]:
    """Split a name at the first full stop of its last part: into the key that a sample shares, and the extension."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return folder + slash + key, extension.lower()


class Sidecars:
    """Sidecars of one archive: collected while its members are listed, then attached to their images."""

    def __init__(self, extensions: Sequence[str]) -> None:
        """`extensions` are those of sidecars; in lower case, without a full stop before them."""
        self._columns = dict(zip(extensions, name_columns(extensions), strict=True))
        self._texts: dict[tuple[str, int | None], str] = {}

    def includes(self, name: str, size: int) -> bool:
        """Return whether a member of `size` bytes is a sidecar that is read."""
        return size <= MAX_BYTES and split_name(name)[1] in self._columns

    def add(self, member: Candidate, data: bytes) -> None:
        """Add the bytes of a sidecar."""
        self._texts[member.name, member.offset] = data.decode("utf-8", "replace").strip()

    def attach(self, members: Sequence[Candidate]) -> list[Candidate]:
        """Return the members without the sidecars of images, whose texts are the images' inputs now.

        Names may occur again, in archives that were added to or put together: a sidecar belongs to the image before it,
        or behind it where sidecars come first; of several for one image the last counts, and the others stay members.
        """
        images: dict[str, dict[str, list[int]]] = {}
        for index, member in enumerate(members):
            key, extension = split_name(member.name)
            if extension not in self._columns and member.reason is None:
                images.setdefault(key, {}).setdefault(member.name, []).append(index)
        chosen: dict[int, dict[str, int]] = {}
        leads: dict[str, bool] = {}
        for index, member in enumerate(members):
            if (member.name, member.offset) in self._texts:
                key, extension = split_name(member.name)
                for name, places in images.get(key, {}).items():
                    behind = bisect(places, index)
                    first = leads.setdefault(f"{name}/{extension}", behind == 0)
                    image = places[min(behind, len(places) - 1) if first else behind - 1]
                    chosen.setdefault(image, {})[self._columns[extension]] = index
        used = {index for columns in chosen.values() for index in columns.values()}
        return [
            member._replace(inputs=self._find_inputs(members, chosen[index])) if index in chosen else member
            for index, member in enumerate(members)
            if index not in used
        ]

    def _find_inputs(self, members: Sequence[Candidate], chosen: Mapping[str, int]) -> dict[str, str | None]:
        texts = {column: self._texts[members[index].name, members[index].offset] for column, index in chosen.items()}
        return {column: texts.get(column) for column in self._columns.values()}
