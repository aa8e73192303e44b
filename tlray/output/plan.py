"""Write and read the plan: every input numbered once, as Parquet below `OUTPUT/_plan/`.

plan-*.parquet      one row per input: `PLAN_SCHEMA` and `input_*` columns, dense `row_id`s
excluded-*.parquet  addresses that were left out, with the reason
_plan.json          written last, so that its presence shows that the plan is whole
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tlray import storage
from tlray.errors import FetchError, OutputError
from tlray.sources.candidates import PACKED, REFUSED, SourceKind
from tlray.sources.listing import Candidates
from tlray.sources.manifests import lies_inside, list_prefixes
from tlray.sources.places import PLACE_FIELDS
from tlray.storage.records import Json, RecordError, dump_record, parse_record

FOLDER = "_plan"
RECORD = "_plan.json"

ROWS_PER_GROUP = 8192
"""Rows of a Parquet row group, which are read together."""

ROWS_PER_FILE = 128 * ROWS_PER_GROUP

PLAN_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.int64(), nullable=False),
        *PLACE_FIELDS,
    ]
)
"""A row's number and its place."""

EXCLUDED_SCHEMA = pa.schema([pa.field("uri", pa.string(), nullable=False), pa.field("reason", pa.string())])


@dataclass(frozen=True)
class Stream:
    """Rows that one pass over a packed archive reads: `count` rows from `first` on."""

    first: int
    count: int


@dataclass(frozen=True)
class PlanRecord:
    """`_plan.json`: the measures of a whole plan.

    Attributes:
        num_excluded: number of addresses left out.
        num_bytes: total size of the planned images whose sizes are known.
        refused_by_kind: rows that will not be read, by the `SourceKind` that says why.
        streams: rows of packed archives, one entry per pass.
        selection: the options that chose the rows.
    """

    num_rows: int
    num_excluded: int
    excluded_by_reason: dict[str, int]
    num_bytes: int
    refused_by_kind: dict[str, int]
    streams: list[Stream]
    image_column: str | None
    selection: dict[str, Json]


