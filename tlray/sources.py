"""From what the user points at to a table of rows: labelled class folders for training, any images for labelling.

Both number their rows densely from 0 in a stable order, so that a row id means the same in every later step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa

from tlray import storage
from tlray.errors import DataError
from tlray.images import EXTENSIONS

PLAN_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("mtime_ns", pa.int64()),
    ]
)
"""`source` is how the row is read ("file"); `member`, `offset` and `length` say where inside an archive it lies."""

EXCLUDED_SCHEMA = pa.schema([pa.field("uri", pa.string(), nullable=False), pa.field("reason", pa.string())])

_MAX_NAMED = 5


@dataclass(frozen=True)
class LabelledImages:
    """Images sorted into class folders.

    Attributes:
        classes: class names, sorted; a label is an index into them.
        table: `row_id int64, uri string, name string, label int32, size int64`, in order of class, then name.
    """

    classes: tuple[str, ...]
    table: pa.Table


@dataclass(frozen=True)
class Plan:
    """What is to be labelled, and what was seen but left out.

    Attributes:
        table: one row for every input, by `PLAN_SCHEMA`.
        excluded: `uri, reason`, by `EXCLUDED_SCHEMA`.
    """

    table: pa.Table
    excluded: pa.Table


def has_image_name(name: str) -> bool:
    """Whether a file's name ends in a known image extension, in any case, or has none."""
    base = PurePosixPath(name).name
    extension = base if base.startswith(".") and base.count(".") == 1 else PurePosixPath(base).suffix
    return not extension or extension.lower() in EXTENSIONS


def scan(root: str, classes: Sequence[str] | None = None, *, option: str = "--data") -> LabelledImages:
    """List class folders: `root/CLASS/image`.

    Args:
        root: folder or s3:// prefix.
        classes: class names that the folders must be among; None for the first scan, which sets them.
        option: the command-line option that `root` came from, for errors.

    Raises:
        DataError: one message naming all that is wrong with the folders.
    """
    entries = storage.list_files(root)
    by_class: dict[str, list[storage.Entry]] = {}
    beside, nested = [], []
    for entry in entries:
        parts = entry.name.split("/")
        if len(parts) == 1:
            if PurePosixPath(entry.name).suffix.lower() in EXTENSIONS:
                beside.append(entry.name)
        elif any(part.startswith(".") or part == "__MACOSX" for part in parts[:-1]):
            continue
        else:
            images = by_class.setdefault(parts[0], [])
            if not has_image_name(parts[-1]) or not parts[-1]:
                continue
            if len(parts) > 2:
                nested.append(entry.name)
            else:
                images.append(entry)
    if not storage.is_s3(root):
        by_class.update({name: [] for name in _list_empty_folders(root) if name not in by_class})
    faults = _find_scan_faults(by_class, beside, nested, classes)
    if faults:
        expected = f"{option} takes a folder that holds one folder of images for each class ({root}/CLASS/image.jpg)"
        raise DataError(f"{expected}, at least two; got " + "; ".join(faults))
    names = tuple(classes) if classes is not None else tuple(sorted(by_class))
    labels = {name: index for index, name in enumerate(names)}
    rows = [(entry, labels[name]) for name in sorted(by_class) for entry in by_class[name]]
    table = pa.table(
        {
            "row_id": pa.array(range(len(rows)), pa.int64()),
            "uri": pa.array([entry.uri for entry, _ in rows], pa.string()),
            "name": pa.array([entry.name for entry, _ in rows], pa.string()),
            "label": pa.array([label for _, label in rows], pa.int32()),
            "size": pa.array([entry.size for entry, _ in rows], pa.int64()),
        }
    )
    return LabelledImages(names, table)


def plan(inputs: Sequence[str]) -> Plan:
    """List everything to label, once; an object that two inputs reach is planned once.

    Raises:
        DataError: an input does not exist, or none holds an image.
    """
    rows: list[tuple[storage.Entry, str]] = []
    excluded: list[tuple[str, str]] = []
    seen: set[str] = set()
    for root in inputs:
        for entry in storage.list_files(storage.resolve(root)):
            if entry.uri in seen:
                continue
            seen.add(entry.uri)
            if entry.uri.endswith("/"):
                excluded.append((entry.uri, "a folder marker"))
            elif not has_image_name(entry.name):
                excluded.append((entry.uri, "its extension is not a known image extension"))
            else:
                rows.append((entry, "file"))
    if not rows:
        allowed = " ".join(sorted(EXTENSIONS))
        raise DataError(f"--input {' '.join(inputs)} holds no images (names ending in {allowed}, or without extension)")
    entries = [entry for entry, _ in rows]
    nothing = pa.nulls(len(rows))
    table = pa.table(
        {
            "row_id": pa.array(range(len(rows)), pa.int64()),
            "uri": [entry.uri for entry in entries],
            "source": [source for _, source in rows],
            "member": nothing.cast(pa.string()),
            "offset": nothing.cast(pa.int64()),
            "length": nothing.cast(pa.int64()),
            "size": pa.array([entry.size for entry in entries], pa.int64()),
            "etag": pa.array([entry.etag for entry in entries], pa.string()),
            "mtime_ns": pa.array([entry.mtime_ns for entry in entries], pa.int64()),
        },
        schema=PLAN_SCHEMA,
    )
    columns = {"uri": [uri for uri, _ in excluded], "reason": [reason for _, reason in excluded]}
    return Plan(table, pa.table(columns, schema=EXCLUDED_SCHEMA))


def _list_empty_folders(root: str) -> list[str]:
    if not Path(root).is_dir():
        return []
    return [path.name for path in Path(root).iterdir() if path.is_dir() and path.name[0] not in "._"]


def _find_scan_faults(
    by_class: dict[str, list[storage.Entry]], beside: list[str], nested: list[str], classes: Sequence[str] | None
) -> list[str]:
    """One phrase for each thing that is wrong with a tree of class folders."""
    faults = []
    empty = sorted(name for name, images in by_class.items() if not images)
    if not by_class:
        faults.append("no class folders")
    elif len(by_class) == 1 and classes is None:
        faults.append(f"one class only ({next(iter(by_class))})")
    if beside:
        faults.append(f"{len(beside):,} images beside the class folders ({_name_some(beside)})")
    if nested:
        faults.append(f"{len(nested):,} images in folders below the class folders ({_name_some(nested)})")
    elif empty:
        faults.append(f"class folders without images ({_name_some(empty)})")
    if classes is not None:
        unknown = sorted(set(by_class) - set(classes))
        if unknown:
            theirs, ours = ", ".join(sorted(by_class)), ", ".join(classes)
            faults.append(f"other classes than the training set's (here: {theirs}; trained: {ours})")
    return faults


def _name_some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MAX_NAMED])
    return shown if len(names) <= _MAX_NAMED else f"{shown}, ..."
