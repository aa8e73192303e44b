"""The plan: every input numbered once, kept as Parquet below `OUTPUT/_plan/`, read back a slice at a time.

plan-*.parquet      one row an input, by `PLAN_SCHEMA` and `input_*` columns, dense `row_id`s
excluded-*.parquet  what was seen and left out, with the reason
_plan.json          written last: the plan is whole
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tlray import storage
from tlray.sources.candidates import REFUSED, SourceKind
from tlray.sources.listing import Candidates

FOLDER = "_plan"
RECORD = "_plan.json"

ROWS_PER_GROUP = 8192
"""Rows that are read together: a Parquet row group."""

ROWS_PER_FILE = 128 * ROWS_PER_GROUP

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
"""`source` is a `SourceKind`; `member`, `offset` and `length` say where inside an archive the row lies."""

EXCLUDED_SCHEMA = pa.schema([pa.field("uri", pa.string(), nullable=False), pa.field("reason", pa.string())])


@dataclass(frozen=True)
class Plan:
    """A whole plan; only its measures are held in memory.

    Attributes:
        address: its folder.
        num_rows: inputs planned.
        num_excluded: addresses seen and left out.
        excluded_by_reason: how many of them for each reason.
        num_bytes: of the planned images, as far as their sizes are known.
        streams: `(first, count)` of rows that one pass over a gzipped archive reads.
        image_column: of Parquet inputs, None where there are none.
        selection: what decided the rows, for comparison.
    """

    address: str
    num_rows: int
    num_excluded: int
    excluded_by_reason: dict[str, int]
    num_bytes: int
    streams: list[tuple[int, int]]
    image_column: str | None
    selection: dict[str, Any]

    def read(self, first: int, count: int) -> pa.Table:
        """Rows `first` to `first + count - 1`, all columns."""
        pieces = []
        start, stop = first, min(first + count, self.num_rows)
        while start < stop:
            number, inside = divmod(start, ROWS_PER_FILE)
            group, skip = divmod(inside, ROWS_PER_GROUP)
            table = _read_group(self.address, number, group)
            piece = table.slice(skip, stop - start)
            pieces.append(piece)
            start += piece.num_rows
        return pa.concat_tables(pieces) if pieces else _read_group(self.address, 0, 0).slice(0, 0)

    def take(self, row_ids: npt.NDArray[np.int64]) -> pa.Table:
        """Rows in the order asked for, all columns."""
        groups = row_ids // ROWS_PER_GROUP
        order = np.argsort(groups, kind="stable")
        pieces = [self.read(0, 0)]
        for group in np.unique(groups):
            inside = row_ids[groups == group] - group * ROWS_PER_GROUP
            pieces.append(self.read(int(group) * ROWS_PER_GROUP, ROWS_PER_GROUP).take(pa.array(inside)))
        return pa.concat_tables(pieces).take(pa.array(np.argsort(order)))

    def iter_tables(self) -> Iterator[pa.Table]:
        """All rows in order, a row group at a time."""
        for first in range(0, self.num_rows, ROWS_PER_GROUP):
            yield self.read(first, ROWS_PER_GROUP)

    @property
    def input_fields(self) -> list[pa.Field]:
        """The `input_*` columns."""
        return list(_open_file(self.address, 0).schema_arrow)[len(PLAN_SCHEMA) :]


@lru_cache(maxsize=4)
def _open_file(address: str, number: int) -> pq.ParquetFile:
    return pq.ParquetFile(storage.open_arrow(storage.join(address, _name("plan", number))))


@lru_cache(maxsize=8)
def _read_group(address: str, number: int, group: int) -> pa.Table:
    return _open_file(address, number).read_row_group(group)


def _name(kind: str, number: int) -> str:
    return f"{kind}-{number:05d}.parquet"


def open_plan(output: str) -> Plan | None:
    """The plan of an output, None where there is no whole one."""
    address = storage.join(output, FOLDER)
    record = storage.join(address, RECORD)
    if not storage.exists(record):
        return None
    _open_file.cache_clear()
    _read_group.cache_clear()
    fields = json.loads(storage.get(record))
    return Plan(**{**fields, "address": address, "streams": [tuple(stream) for stream in fields["streams"]]})


def write_plan(output: str, found: Candidates, selection: dict[str, Any], image_column: str | None) -> Plan:
    """Number the candidates and write them as they come; memory holds one file's worth of compressed rows.

    What an interrupted planning left is removed first.
    """
    address = storage.join(output, FOLDER)
    storage.delete_folder(address)
    rows = _Files(address, "plan", pa.schema([*PLAN_SCHEMA, *found.fields]))
    excluded = _Files(address, "excluded", EXCLUDED_SCHEMA)
    by_reason: dict[str, int] = {}
    streams: list[tuple[int, int]] = []
    num_bytes = 0
    stream = ("", 0)
    for candidate in found.rows:
        if candidate.reason is not None:
            reason = storage.redact(candidate.reason)
            by_reason[reason] = by_reason.get(reason, 0) + 1
            excluded.add((storage.redact(_make_text(candidate.uri)), reason))
            continue
        if candidate.source is SourceKind.TAR_GZ:
            place = (candidate.uri[: -len(candidate.member or "")], candidate.offset or 0)
            if place[0] != stream[0] or place[1] < stream[1]:
                streams.append((rows.count, 0))
            streams[-1] = (streams[-1][0], rows.count + 1 - streams[-1][0])
            stream = place
        elif candidate.source not in REFUSED:
            stream = ("", 0)
        num_bytes += candidate.size or 0
        own = candidate.inputs or {}
        rows.add((rows.count, candidate.uri, *candidate[2:9], *(own.get(field.name) for field in found.fields)))
    rows.close()
    excluded.close()
    plan = Plan(address, rows.count, excluded.count, by_reason, num_bytes, streams, image_column, selection)
    told = asdict(replace(plan, address=FOLDER))
    storage.put(storage.join(address, RECORD), (json.dumps(told, indent=2, ensure_ascii=False) + "\n").encode())
    return plan


class _Files:
    """Rows into numbered Parquet files, each written whole; there is always at least one."""

    def __init__(self, address: str, kind: str, schema: pa.Schema) -> None:
        self.count = 0
        self._address = address
        self._kind = kind
        self._schema = schema
        self._number = 0
        self._rows: list[tuple[Any, ...]] = []
        self._buffer = io.BytesIO()
        self._writer = self._open()

    def _open(self) -> pq.ParquetWriter:
        return pq.ParquetWriter(self._buffer, self._schema, compression="zstd")

    def add(self, row: Sequence[Any]) -> None:
        """Take one row."""
        self._rows.append(tuple(row))
        self.count += 1
        if len(self._rows) == ROWS_PER_GROUP:
            self._flush()
            if self.count % ROWS_PER_FILE == 0:
                self._put()

    def close(self) -> None:
        """Write what is left."""
        if self._rows or self.count == 0:
            self._flush()
        if self.count % ROWS_PER_FILE or self.count == 0:
            self._put()

    def _flush(self) -> None:
        columns = list(zip(*self._rows, strict=True)) or [()] * len(self._schema)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._writer.write_table(pa.table(arrays, schema=self._schema), row_group_size=ROWS_PER_GROUP)
        self._rows = []

    def _put(self) -> None:
        self._writer.close()
        storage.put(storage.join(self._address, _name(self._kind, self._number)), self._buffer.getvalue())
        self._number += 1
        self._buffer = io.BytesIO()
        self._writer = self._open()


def _make_text(uri: str) -> str:
    """An address that Parquet can hold."""
    return uri.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
