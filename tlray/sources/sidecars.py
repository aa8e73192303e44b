"""Sidecars: members of an archive that share an image's stem and tell of it, as WebDataset packs them.

    000017.jpg  000017.cls  000017.json

`--sidecars cls json` makes them the columns `input_cls` and `input_json` of the image's row, as text.
"""

from __future__ import annotations

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


def attach(members: Sequence[Candidate], contents: Mapping[str, bytes], extensions: Sequence[str]) -> list[Candidate]:
    """Return the members without the sidecars of images, whose texts are the images' inputs now.

    Args:
        members: of one archive.
        contents: bytes of the sidecars by member.
        extensions: those of sidecars; in lower case, without a full stop before them.
    """
    columns = dict(zip(extensions, name_columns(extensions), strict=True))
    texts: dict[str, dict[str, str | None]] = {}
    for name, data in contents.items():
        key, extension = split_name(name)
        sample = texts.setdefault(key, dict.fromkeys(columns.values()))
        sample[columns[extension]] = data.decode("utf-8", "replace").strip()
    kept, used = [], set()
    for member in members:
        key, extension = split_name(member.name)
        if extension not in columns and key in texts and member.reason is None:
            used.add(key)
            member = member._replace(inputs=texts[key])
        kept.append(member)
    return [member for member in kept if not (member.name in contents and split_name(member.name)[0] in used)]
