"""Parquet files with a column of encoded images: each row is an input."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tlray import storage
from tlray.console import say
from tlray.errors import UNREACHABLE, DataError, FetchError, StoppedError
from tlray.sources.candidates import Candidate, SourceKind
from tlray.sources.columns import list_values, make_portable, name_columns

_ROWS = 8192
_MAX_AHEAD_ROWS = 64
_MANY_ROWS, _FEW_ROWS = 10_000, 1_000
_MAX_AHEAD_BYTES = 64 * 2**20


class NotATableError(DataError):
    """A file that is not Parquet or lacks the column of images."""


def is_table(uri: str) -> bool:
    """Return whether a name has Parquet's extension."""
    return uri.lower().endswith(".parquet")


def read_names(uri: str) -> list[str]:
    """Return the names of a Parquet file's columns.

    Raises:
        NotATableError: it cannot be read.
        StoppedError: it cannot be reached.
    """
    return list(_open(uri).schema_arrow.names)


def list_image_columns(uri: str) -> list[str]:
    """Return the columns of a Parquet file that may hold encoded images; errors as `read_names`."""
    return [field.name for field in _open(uri).schema_arrow if _holds_bytes(field.type)]


def iter_labels(entry: storage.Entry, column: str) -> Iterator[tuple[Candidate, object]]:
    """Yield each row of a table and its value of a column of labels; errors as `read_names`."""
    file = _open(entry.uri)
    schema = file.schema_arrow
    if schema.names.count(column) != 1 or not _is_plain(schema.field(column).type):
        told = ", ".join(f"{field.name} {field.type}" for field in schema)
        raise NotATableError(f"{entry.uri} has no one column {column} of labels (its columns: {told})")
    largest = max((file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)), default=0)
    if largest > _MANY_ROWS:
        say(
            f"WARNING: {entry.uri} has {largest:,} rows in a row group, and each reading of a few decodes it from its "
            f"beginning; write it with row groups of {_FEW_ROWS:,}"
        )
    kind = make_portable(schema.field(column).type)
    for row, (value,) in enumerate(_iter_own(entry, file, [column], [pa.field(column, kind)])):
        yield _describe(entry, row, None), value


def read_class_names(uri: str, column: str) -> list[str] | None:
    """Return the names that Hugging Face's schema gives the numbers of a column; None without any.

    Raises:
        NotATableError: it cannot be read.
        StoppedError: it cannot be reached.
    """
    metadata = _open(uri).schema_arrow.metadata or {}
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][column]
        names = feature["names"]
    except (ValueError, LookupError, TypeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _open(uri: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(storage.open_arrow(uri))
    except FetchError as error:
        kind = StoppedError if error.code in UNREACHABLE else NotATableError
        raise kind(f"{uri} cannot be read: {error}") from None
    except (pa.ArrowException, OSError) as error:
        raise NotATableError(f"{uri} cannot be read as Parquet: {storage.redact(str(error))}") from None
    except UnicodeDecodeError:
        raise NotATableError(f"{uri} cannot be read as Parquet: its schema is damaged") from None


def read_table(entry: storage.Entry, image_column: str) -> tuple[list[pa.Field], Iterator[Candidate]]:
    """Return a table's other plain columns as `input_*` fields, and one candidate for each of its rows.

    Args:
        entry: the Parquet file.
        image_column: encoded images, as binary or as a struct with a binary field `bytes`.

    Raises:
        NotATableError: it cannot be read, or its image column is of another kind.
        StoppedError: it cannot be reached.
    """
    file = _open(entry.uri)
    schema = file.schema_arrow
    if (count := schema.names.count(image_column)) > 1:
        raise NotATableError(f"{entry.uri} has {count} columns {image_column!r}; rename all but one")
    if image_column not in schema.names or not _holds_bytes(schema.field(image_column).type):
        allowed = "a column of binary values, or of structs with binary `bytes`"
        told = ", ".join(f"{field.name} {field.type}" for field in schema)
        raise NotATableError(f"--image-column takes {allowed}; got {image_column!r}, and {entry.uri} has {told}")
    first = list({field.name: field for field in reversed(list(schema))}.values())[::-1]
    own = [field for field in first if field.name != image_column and _is_plain(field.type)]
    fields = [
        pa.field(name, make_portable(field.type))
        for name, field in zip(name_columns([field.name for field in own]), own, strict=True)
    ]
    return fields, _read_rows(entry, file, [field.name for field in own], fields)


def _read_rows(
    entry: storage.Entry, file: pq.ParquetFile, names: list[str], fields: list[pa.Field]
) -> Iterator[Candidate]:
    row = 0
    for values in _iter_own(entry, file, names, fields) if names else ():
        yield _describe(entry, row, {field.name: value for field, value in zip(fields, values, strict=True)})
        row += 1
    for number in range(row, file.metadata.num_rows):
        yield _describe(entry, number, None)


def _iter_own(
    entry: storage.Entry, file: pq.ParquetFile, names: list[str], fields: list[pa.Field]
) -> Iterator[tuple[object, ...]]:
    """Yield the values of a row's own columns; of columns of one name, those of the first."""
    try:
        for batch in file.iter_batches(_ROWS, columns=names):
            found = batch.schema.names
            columns = [
                list_values(batch.column(found.index(name)), field.type)
                for name, field in zip(names, fields, strict=True)
            ]
            yield from zip(*columns, strict=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{entry.uri} cannot be read to its end: {storage.redact(str(error))}; copy it again") from None


def _describe(entry: storage.Entry, row: int, inputs: dict[str, object] | None) -> Candidate:
    return Candidate(
        uri=f"{entry.uri}#{row}",
        name=f"{entry.name}#{row}",
        source=SourceKind.PARQUET,
        member=str(row),
        offset=row,
        etag=entry.etag,
        mtime_ns=entry.mtime_ns,
        inputs=inputs,
        named=True,
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_plain(kind: pa.DataType) -> bool:
    return not (pa.types.is_nested(kind) or _holds_bytes(kind))


def iter_images(uri: str, image_column: str, rows: npt.NDArray[np.int64]) -> Iterator[bytes | None]:
    """Yield the encoded images of some rows, None for a null.

    Memory holds the image column of one row group at most, and some 64 MiB of images beside it.

    Args:
        uri: the Parquet file.
        image_column: as in `read_table`.
        rows: numbers of the rows, ascending.

    Raises:
        FetchError: the table cannot be read.
    """
    file = pq.ParquetFile(storage.open_arrow(uri))
    starts = np.cumsum([0] + [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
    groups = np.searchsorted(starts, rows, side="right") - 1
    for group in np.unique(groups):
        wanted = set(rows[groups == group].tolist())
        first = int(starts[group])
        for batch in file.iter_batches(_count_ahead(file, int(group)), row_groups=[int(group)], columns=[image_column]):
            here = [index for index in range(batch.num_rows) if first + index in wanted]
            for index in here:
                value = batch.column(0)[index].as_py()
                yield value["bytes"] if isinstance(value, dict) else value
            first += batch.num_rows
            if first > max(wanted):
                break


def _count_ahead(file: pq.ParquetFile, group: int) -> int:
    """Return the number of rows of a row group to read at once; Arrow cannot hold 2 GiB of images in one array."""
    metadata = file.metadata.row_group(group)
    fitting: int = _MAX_AHEAD_BYTES * metadata.num_rows // max(1, metadata.total_byte_size)
    return max(1, min(_MAX_AHEAD_ROWS, fitting))
