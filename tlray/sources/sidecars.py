"""Sidecars: members of an archive that share an image's stem and tell of it, as WebDataset packs them.

    000017.jpg  000017.cls  000017.json

`--sidecars cls json` makes them the columns `input_cls` and `input_json` of the image's row, as text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

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
        self._texts: dict[tuple[str, str], list[str]] = {}

    def includes(self, name: str, size: int) -> bool:
        """Return whether a member of `size` bytes is a sidecar that is read."""
        return size <= MAX_BYTES and split_name(name)[1] in self._columns

    def add(self, name: str, data: bytes) -> None:
        """Add the bytes of a sidecar, in the archive's order."""
        self._texts.setdefault(split_name(name), []).append(data.decode("utf-8", "replace").strip())

    def attach(self, members: Sequence[Candidate]) -> list[Candidate]:
        """Return the members without the sidecars of images, whose texts are the images' inputs now.

        Of members of one name, as archives that were added to have, the first sidecar tells of the first image.
        """
        keys = {key for key, _ in self._texts}
        seen: Counter[str] = Counter()
        kept, used = [], set()
        for member in members:
            key, extension = split_name(member.name)
            if extension not in self._columns and key in keys and member.reason is None:
                used.add(key)
                member = member._replace(inputs=self._find_inputs(key, seen[member.name]))
                seen[member.name] += 1
            kept.append(member)
        sidecars = {place for place in self._texts if place[0] in used}
        return [member for member in kept if split_name(member.name) not in sidecars]

    def _find_inputs(self, key: str, number: int) -> dict[str, str | None]:
        """Return the columns of the image that has `number` others of its name before it."""
        found = {column: self._texts.get((key, extension), []) for extension, column in self._columns.items()}
        return {column: texts[number] if number < len(texts) else None for column, texts in found.items()}
