"""Labelled images in archives and tables, as WebDataset and Hugging Face pack them.

    shard-000.tar     cat/0001.jpg                          the label is the folder
    shard-000.tar     0001.jpg  0001.cls  or  0001.json     the label is in a sidecar
    train-000.parquet image, label                          the label is a column, its names perhaps in the schema

Whatever might give an image a wrong label in silence is a fault.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
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

_IMAGE_COLUMNS = "tables with their images in different columns"
_NAMES = "tables with and without names of the classes in their schema"
_ORIGINS = "labels both in sidecars and by folders"
_DEPTHS = "images in folders of different depths, so that it is not clear which are classes"

Traits = dict[str, dict[Hashable, str]]
"""By conflict, the values that were met, of which there may be one, each with an example."""


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
        traits: for `find_conflicts`.
    """

    members: list[LabelledMember] = field(default_factory=list)
    image_column: str | None = None
    passed: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    traits: Traits = field(default_factory=dict)

    def note(self, conflict: str, value: Hashable, example: str) -> None:
        """Note a value of a trait."""
        self.traits.setdefault(conflict, {}).setdefault(value, example)


class _Member(NamedTuple):
    """A member of an archive, and the label in its sidecar: "" in one without a label, None without a sidecar."""

    candidate: Candidate
    label: str | None


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


def find_conflicts(traits: Traits) -> Iterator[str]:
    """Yield a phrase for each trait of which several values were met."""
    for conflict, values in traits.items():
        if len(values) > 1:
            yield f"{conflict} ({', '.join(values.values())})"


def list_shards(entries: Sequence[storage.Entry], label_column: str) -> Shards:
    """List the labelled members of archives and tables; the caller must look for conflicts.

    Args:
        label_column: column of tables, and key of JSON sidecars.

    Raises:
        DataError: an archive or table cannot be read.
        StoppedError: one cannot be reached.
    """
    found = Shards()
    packed = [entry for entry in entries if not tables.is_table(entry.name)]
    with ThreadPoolExecutor(_INDEX_THREADS) as pool:
        indexed = list(pool.map(lambda entry: _index(entry, label_column), packed))
    asked = label_column != LABEL
    by_sidecar = asked or any(member.label for members in indexed for member in members)
    by_uri = {entry.uri: members for entry, members in zip(packed, indexed, strict=True)}
    for entry in entries:
        if entry.uri in by_uri:
            _add_members(found, entry, by_uri.pop(entry.uri), by_sidecar=by_sidecar)
        else:
            _add_rows(found, entry, label_column)
    if unlabelled := [member.candidate.uri for member in found.members if not member.label]:
        found.faults.append(f"{len(unlabelled):,} images without a label ({_name_some(unlabelled)})")
    if not found.members and not found.faults:
        found.faults.append("no images")
    return found


def _index(entry: storage.Entry, label_column: str) -> list[_Member]:
    """List an archive's members; of their sidecars only the labels are kept."""
    try:
        members = archives.index(entry, _SIDECARS)
    except FetchError as error:
        kind = StoppedError if error.code in UNREACHABLE else DataError
        raise kind(f"{entry.uri} cannot be read: {error}") from None
    # sidecars that are too large to be read are still members
    beside = {key for key, extension in (split_name(member.name) for member in members) if extension in _SIDECARS}
    found = []
    for member in members:
        inputs = member.inputs or {}
        label = _read_sidecars(inputs.get("input_cls"), inputs.get("input_json"), label_column)
        if label is None and (member.inputs or split_name(member.name)[0] in beside):
            label = ""
        found.append(_Member(member._replace(inputs=None), label))
    return found


