"""Labelled images for training: class folders, a manifest, archives or tables as rows, numbered from 0."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa

from tlray import storage
from tlray.console import say
from tlray.errors import DataError
from tlray.images.formats import EXTENSIONS
from tlray.sources import archives, lists, manifests
from tlray.sources.candidates import PACKED, REFUSED, Candidate, find_litter, has_image_name, strip_here
from tlray.sources.listing import find_members
from tlray.sources.places import Places, make_places
from tlray.sources.shards import (
    LABEL,
    UNPACK,
    Shards,
    Traits,
    find_conflicts,
    holds_images,
    is_shard,
    list_shards,
)

URI = "uri"
"""Column of addresses in a list of labelled images."""

_MAX_NAMED = 5


@dataclass(frozen=True)
class LabelledImages:
    """Labelled images.

    Attributes:
        classes: class names, sorted; a label is an index into them.
        table: `row_id int64, uri string, name string, label int32, size int64, version string`, in order of class, then
            name, or of archives and tables; `size` is 0 where it is unknown, `version` is as `storage.Entry.version`.
        places: of the images, by row id.
    """

    classes: tuple[str, ...]
    table: pa.Table
    places: Places


class _Found(NamedTuple):
    """A labelled image; attributes as in `LabelledImages.table`, `place` is that in archives and tables."""

    candidate: Candidate
    name: str
    size: int
    version: str
    place: int = 0


@dataclass(frozen=True)
class _Listing:
    """The content of one root.

    Attributes:
        by_class: images by class.
        faults: one phrase for each kind of fault.
        allowed: what it takes, for errors.
        traits: of archives and tables, for `find_conflicts`.
    """

    by_class: dict[str, list[_Found]]
    faults: list[str]
    allowed: str
    image_column: str | None = None
    traits: Traits = field(default_factory=dict)


def scan(
    roots: str | Sequence[str],
    classes: Sequence[str] | None = None,
    *,
    option: str = "--data",
    label_column: str = LABEL,
) -> LabelledImages:
    """List labelled images in class folders, `root/CLASS/image`, in a manifest, or in archives and tables.

    Args:
        roots: folders or s3:// prefixes, of class folders or of archives and tables; some of these; or .csv, .jsonl or
            .parquet with columns `uri` and `label`. An image that several name under one label counts once.
        classes: allowed class names; None for the first scan, which sets them.
        option: the command-line option of `roots`, for errors.
        label_column: column of labels in manifests and tables, and key in JSON sidecars.

    Raises:
        DataError: one message with every fault.
    """
    listings = [_list(root, option, label_column) for root in ([roots] if isinstance(roots, str) else roots)]
    found = listings[0] if len(listings) == 1 else _join(listings)
    if faults := [*found.faults, *find_conflicts(found.traits), *_find_class_faults(found.by_class, classes)]:
        raise DataError(f"{option} takes {found.allowed}, of at least two classes; got {'; '.join(faults)}")
    names = tuple(classes) if classes is not None else _sort_classes(found.by_class)
    labels = {name: index for index, name in enumerate(names)}
    rows = [(image, labels[name]) for name in names for image in found.by_class.get(name, ())]
    rows.sort(key=lambda row: row[0].place)  # archives and tables are read fastest in their own order
    table = pa.table(
        {
            "row_id": pa.array(range(len(rows)), pa.int64()),
            "uri": pa.array([image.candidate.uri for image, _ in rows], pa.string()),
            "name": pa.array([image.name for image, _ in rows], pa.string()),
            "label": pa.array([label for _, label in rows], pa.int32()),
            "size": pa.array([image.size for image, _ in rows], pa.int64()),
            "version": pa.array([image.version for image, _ in rows], pa.string()),
        }
    )
    return LabelledImages(names, table, make_places([image.candidate for image, _ in rows], found.image_column))


def _join(listings: Sequence[_Listing]) -> _Listing:
    """Join what several roots hold; an image under two labels is a fault."""
    by_class: dict[str, list[_Found]] = {}
    labels: dict[tuple[str, int | None], str] = {}
    twice = []
    first_place = 0
    for listing in listings:
        for label, images in listing.by_class.items():
            kept = by_class.setdefault(label, [])
            for image in images:
                key = (image.candidate.uri, image.candidate.offset)
                if key not in labels:
                    labels[key] = label
                    kept.append(image._replace(place=first_place + image.place if image.place else 0))
                elif labels[key] != label:
                    twice.append(f"{image.candidate.uri}: {labels[key]}, {label}")
        first_place += sum(map(len, listing.by_class.values()))
    faults = list(dict.fromkeys(fault for listing in listings for fault in listing.faults))
    if twice:
        faults.append(f"{len(twice):,} images under two labels ({name_some(twice)})")
    traits: Traits = {}
    for listing in listings:
        for conflict, values in listing.traits.items():
            for value, example in values.items():
                traits.setdefault(conflict, {}).setdefault(value, example)
    allowed = "; or ".join(dict.fromkeys(listing.allowed for listing in listings))
    image_column = next((listing.image_column for listing in listings if listing.image_column is not None), None)
    return _Listing(by_class, faults, allowed, image_column, traits)


def _list(root: str, option: str, label_column: str) -> _Listing:
    if lists.is_list(root) and not holds_images(root, URI):
        by_class, faults = read_labels(root, label_column)
        return _Listing(by_class, faults, f"a manifest with the columns {URI} and {label_column}")
    entries = storage.list_files(root)
    if shards := _choose_shards(entries):
        listing = _sort_members(list_shards(shards, label_column), len(entries) - len(shards), option)
        if unreadable := [f"{entry.uri}: {entry.unreadable}" for entry in entries if entry.unreadable]:
            listing.faults.append(f"{len(unreadable):,} files or folders that cannot be read ({name_some(unreadable)})")
        return listing
    by_class, faults = _list_folders(root, entries, option)
    allowed = f"a folder that holds one folder of images for each class ({root}/CLASS/image.jpg), archives or tables"
    return _Listing(by_class, faults, allowed)


def _choose_shards(entries: Sequence[storage.Entry]) -> list[storage.Entry]:
    """Return the archives and tables among files that can be read; none where there are images in class folders too."""
    found = [entry for entry in entries if entry.unreadable is None and find_litter(entry.name) is None]
    shards = [entry for entry in found if is_shard(entry.name)]
    folders = {PurePosixPath(entry.name).parent for entry in shards}
    others = [PurePosixPath(entry.name) for entry in found if not is_shard(entry.name) and not entry.name.endswith("/")]
    if any(_may_be_image(name, beside_shards=name.parent in folders) for name in others):
        return []
    return shards


def _may_be_image(name: PurePosixPath, *, beside_shards: bool) -> bool:
    """Return whether a file may be an image: one without an extension only in a folder without archives and tables."""
    return has_image_name(name.name) and (bool(name.suffix) or (len(name.parts) > 1 and not beside_shards))


def _sort_members(shards: Shards, others: int, option: str) -> _Listing:
    passed = shards.passed
    if others:
        passed["beside the archives and tables"] = others
    if passed:
        say(f"{option}: passed over: {_count(passed)}")
    by_class: dict[str, list[_Found]] = {}
    for place, member in enumerate(shards.members, start=1):
        label = _compose(member.label)
        image = _Found(member.candidate, f"{label}/{member.name}", member.size, member.version, place)
        by_class.setdefault(label, []).append(image)
    by_class.pop("", None)  # which is a fault
    allowed = "archives and tables of labelled images"
    return _Listing(by_class, shards.faults, allowed, shards.image_column, shards.traits)


def _sort_classes(by_class: Collection[str]) -> tuple[str, ...]:
    """Sort class names as text, or as numbers if all are."""
    as_text = sorted(by_class)
    if not all(name.isdecimal() for name in by_class):
        return tuple(as_text)
    as_numbers = sorted(by_class, key=lambda name: (int(name), name))
    if as_numbers != as_text:
        say(f"the class names are numbers and sorted as such: {name_some(as_numbers)}")
    return tuple(as_numbers)


def _list_folders(
    root: str, entries: Sequence[storage.Entry], option: str
) -> tuple[dict[str, list[_Found]], list[str]]:
    """Return the images of class folders by class, and one phrase for each kind of fault; say what was passed over."""
    by_class: dict[str, list[_Found]] = {}
    passed: dict[str, Counter[str]] = {}
    beside, nested = [], []
    for entry in entries:
        *folders, base = entry.name.split("/")
        label = _compose(folders[0]) if folders else ""
        if litter := entry.unreadable or find_litter(entry.name):
            passed.setdefault("", Counter())[litter] += 1
        elif not folders:
            if PurePosixPath(base).suffix.lower() in EXTENSIONS:
                beside.append(base)
            elif is_shard(base):
                passed.setdefault("", Counter())["archives and tables beside class folders"] += 1
        elif not base or not has_image_name(base):
            by_class.setdefault(label, [])
            if base:
                passed.setdefault(label, Counter())[f"named {PurePosixPath(base).suffix}, which is no image"] += 1
        elif len(folders) > 1:
            by_class.setdefault(label, [])
            nested.append(entry.name)
        else:
            by_class.setdefault(label, []).append(_find_entry(entry, entry.name))
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


def _find_entry(entry: storage.Entry, name: str) -> _Found:
    return _Found(Candidate(entry.uri, entry.name), name, entry.size, entry.version)


def _find_class_faults(by_class: dict[str, list[_Found]], classes: Sequence[str] | None) -> list[str]:
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


def read_labels(manifest: str, label_column: str = LABEL) -> tuple[dict[str, list[_Found]], list[str]]:
    """Return the images of a manifest by label, in the order of their addresses, and its faults.

    A file on several lines under one label is listed once. An image's name is `LABEL/` and the address as typed; its
    size is 0 for an object, since finding it would cost a request. Members of archives are found in their archive.

    Args:
        manifest: address; relative addresses in it start at its folder.

    Returns:
        Entries by label, and one phrase for each kind of fault.

    Raises:
        DataError: it cannot be read.
    """
    opened = lists.open_list(manifest, URI, as_text=(label_column,))
    if missing := [f"no column {name}" for name in (URI, label_column) if name not in opened.names]:
        return {}, [f"{' and '.join(missing)} (its columns: {lists.shorten(', '.join(opened.names))})"]
    return _sort_lines(manifest.rpartition("/")[0], _iter_lines(opened, label_column))


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


def _iter_lines(opened: lists.ListFile, label_column: str) -> Iterator[tuple[int, str, str]]:
    """Yield the number, address and label of each line, empty where missing; blanks around a label are dropped."""
    uri, label = opened.names.index(URI), opened.names.index(label_column)
    for number, values in opened.lines:
        address, name = (values[uri] or "", values[label] or "") if values is not None else ("", "")
        yield number, address, _compose(name.strip())


def _resolve(uri: str, base: str) -> tuple[str, str | None]:
    """Return the address that a line names, and the reason why it may not be read, or None."""
    address, reason = manifests.check_address(uri, base, ())
    if (parts := archives.split_member(address)) is not None:
        archive, member = parts
        archive = archive if storage.is_s3(archive) else str(PurePosixPath(archive))
        return f"{archive}#{strip_here(member)}", reason
    # "a" and "./a" are one file
    return address if storage.is_s3(address) else str(PurePosixPath(address)), reason


def _sort_lines(base: str, lines: Iterator[tuple[int, str, str]]) -> tuple[dict[str, list[_Found]], list[str]]:
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
        elif not label:
            faults.setdefault(" without a label", []).append(uri)
        elif labels.setdefault(address, label) != label:
            faults.setdefault(" under two labels", []).append(f"{uri}: {labels[address]}, {label}")
        else:
            typed.setdefault(address, uri)
    by_label: dict[str, list[_Found]] = {label: [] for label in sorted(set(labels.values()))}
    for address in sorted(labels):
        label = labels[address]
        name = f"{label}/{typed[address]}"
        if archives.split_member(address) is not None:
            members = find_members(address)
            member = members[0] if members else None
            if member is None:
                faults.setdefault(" naming no file in its archive", []).append(typed[address])
            elif len(members) > 1:
                faults.setdefault(" naming one of several members of that name", []).append(typed[address])
            elif member.source in REFUSED:
                faults.setdefault(f": {REFUSED[member.source][1]}", []).append(typed[address])
            elif member.source in PACKED:
                faults.setdefault(f" in packed archives; {UNPACK}", []).append(typed[address])
            else:
                by_label[label].append(_Found(member, name, member.size or 0, ""))
            continue
        found = storage.find_file(address)
        if found is None:
            faults.setdefault(" naming no file", []).append(typed[address])
            found = storage.Entry(address, address, 0, None, 0)
        by_label[label].append(_find_entry(found, name))
    phrases = [
        f"{len(names):,} line{'s' if len(names) > 1 else ''}{what} ({name_some(names)})"
        for what, names in faults.items()
    ]
    return by_label, phrases if by_label or phrases else ["no lines"]
