"""Labelled images by a list: a manifest in CSV, JSON lines or Parquet with a column `uri` and a column `label`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import pyarrow as pa

from tlray import storage
from tlray.errors import DataError, FetchError
from tlray.sources import archives, manifests
from tlray.sources.candidates import has_image_name

URI, LABEL = "uri", "label"

_MAX_NAMED = 5


def read_labels(manifest: str) -> tuple[dict[str, list[storage.Entry]], list[str]]:
    """The images of a manifest by label, in the order of their addresses, and what is wrong with it.

    A file that several lines name under one label is there once. An entry's name is `LABEL/` and the address as it was
    typed; its size is 0 for an object, since asking for it would cost a request each.

    Args:
        manifest: its address; relative ones in it count from its folder.

    Returns:
        Entries by label, and one phrase for each kind of fault.

    Raises:
        DataError: it cannot be read.
    """
    try:
        schema, batches = manifests.open_batches(manifest)
        faults = _check_columns(schema)
        if faults:
            return {}, faults
        return _sort_lines(manifest.rpartition("/")[0], _iter_lines(batches))
    except (pa.ArrowException, FetchError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"the manifest {manifest} cannot be read: {storage.redact(str(error))}") from None


def name_some(names: Sequence[str]) -> str:
    """The first few of many names."""
    shown = ", ".join(names[:_MAX_NAMED])
    return shown if len(names) <= _MAX_NAMED else f"{shown}, ..."


def _check_columns(schema: pa.Schema) -> list[str]:
    faults = [f"no column {name}" for name in (URI, LABEL) if schema.names.count(name) == 0]
    faults += [f"{schema.names.count(name)} columns {name}" for name in (URI, LABEL) if schema.names.count(name) > 1]
    if faults:
        return [f"{' and '.join(faults)} (its columns: {', '.join(schema.names)})"]
    kinds = {URI: schema.field(URI).type, LABEL: schema.field(LABEL).type}
    return [f"a column {name} of {kind}, not text" for name, kind in kinds.items() if not _holds_text(kind)]


def _holds_text(kind: pa.DataType) -> bool:
    """Whether values may be addresses or labels; whole numbers are labels too."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)) or (
        pa.types.is_null(kind)
    )


def _iter_lines(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, str]]:
    """Address and label of each line; an empty text where there is none."""
    for batch in batches:
        columns = [batch[batch.schema.names.index(name)].to_pylist() for name in (URI, LABEL)]
        for values in zip(*columns, strict=True):
            uri, label = ("" if value is None else str(value) for value in values)
            yield uri, label


def _sort_lines(base: str, lines: Iterator[tuple[str, str]]) -> tuple[dict[str, list[storage.Entry]], list[str]]:
    labels: dict[str, str] = {}
    typed: dict[str, str] = {}
    faults: dict[str, list[str]] = {}
    for number, (uri, label) in enumerate(lines, start=1):
        if not uri.strip():
            faults.setdefault(" without an address", []).append(f"row {number:,}")
            continue
        address, reason = manifests.check_address(uri, base, ())
        address = address if storage.is_s3(address) else str(PurePosixPath(address))  # "a" and "./a" are one file
        if reason is not None:
            faults.setdefault(": " + reason.partition(";")[0], []).append(storage.redact(uri))
        elif archives.split_member(address) is not None:
            faults.setdefault(" in archives, which only predict looks into", []).append(uri)
        elif not has_image_name(address):
            faults.setdefault(" whose extension is not a known image extension", []).append(uri)
        elif not label.strip():
            faults.setdefault(" without a label", []).append(uri)
        elif labels.setdefault(address, label) != label:
            faults.setdefault(" under two labels", []).append(f"{uri}: {labels[address]}, {label}")
        else:
            typed.setdefault(address, uri)
    by_label: dict[str, list[storage.Entry]] = {label: [] for label in sorted(set(labels.values()))}
    for address in sorted(labels):
        size = storage.find_size(address)
        if size is None:
            faults.setdefault(" naming no file", []).append(typed[address])
        label = labels[address]
        by_label[label].append(storage.Entry(address, f"{label}/{typed[address]}", size or 0, None, 0))
    phrases = [
        f"{len(names):,} line{'s' if len(names) > 1 else ''}{what} ({name_some(names)})"
        for what, names in faults.items()
    ]
    return by_label, phrases if by_label or phrases else ["no lines"]