@dataclass(frozen=True)
class Plan:
    """A whole plan in the folder `address`; only its measures are held in memory."""

    address: str
    measures: PlanRecord

    @property
    def num_rows(self) -> int:
        """Number of planned inputs."""
        return self.measures.num_rows

    @property
    def image_column(self) -> str | None:
        """Column of images in Parquet inputs, None without any."""
        return self.measures.image_column

    def read(self, first: int, count: int) -> pa.Table:
        """Return the rows `first` to `first + count - 1`.

        Raises:
            OutputError: the plan is damaged, or names addresses outside of the inputs that it was made of.
        """
        stop = min(first + count, self.num_rows)
        if first >= stop:
            return _read_group(self.address, 0, self._prefixes).slice(0, 0)
        groups = range(first // ROWS_PER_GROUP, (stop - 1) // ROWS_PER_GROUP + 1)
        table = pa.concat_tables(_read_group(self.address, group, self._prefixes) for group in groups)
        return table.slice(first - groups.start * ROWS_PER_GROUP, stop - first)

    def take(self, row_ids: npt.NDArray[np.int64]) -> pa.Table:
        """Return rows in the order of `row_ids`."""
        groups = row_ids // ROWS_PER_GROUP
        order = np.argsort(groups, kind="stable")
        pieces = [self.read(0, 0)]
        for group in np.unique(groups):
            inside = row_ids[groups == group] - group * ROWS_PER_GROUP
            pieces.append(self.read(int(group) * ROWS_PER_GROUP, ROWS_PER_GROUP).take(pa.array(inside)))
        return pa.concat_tables(pieces).take(pa.array(np.argsort(order)))

    def iter_tables(self) -> Iterator[pa.Table]:
        """Yield all rows in order, a row group at a time."""
        for first in range(0, self.num_rows, ROWS_PER_GROUP):
            yield self.read(first, ROWS_PER_GROUP)

    @property
    def input_fields(self) -> list[pa.Field]:
        """The `input_*` columns."""
        return list(_open_file(self.address, 0).schema_arrow)[len(PLAN_SCHEMA) :]

    @property
    def _prefixes(self) -> tuple[str, ...] | None:
        """Prefixes of all addresses of the rows; None if the plan does not tell its inputs."""
        selection = self.measures.selection
        return list_prefixes(selection["input"], selection["allow"]) if "input" in selection else None


@lru_cache(maxsize=4)
def _open_file(address: str, number: int) -> pq.ParquetFile:
    return pq.ParquetFile(storage.open_arrow(storage.join(address, _name("plan", number))))


@lru_cache(maxsize=8)
def _read_group(address: str, group: int, prefixes: tuple[str, ...] | None) -> pa.Table:
    """Read rows as they come from a store to which others may write: check what they may make a run read."""
    number, inside = divmod(group, ROWS_PER_FILE // ROWS_PER_GROUP)
    try:
        table = _open_file(address, number).read_row_group(inside)
        fault = _find_fault(table, group * ROWS_PER_GROUP, prefixes)
    except (FetchError, pa.ArrowException, OSError) as error:
        fault = storage.redact(str(error))
    if fault:
        name = storage.join(address, _name("plan", number))
        raise OutputError(f"{name} is damaged: {fault}; give a new --output, or restore it")
    return table


def _find_fault(rows: pa.Table, first: int, prefixes: tuple[str, ...] | None) -> str | None:
    if [*rows.schema][: len(PLAN_SCHEMA)] != [*PLAN_SCHEMA]:
        return "other columns than a plan's"
    if not np.array_equal(rows["row_id"].to_numpy(), np.arange(first, first + rows.num_rows)):
        return "its rows are not numbered in order"
    if strange := {*rows["source"].unique().to_pylist()} - {*SourceKind}:
        return f"unknown kinds of sources ({', '.join(sorted(strange))})"
    for uri, member in zip(rows["uri"].to_pylist(), rows["member"].to_pylist(), strict=True):
        address = uri if member is None else uri[: -len(member) - 1]
        if prefixes is not None and not lies_inside(address, prefixes):
            return f"{storage.redact(uri)} lies outside of the inputs"
    return None


def _forget_files() -> None:
    _open_file.cache_clear()
    _read_group.cache_clear()


def _name(kind: str, number: int) -> str:
    return f"{kind}-{number:05d}.parquet"


def open_plan(output: str) -> Plan | None:
    """Return the plan of an output, None if it has no whole one.

    Raises:
        OutputError: the plan is damaged.
    """
    address = storage.join(output, FOLDER)
    record = storage.join(address, RECORD)
    if not storage.exists(record):
        return None
    _forget_files()
    try:
        measures = parse_record(PlanRecord, storage.get(record))
    except RecordError as error:
        raise OutputError(f"{record} is damaged: {error}; it was written by another tlray, or edited") from None
    return Plan(address, measures)


def write_plan(output: str, found: Candidates, selection: dict[str, Json], image_column: str | None) -> Plan:
    """Number the candidates and write them as they come, holding one file of compressed rows in memory.

    The remains of an interrupted planning are removed first.
    """
    address = storage.join(output, FOLDER)
    storage.delete_folder(address)
    _forget_files()
    rows = _Files(address, "plan", pa.schema([*PLAN_SCHEMA, *found.fields]))
    excluded = _Files(address, "excluded", EXCLUDED_SCHEMA)
    by_reason: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    streams: list[Stream] = []
    num_bytes = 0
    stream = ("", 0)
    for candidate in found.rows:
        if candidate.reason is not None:
            reason = storage.redact(candidate.reason)
            by_reason[reason] += 1
            excluded.add((storage.redact(_make_text(candidate.uri)), reason))
            continue
        if candidate.source in PACKED:
            place = (candidate.uri[: -len(candidate.member or "")], candidate.offset or 0)
            if place[0] != stream[0] or place[1] < stream[1]:
                streams.append(Stream(rows.count, 0))
            streams[-1] = Stream(streams[-1].first, rows.count + 1 - streams[-1].first)
            stream = place
        elif candidate.source in REFUSED:
            refused[candidate.source.value] += 1
        else:
            stream = ("", 0)
        num_bytes += candidate.size or 0
        own = candidate.inputs or {}
        rows.add((rows.count, candidate.uri, *candidate[2:10], *(own.get(field.name) for field in found.fields)))
    rows.close()
    excluded.close()
    counts = (rows.count, excluded.count, dict(by_reason), num_bytes, dict(refused))
    measures = PlanRecord(*counts, streams, image_column, selection)
    storage.put(storage.join(address, RECORD), dump_record(measures))
    return Plan(address, measures)


class _Files:
    """A writer of rows into numbered Parquet files, each written whole, at least one."""

    def __init__(self, address: str, kind: str, schema: pa.Schema) -> None:
        self.count = 0
        self._address = address
        self._kind = kind
        self._schema = schema
        self._number = 0
        self._rows: list[Sequence[object]] = []
        self._buffer = io.BytesIO()
        self._writer = self._open()

    def _open(self) -> pq.ParquetWriter:
        return pq.ParquetWriter(self._buffer, self._schema, compression="zstd")

    def add(self, row: Sequence[object]) -> None:
        """Take one row."""
        self._rows.append(row)
        self.count += 1
        if len(self._rows) == ROWS_PER_GROUP:
            self._flush()
            if self.count % ROWS_PER_FILE == 0:
                self._put()

    def close(self) -> None:
        """Write the remaining rows."""
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
    """Return an address as valid UTF-8, which Parquet requires."""
    return uri.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
