"""Labelled images for training: class folders or a manifest as a table of rows, numbered from 0."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa

from tlray import storage
from tlray.console import say
from tlray.errors import DataError
from tlray.images.formats import EXTENSIONS
from tlray.sources import archives, lists, manifests
from tlray.sources.candidates import find_litter, has_image_name

URI, LABEL = "uri", "label"
"""Columns of a list of labelled images."""

_MAX_NAMED = 5


@dataclass(frozen=True)
class LabelledImages:
    """Labelled images.

    Attributes:
        classes: class names, sorted; a label is an index into them.
        table: `row_id int64, uri string, name string, label int32, size int64, version string`, in order of class, then
            name; `size` is 0 for objects in a manifest, `version` is `storage.Entry.version`.
    """

    classes: tuple[str, ...]
    table: pa.Table


def scan(root: str, classes: Sequence[str] | None = None, *, option: str = "--data") -> LabelledImages:
    """List labelled images in class folders, `root/CLASS/image`, or in a manifest.

    Args:
        root: folder or s3:// prefix; or a .csv, .jsonl or .parquet with columns `uri` and `label`.
        classes: allowed class names; None for the first scan, which sets them.
        option: the command-line option of `root`, for errors.

    Raises:
        DataError: one message with every fault.
    """
    if lists.is_list(root):
        by_class, faults = read_labels(root)
        expected = f"{option} takes a manifest with the columns {URI} and {LABEL}, of at least two classes; got "
    else:
        by_class, faults = _list_folders(root, option)
        expected = (
            f"{option} takes a folder that holds one folder of images for each class ({root}/CLASS/image.jpg), "
            "at least two; got "
        )
    faults += _find_class_faults(by_class, classes)
    if faults:
        raise DataError(expected + "; ".join(faults))
    names = tuple(classes) if classes is not None else _sort_classes(by_class)
    labels = {name: index for index, name in enumerate(names)}
    rows = [(entry, labels[name]) for name in names for entry in by_class.get(name, ())]
    table = pa.table(
        {
            "row_id": pa.array(range(len(rows)), pa.int64()),
            "uri": pa.array([entry.uri for entry, _ in rows], pa.string()),
            "name": pa.array([entry.name for entry, _ in rows], pa.string()),
            "label": pa.array([label for _, label in rows], pa.int32()),
            "size": pa.array([entry.size for entry, _ in rows], pa.int64()),
            "version": pa.array([entry.version for entry, _ in rows], pa.string()),
        }
    )
    return LabelledImages(names, table)


def _sort_classes(by_class: Collection[str]) -> tuple[str, ...]:
    """Sort class names as text, or as numbers if all are."""
    as_text = sorted(by_class)
    if not all(name.isdecimal() for name in by_class):
        return tuple(as_text)
    as_numbers = sorted(by_class, key=lambda name: (int(name), name))
    if as_numbers != as_text:
        say(f"the class names are numbers and sorted as such: {name_some(as_numbers)}")
    return tuple(as_numbers)


def _list_folders(root: str, option: str) -> tuple[dict[str, list[storage.Entry]], list[str]]:
    """Return the images of class folders by class, and one phrase for each kind of fault; say what was passed over."""
    by_class: dict[str, list[storage.Entry]] = {}
    passed: dict[str, Counter[str]] = {}
    beside, nested = [], []
    for entry in storage.list_files(root):
        *folders, base = entry.name.split("/")
        label = _compose(folders[0]) if folders else ""
        if litter := entry.unreadable or find_litter(entry.name):
            passed.setdefault("", Counter())[litter] += 1
        elif not folders:
            if PurePosixPath(base).suffix.lower() in EXTENSIONS:
                beside.append(base)
        elif not base or not has_image_name(base):
            by_class.setdefault(label, [])
            if base:
                passed.setdefault(label, Counter())[f"named {PurePosixPath(base).suffix}, which is no image"] += 1
        elif len(folders) > 1:
            by_class.setdefault(label, [])
            nested.append(entry.name)
        else:
            by_class.setdefault(label, []).append(entry)
    if not storage.is_s3(root):
        by_class.update({name: [] for name in _list_empty_folders(root) if name not in by_class})
    if total := sum(passed.values(), Counter()):
        say(f"{option}: {total.total():,} files passed over: {_count(total)}")
    faults = []
    if not by_class:
        faults.append("no class folders")
    if beside:
        faults.append(f"{len(beside):,} images beside the class folders ({name_some(beside)})")
    if nested:
        faults.append(f"{len(nested):,} images in folders below the class folders ({name_some(nested)})")
    elif empty := sorted(name for name, images in by_class.items() if not images):
        told = [f"{name}: {_count(passed[name])}" if name in passed else name for name in empty]
        faults.append(f"class folders without images ({name_some(told)})")
    return by_class, faults


def _count(reasons: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(_MAX_NAMED))


def _compose(name: str) -> str:
    """Return a class name with composed characters (Unicode NFC), in which macOS and others do not agree."""
    return unicodedata.normalize("NFC", name)


def _list_empty_folders(root: str) -> list[str]:
    if not Path(root).is_dir():
        return []
    names = [path.name for path in Path(root).iterdir() if path.is_dir()]
    return [_compose(name) for name in names if name[0] != "_" and find_litter(f"{name}/") is None]


def _find_class_faults(by_class: dict[str, list[storage.Entry]], classes: Sequence[str] | None) -> list[str]:
    """Return one phrase for each fault of the class names."""
    faults = []
    if len(by_class) == 1 and classes is None:
        faults.append(f"one class only ({next(iter(by_class))})")
    if classes is not None:
        unknown = sorted(set(by_class) - set(classes))
        if unknown:
            theirs, ours = ", ".join(sorted(by_class)), ", ".join(classes)
            faults.append(f"other classes than the training set's (here: {theirs}; trained: {ours})")
    return faults


def read_labels(manifest: str) -> tuple[dict[str, list[storage.Entry]], list[str]]:
    """Return the images of a manifest by label, in the order of their addresses, and its faults.

    A file on several lines under one label is listed once. An entry's name is `LABEL/` and the address as typed; its
    size is 0 for an object, since finding it would cost a request.

    Args:
        manifest: address; relative addresses in it start at its folder.

    Returns:
        Entries by label, and one phrase for each kind of fault.

    Raises:
        DataError: it cannot be read.
    """
    opened = lists.open_list(manifest, URI, as_text=(LABEL,))
    if missing := [f"no column {name}" for name in (URI, LABEL) if name not in opened.names]:
        return {}, [f"{' and '.join(missing)} (its columns: {lists.shorten(', '.join(opened.names))})"]
    return _sort_lines(manifest.rpartition("/")[0], _iter_lines(opened))


def read_groups(manifest: str, column: str) -> dict[str, str]:
    """Return the value of a column of a manifest by address; lines without one are left out.

    Raises:
        DataError: it cannot be read, or lacks the column.
    """
    opened = lists.open_list(manifest, URI, as_text=(column,))
    if missing := [name for name in (URI, column) if name not in opened.names]:
        names = lists.shorten(", ".join(opened.names))
        raise DataError(f"{manifest} has no column {' and '.join(missing)} (its columns: {names})")
    base = manifest.rpartition("/")[0]
    uri, group = opened.names.index(URI), opened.names.index(column)
    groups: dict[str, str] = {}
    for number, values in opened.lines:
        name = _compose((values[group] or "").strip()) if values is not None else ""
        if values is not None and name and values[uri]:
            address = _resolve(values[uri] or "", base)[0]
            if groups.setdefault(address, name) != name:
                two = f"{groups[address]} and {name}"
                raise DataError(f"{manifest}, line {number:,}: {values[uri]} has two values of {column}, {two}")
    return groups


def name_some(names: Sequence[str]) -> str:
    """Join the first few names."""
    shown = ", ".join(map(lists.shorten, names[:_MAX_NAMED]))
    return shown if len(names) <= _MAX_NAMED else f"{shown}, ..."


def _iter_lines(opened: lists.ListFile) -> Iterator[tuple[int, str, str]]:
    """Yield the number, address and label of each line, empty where missing; blanks around a label are dropped."""
    uri, label = opened.names.index(URI), opened.names.index(LABEL)
    for number, values in opened.lines:
        address, name = (values[uri] or "", values[label] or "") if values is not None else ("", "")
        yield number, address, _compose(name.strip())


def _resolve(uri: str, base: str) -> tuple[str, str | None]:
    """Return the address that a line names, and the reason why it may not be read, or None."""
    address, reason = manifests.check_address(uri, base, ())
    # "a" and "./a" are one file
    return address if storage.is_s3(address) else str(PurePosixPath(address)), reason


def _sort_lines(base: str, lines: Iterator[tuple[int, str, str]]) -> tuple[dict[str, list[storage.Entry]], list[str]]:
    labels: dict[str, str] = {}
    typed: dict[str, str] = {}
    faults: dict[str, list[str]] = {}
    for number, uri, label in lines:
        if not uri.strip():
            faults.setdefault(" without an address", []).append(f"line {number:,}")
            continue
        address, reason = _resolve(uri, base)
        if reason is not None:
            faults.setdefault(": " + reason.partition(";")[0], []).append(storage.redact(uri))
        elif archives.split_member(address) is not None:
            faults.setdefault(" in archives, which only predict looks into", []).append(uri)
        elif not label:
            faults.setdefault(" without a label", []).append(uri)
        elif labels.setdefault(address, label) != label:
            faults.setdefault(" under two labels", []).append(f"{uri}: {labels[address]}, {label}")
        else:
            typed.setdefault(address, uri)
    by_label: dict[str, list[storage.Entry]] = {label: [] for label in sorted(set(labels.values()))}
    for address in sorted(labels):
        found = storage.find_file(address)
        if found is None:
            faults.setdefault(" naming no file", []).append(typed[address])
            found = storage.Entry(address, address, 0, None, 0)
        label = labels[address]
        by_label[label].append(found._replace(name=f"{label}/{typed[address]}"))
    phrases = [
        f"{len(names):,} line{'s' if len(names) > 1 else ''}{what} ({name_some(names)})"
        for what, names in faults.items()
    ]
    return by_label, phrases if by_label or phrases else ["no lines"]
