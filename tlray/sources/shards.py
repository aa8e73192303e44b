"""Labelled images in archives and tables, as WebDataset and Hugging Face pack them.

    shard-000.tar     cat/0001.jpg                          the label is the folder
    shard-000.tar     0001.jpg  0001.cls  or  0001.json     the label is in a sidecar
    train-000.parquet image, label                          the label is a column, its names perhaps in the schema

Whatever might give an image a wrong label in silence is a fault.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

from tlray import storage
from tlray.errors import UNREACHABLE, DataError, FetchError, StoppedError
from tlray.sources import archives
from tlray.sources import parquet as tables
from tlray.sources.candidates import PACKED, REFUSED, Candidate, find_litter, has_image_name
from tlray.sources.sidecars import split_name

LABEL = "label"
"""Column of labels, by default."""

UNPACK = "training reads images in any order: unpack them to .tar or .zip"
"""The way out for archives that only one pass can read."""

_SIDECARS = ("cls", "json")
_JSON_KEYS = (LABEL, "class", "cls")
_INDEX_THREADS = 16
_MAX_NAMED = 3


class LabelledMember(NamedTuple):
    """A member of an archive or a row of a table.

    Attributes:
        label: "" without one.
        name: the same wherever the archive or table lies.
        size: of the member, or of its whole table.
        version: what changes with its content; "" if unknown.
    """

    candidate: Candidate
    label: str
    name: str
    size: int
    version: str


@dataclass
class Shards:
    """Labelled members of archives and tables.

    Attributes:
        members: in the order of their archives and tables.
        image_column: of the tables; None without any.
        passed: number of members passed over by reason.
        faults: one phrase for each kind of fault.
    """

    members: list[LabelledMember] = field(default_factory=list)
    image_column: str | None = None
    passed: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def is_shard(name: str) -> bool:
    """Return whether a name is that of an archive or of a table."""
    return archives.is_archive(name) or tables.is_table(name)


def holds_images(uri: str, address_column: str) -> bool:
    """Return whether a file is a table of images, not a list, which has a column of addresses."""
    if not tables.is_table(uri):
        return False
    try:
        names = tables.read_names(uri)
    except tables.NotATableError:
        return False
    return address_column not in names and bool(tables.list_image_columns(uri))


def list_shards(entries: Sequence[storage.Entry], label_column: str) -> Shards:
    """List the labelled members of archives and tables.

    Args:
        label_column: column of tables, and key of JSON sidecars.

    Raises:
        DataError: an archive or table cannot be read.
        StoppedError: one cannot be reached.
    """
    found = Shards()
    packed = [entry for entry in entries if not tables.is_table(entry.name)]
    with ThreadPoolExecutor(_INDEX_THREADS) as pool:
        indexed = dict(zip([entry.uri for entry in packed], pool.map(_index, packed), strict=True))
    columns: dict[str, str] = {}
    named: dict[bool, str] = {}
    depths: dict[int, str] = {}
    for entry in entries:
        if entry.uri in indexed:
            _add_members(found, entry, indexed[entry.uri], label_column, depths)
            continue
        image_columns = tables.list_image_columns(entry.uri)
        column = "image" if "image" in image_columns else next(iter(image_columns), None)
        if column is None or (len(image_columns) > 1 and column != "image"):
            several = f" (it has {', '.join(image_columns)}; name one of them image)" if image_columns else ""
            found.faults.append(f"a table without one column of images ({entry.uri}{several})")
            continue
        columns.setdefault(column, entry.uri)
        names = tables.read_class_names(entry.uri, label_column)
        named.setdefault(names is not None, entry.uri)
        _add_rows(found, entry, label_column, names)
    for faults, told in (
        (columns, "tables with their images in different columns"),
        (named, "tables with and without names of the classes in their schema"),
        (depths, "images in folders of different depths, so that it is not clear which are classes"),
    ):
        if len(faults) > 1:
            found.faults.append(f"{told} ({', '.join(faults.values())})")
    if unlabelled := [member.candidate.uri for member in found.members if not member.label]:
        told = ", ".join(unlabelled[:_MAX_NAMED]) + (", ..." if len(unlabelled) > _MAX_NAMED else "")
        found.faults.append(f"{len(unlabelled):,} images without a label ({told})")
    if not found.members and not found.faults:
        found.faults.append("no images")
    found.image_column = next(iter(columns), None)
    return found


def _index(entry: storage.Entry) -> list[Candidate]:
    try:
        return archives.index(entry, _SIDECARS)
    except FetchError as error:
        kind = StoppedError if error.code in UNREACHABLE else DataError
        raise kind(f"{entry.uri} cannot be read: {error}") from None


def _add_members(
    found: Shards, entry: storage.Entry, members: list[Candidate], label_column: str, depths: dict[int, str]
) -> None:
    if any(member.source in PACKED for member in members):
        found.faults.append(f"a packed archive ({entry.uri}); {UNPACK}")
        return
    images: list[Candidate] = []
    for member in members:
        if member.member is None:  # the archive itself, whose rest cannot be listed
            found.faults.append(f"a damaged archive ({entry.uri}: {member.reason}); copy it again")
            continue
        reason = _find_reason(member)
        if reason is None:
            images.append(member)
        elif reason != "a folder":
            found.passed[reason] += 1
    labels = {member: _read_sidecars(member, label_column) for member in map(_identify, images)}
    has_sidecars = any(label is not None for label in labels.values())
    if has_sidecars:  # beside 1.jpg and 1.cls, 1.mask.png is no image of that class
        simple = [member for member in images if "." not in split_name(member.name)[1]]
        if others := len(images) - len(simple):
            found.passed["one of several images of its sample"] += others
        images = simple
    for name, count in Counter(member.name for member in images).items():
        if count > 1:
            found.faults.append(f"{count} members of one name ({entry.uri}#{name}); pack them under names of their own")
    for member in images:
        path = PurePosixPath(member.name)
        label = labels[_identify(member)] if has_sidecars else path.parent.name
        if not has_sidecars:
            if not path.suffix:
                found.passed["named without an extension"] += 1
                continue
            depths.setdefault(len(path.parts), f"{entry.uri}#{member.name}")
        version = f"{entry.version} {member.offset} {member.length}" if entry.version else ""
        name = f"{entry.name}#{member.name}"
        found.members.append(LabelledMember(member._replace(inputs=None), label or "", name, member.size or 0, version))


def _find_reason(member: Candidate) -> str | None:
    """Return why a member is no image, None if it may be."""
    if reason := member.reason or find_litter(member.name):
        return reason
    if not has_image_name(member.name):
        return f"named {PurePosixPath(member.name).suffix}, which is no image"
    return str(REFUSED[member.source][1]) if member.source in REFUSED else None


class _Sidecars(NamedTuple):
    """The sidecars of a member, which is told apart by its name and offset."""

    name: str
    offset: int | None
    cls: str | None
    json: str | None


def _identify(member: Candidate) -> _Sidecars:
    inputs = member.inputs or {}
    return _Sidecars(member.name, member.offset, inputs.get("input_cls"), inputs.get("input_json"))


def _read_sidecars(member: _Sidecars, label_column: str) -> str | None:
    """Return the label in a member's sidecars; None without one.

    A column that is asked for is the only key that counts, and `.cls` has none.
    """
    asked = label_column != LABEL
    if member.cls and not asked:
        return member.cls
    if not member.json:
        return None
    try:
        record = json.loads(member.json)
    except (ValueError, RecursionError):
        return ""
    values = [record.get(key) for key in ((label_column,) if asked else _JSON_KEYS)] if isinstance(record, dict) else []
    return next((make_label(value) for value in values if value is not None), "")


def make_label(value: object) -> str:
    """Return a label as text: whole numbers without a point; "" for what is none."""
    if isinstance(value, bool | str):
        return str(value).strip()
    try:
        number = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return ""
    return str(number) if number == value else ""


def _add_rows(found: Shards, entry: storage.Entry, label_column: str, names: list[str] | None) -> None:
    for candidate, value in tables.iter_labels(entry, label_column):
        label = make_label(value)
        if names is not None:
            label = names[int(label)].strip() if label.isdecimal() and int(label) < len(names) else ""
        elif label == "-1":  # as Hugging Face marks rows without a label
            label = ""
        version = f"{entry.version} {candidate.offset}" if entry.version else ""
        name = f"{entry.name}#{candidate.member}"
        found.members.append(LabelledMember(candidate, label, name, entry.size, version))
