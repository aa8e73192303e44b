"""Labelled images in archives and tables, as WebDataset and Hugging Face pack them.

shard-000.tar     cat/0001.jpg                          the label is the folder
shard-000.tar     0001.jpg  0001.cls  or  0001.json     the label is in a sidecar
train-000.parquet image, label                          the label is a column, its names perhaps in the schema
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from tlray import storage
from tlray.errors import UNREACHABLE, DataError, FetchError, StoppedError
from tlray.sources import archives
from tlray.sources import parquet as tables
from tlray.sources.candidates import PACKED, REFUSED, Candidate, find_litter, has_image_name
from tlray.sources.columns import name_columns

_SIDECARS = ("cls", "json")
_JSON_KEYS = ("label", "class", "cls")
"""Keys of a JSON sidecar that may hold the label, beside the column that is asked for."""


UNPACK = "training reads images in any order: unpack them to .tar or .zip"
"""The way out for archives that only one pass can read."""


class LabelledMember(NamedTuple):
    """A member of an archive or a row of a table, its label, "" without one, and what changes with its content."""

    candidate: Candidate
    label: str
    version: str


class Shards(NamedTuple):
    """Labelled members of archives and tables.

    Attributes:
        members: in the order of their archives and tables.
        image_column: of the tables; None without any.
        passed: number of members passed over by reason.
        faults: one phrase for each kind of fault.
    """

    members: list[LabelledMember]
    image_column: str | None
    passed: Counter[str]
    faults: list[str]


def is_shard(name: str) -> bool:
    """Return whether a name is that of an archive or of a table."""
    return archives.is_archive(name) or tables.is_table(name)


def holds_images(uri: str, address_column: str) -> bool:
    """Return whether a file is a table of images, not a list, which has a column of addresses."""
    if not tables.is_table(uri):
        return False
    try:
        return tables.find_image_column(uri, unless=address_column) is not None
    except tables.NotATableError:
        return False


def list_shards(entries: Sequence[storage.Entry], label_column: str) -> Shards:
    """List the labelled members of archives and tables.

    Args:
        label_column: column of tables, and key of JSON sidecars.

    Raises:
        DataError: an archive or table cannot be read, or tables have their images in different columns.
        StoppedError: one cannot be reached.
    """
    found = Shards([], None, Counter(), [])
    columns: dict[str, str] = {}
    for entry in entries:
        if tables.is_table(entry.name):
            column = tables.find_image_column(entry.uri)
            if column is None:
                found.faults.append(f"a table without a column of images ({entry.uri})")
                continue
            columns.setdefault(column, entry.uri)
            found.members.extend(_list_rows(entry, column, label_column))
        else:
            found.members.extend(_list_members(entry, label_column, found))
    if len(columns) > 1:
        told = ", ".join(f"{column} of {uri}" for column, uri in columns.items())
        raise DataError(f"tables have their images in different columns ({told}); rename them alike")
    if unlabelled := [member.candidate.uri for member in found.members if not member.label]:
        found.faults.append(f"{len(unlabelled):,} images without a label ({', '.join(unlabelled[:3])})")
    return found._replace(image_column=next(iter(columns), None))


def _list_members(entry: storage.Entry, label_column: str, found: Shards) -> Iterator[LabelledMember]:
    try:
        members = archives.index(entry, _SIDECARS)
    except FetchError as error:
        kind = StoppedError if error.code in UNREACHABLE else DataError
        raise kind(f"{entry.uri} cannot be read: {error}") from None
    if any(member.source in PACKED for member in members):
        found.faults.append(f"a packed archive ({entry.uri}); {UNPACK}")
        return
    for member in members:
        if member.member is None:  # the archive itself, whose rest cannot be listed
            found.faults.append(f"a damaged archive ({entry.uri}: {member.reason}); copy it again")
            continue
        reason = member.reason or find_litter(member.name)
        if reason is None and not has_image_name(member.name):
            reason = f"named {PurePosixPath(member.name).suffix}, which is no image"
        if reason is None and member.source in REFUSED:
            reason = str(REFUSED[member.source][1])
        if reason is not None:
            found.passed[reason] += 1
        else:
            version = f"{entry.version} {member.offset} {member.length}" if entry.version else ""
            yield LabelledMember(member._replace(inputs=None), _find_label(member, label_column), version)


def _find_label(member: Candidate, label_column: str) -> str:
    """Return the label of a member by its sidecars, else by its folder; "" without one."""
    inputs = member.inputs or {}
    if label := inputs.get("input_cls"):
        return str(label)
    if text := inputs.get("input_json"):
        try:
            record = json.loads(text)
        except ValueError:
            record = None
        if isinstance(record, dict):
            for key in (label_column, *_JSON_KEYS):
                if isinstance(record.get(key), str | int):
                    return str(record[key]).strip()
    return PurePosixPath(member.name).parent.name


def _list_rows(entry: storage.Entry, image_column: str, label_column: str) -> Iterator[LabelledMember]:
    names = tables.read_class_names(entry.uri, label_column)
    fields, rows = tables.read_table(entry, image_column)
    (key,) = name_columns([label_column])
    if key not in [field.name for field in fields]:
        told = ", ".join(field.name.removeprefix("input_") for field in fields) or "none"
        raise DataError(f"{entry.uri} has no column {label_column} of labels (its other columns: {told})")
    for row in rows:
        value = (row.inputs or {}).get(key)
        if names is not None and isinstance(value, int):
            value = names[value] if 0 <= value < len(names) else None
        label = "" if value is None or value == -1 else str(value).strip()
        version = f"{entry.version} {row.offset}" if entry.version else ""
        yield LabelledMember(row._replace(inputs=None, size=None), label, version)