def _add_members(found: Shards, entry: storage.Entry, members: Sequence[_Member], *, by_sidecar: bool) -> None:
    if any(member.candidate.source in PACKED for member in members):
        found.faults.append(f"a packed archive ({entry.uri}); {UNPACK}")
        return
    images: list[_Member] = []
    for member in members:
        if member.candidate.member is None:  # the archive itself, whose rest cannot be listed
            found.faults.append(f"a damaged archive ({entry.uri}: {member.candidate.reason}); copy it again")
        elif reason := _find_reason(member.candidate, by_sidecar=by_sidecar):
            if reason != "a folder":
                found.passed[reason] += 1
        else:
            images.append(member)
    if by_sidecar:
        images = _choose_of_samples(found, images)
    names = Counter(member.candidate.name for member in images)
    if repeated := [f"{entry.uri}#{name}" for name, count in names.items() if count > 1]:
        told = f"{len(repeated):,} names of several members"
        found.faults.append(f"{told} ({_name_some(repeated)}); pack them under names of their own")
    for candidate, label in images:
        path = PurePosixPath(candidate.name)
        if not by_sidecar:
            label = path.parent.name
            found.note(_DEPTHS, len(path.parts), candidate.uri)
        found.note(_ORIGINS, by_sidecar, candidate.uri)
        version = f"{entry.version} {candidate.offset} {candidate.length}" if entry.version else ""
        name = f"{entry.name}#{candidate.name}"
        found.members.append(LabelledMember(candidate, label or "", name, candidate.size or 0, version))


def _find_reason(member: Candidate, *, by_sidecar: bool) -> str | None:
    """Return why a member is no image, None if it may be."""
    if reason := member.reason or find_litter(member.name):
        return reason
    suffix = PurePosixPath(member.name).suffix
    if not has_image_name(member.name):
        return f"named {suffix}, which is no image"
    if not suffix and not by_sidecar:
        return "named without an extension"
    return str(REFUSED[member.source][1]) if member.source in REFUSED else None


def _choose_of_samples(found: Shards, images: Sequence[_Member]) -> list[_Member]:
    """Return one image of each sample: of 1.jpg, 1.mask.png and 1.cls the first; a fault if it is not clear which."""
    by_key: dict[str, list[_Member]] = {}
    for member in images:
        by_key.setdefault(split_name(member.candidate.name)[0], []).append(member)
    chosen, unclear = [], []
    for members in by_key.values():
        if len({member.candidate.name for member in members}) > 1:
            simple = [member for member in members if "." not in split_name(member.candidate.name)[1]]
            if len(simple) == 1:
                found.passed["one of several images of its sample"] += len(members) - 1
            else:
                unclear.append(members[0].candidate.uri)
            members = simple
        chosen += members
    if unclear:
        found.faults.append(f"{len(unclear):,} samples of several images ({_name_some(unclear)}); keep one of each")
    return chosen


def _read_sidecars(cls: str | None, text: str | None, label_column: str) -> str | None:
    """Return the label in a member's sidecars; "" in one without a label, None without one.

    A column that is asked for is the only key that counts, and `.cls` has none.
    """
    asked = label_column != LABEL
    if cls and not asked:
        return make_label(cls)
    if not text:
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    values = [record.get(key) for key in ((label_column,) if asked else _JSON_KEYS)] if isinstance(record, dict) else []
    return next((make_label(value) for value in values if value is not None), "")


def make_label(value: object) -> str:
    """Return a label as text: whole numbers without a point; "" for what is none, as -1 often is."""
    if not isinstance(value, bool | str):
        try:
            number = int(value)  # type: ignore[call-overload]
        except (TypeError, ValueError, OverflowError):
            return ""
        value = str(number) if number == value else ""
    label = str(value).strip()
    return "" if label == "-1" else label


def _add_rows(found: Shards, entry: storage.Entry, label_column: str) -> None:
    columns = tables.list_image_columns(entry.uri)
    column = "image" if "image" in columns else next(iter(columns), None)
    if column is None or (len(columns) > 1 and column != "image"):
        several = f" (it has {', '.join(columns)}; name one of them image)" if columns else ""
        found.faults.append(f"a table without one column of images ({entry.uri}{several})")
        return
    names = tables.read_class_names(entry.uri, label_column)
    found.note(_IMAGE_COLUMNS, column, entry.uri)
    found.note(_NAMES, names is not None, entry.uri)
    found.image_column = column
    for candidate, value in tables.iter_labels(entry, label_column):
        label = make_label(value)
        if names is not None:
            label = names[int(label)].strip() if label.isdecimal() and int(label) < len(names) else ""
        version = f"{entry.version} {candidate.offset}" if entry.version else ""
        name = f"{entry.name}#{candidate.member}"
        found.members.append(LabelledMember(candidate, label, name, entry.size, version))


def _name_some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_NAMED]) + (", ..." if len(names) > _MAX_NAMED else "")
