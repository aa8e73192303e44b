"""Write labels as Parquet parts, each a fixed range of row ids that is written whole.

A part's name follows from its rows, so that a repeated write overwrites. Predictions of parts that are not full yet
wait in memory, and in the files of `waiting`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tlray import storage
from tlray.errors import OK, UNREACHABLE
from tlray.model.bundle import Bundle
from tlray.output.rowset import RowSet
from tlray.output.schema import LABEL_FIELDS, MODEL_ID_KEY, PREDICTED_COLUMNS, from_parquet, to_parquet
from tlray.output.waiting import WaitingFiles

FOLDER = "labels"

CLASSES_KEY = b"tlray.classes"

_MAX_HELD_BYTES = 256 * 2**20
_NAME = re.compile(r"part-(\d{12})-(\d{12})\.parquet")


class PlannedRows(Protocol):
    """The source of a part's planned columns."""

    @property
    def num_rows(self) -> int:
        """Number of planned rows."""

    def read(self, first: int, count: int) -> pa.Table:
        """Return rows by `plan.PLAN_SCHEMA`, with their `input_*` columns."""


class EarlierPredictions(Protocol):
    """Predictions that an earlier output has for some rows."""

    def take(self, rows: pa.Table) -> pa.Table:
        """Return the predictions of planned rows."""


@dataclass(frozen=True)
class Part:
    """One written part.

    Attributes:
        name: file name below `labels/`.
        sha256: checksum of the file.
        failed_by_code: number of failed rows by status.
        needs_review: number of rows that need a review.
    """

    name: str
    rows: int
    sha256: str
    failed_by_code: dict[str, int]
    needs_review: int = 0


def get_row_ids(name: str) -> range:
    """Return the row ids of a part by its name; an empty range for any other name."""
    match = _NAME.fullmatch(name)
    return range(0) if match is None else range(int(match[1]), int(match[2]) + 1)


def make_name(first: int, count: int) -> str:
    """Return the name of the part that holds `count` rows from `first` on."""
    return f"part-{first:012d}-{first + count - 1:012d}.parquet"


def make_schema(
    bundle: Bundle, run_id: str, input_fields: Sequence[pa.Field], extra_fields: Sequence[pa.Field] = ()
) -> pa.Schema:
    """Return the columns and file metadata of a run's parts; `extra_fields` are by `schema.list_extra_fields`."""
    metadata = {
        MODEL_ID_KEY.decode(): bundle.model_id,
        CLASSES_KEY.decode(): json.dumps(bundle.classes, ensure_ascii=False),
        "tlray.preprocessing": bundle.preprocessing_fingerprint,
        "tlray.run_id": run_id,
    }
    return pa.schema([*LABEL_FIELDS, *extra_fields, *input_fields], metadata=metadata)


@dataclass
class _Open:
    """A part that is not full yet.

    Attributes:
        awaited: mask of the rows that have not arrived.
        unsaved: rows that no file holds.
        saved: files of the other rows, and their tables, None where only the file has them.
        statuses: arrived rows by status.
    """

    awaited: npt.NDArray[np.bool_]
    unsaved: list[pa.Table] = field(default_factory=list)
    saved: dict[str, pa.Table | None] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)


class PartWriter:
    """Collects predictions in any order and writes each part when its last row has arrived.

    Args:
        schema: schema of the parts, by `make_schema`.
        done: rows that are in their parts already; adding others rewrites the part and keeps these.
        kept: rows to copy from `earlier` once the rest of their part has arrived.
        on_written: called with each part that was written, its bytes, and what identifies it in a listing.
    """

    def __init__(
        self,
        output: str,
        plan: PlannedRows,
        schema: pa.Schema,
        rows_per_part: int,
        done: RowSet,
        kept: RowSet | None = None,
        earlier: EarlierPredictions | None = None,
        on_written: Callable[[Part, int, storage.Written], None] | None = None,
    ) -> None:
        self._output = output
        self._plan = plan
        self._schema = schema
        self._rows_per_part = rows_per_part
        self._done = done
        self._kept = kept
        self._earlier = earlier
        self._on_written = on_written
        self._open: dict[int, _Open] = {}
        self._held_bytes = 0
        self._outdated: list[str] = []
        self._prediction_schema = pa.schema([entry for entry in schema if entry.name in PREDICTED_COLUMNS])
        self._prediction_names = self._prediction_schema.names
        self._waiting = WaitingFiles(output, self._prediction_schema, schema.metadata[MODEL_ID_KEY].decode())

    def add(self, predictions: pa.Table) -> Iterator[Part]:
        """Take predictions, and yield each part that they complete once it is written; repeated rows are dropped."""
        predictions = predictions.select(self._prediction_names).cast(self._prediction_schema)
        row_ids = predictions["row_id"].to_numpy()
        _, positions = np.unique(row_ids, return_index=True)  # the first prediction of each row
        numbers = row_ids[positions] // self._rows_per_part
        for number in np.unique(numbers).tolist():
            first, count = self._get_range(number)
            if number not in self._open:
                self._open[number] = _Open(self._find_awaited(first, count))
            part = self._open[number]
            here = positions[numbers == number]
            fresh = here[part.awaited[row_ids[here] - first]]
            part.awaited[row_ids[fresh] - first] = False
            if len(fresh):
                self._hold(part, predictions.take(pa.array(fresh)))
            if not part.awaited.any():
                del self._open[number]
                if part.statuses:
                    yield self._write(first, count, self._collect(part))
                    self._waiting.delete(part.saved)
        if self._held_bytes > _MAX_HELD_BYTES:
            self.save_waiting()
            self._release()

    def write_kept(self) -> Iterator[Part]:
        """Write the parts that only await rows of the earlier output."""
        for number in range(-(-self._plan.num_rows // self._rows_per_part)):
            first, count = self._get_range(number)
            if self._done.mask_missing(first, count).any() and not self._find_awaited(first, count).any():
                yield self._write(first, count, None)

    def _find_awaited(self, first: int, count: int) -> npt.NDArray[np.bool_]:
        """Return a mask of a part's rows that are neither done nor kept."""
        undone = self._done.mask_missing(first, count)
        return undone if self._kept is None else undone & self._kept.mask_missing(first, count)

    def count_waiting(self) -> Counter[str]:
        """Return the number of predictions in parts that are not full, by status."""
        return sum((part.statuses for part in self._open.values()), Counter())

    def save_waiting(self) -> None:
        """Save the predictions that arrived since the last call, but for those of parts that are written."""
        unsaved = {number: pa.concat_tables(part.unsaved) for number, part in self._open.items() if part.unsaved}
        ranges = {
            number: range(first, first + count) for number in unsaved for first, count in [self._get_range(number)]
        }
        addresses = self._waiting.save({ranges[number]: table for number, table in unsaved.items()})
        for number, table in unsaved.items():
            part = self._open[number]
            part.saved[addresses[ranges[number]]] = table
            part.unsaved = []
        self._waiting.delete(self._outdated)
        self._outdated = []

    def load_waiting(self) -> Iterator[pa.Table]:
        """Yield what stopped runs saved, the newest first; what could not be reached is left out, to be tried again.

        The files are removed by the next `save_waiting`: by then `add` must have taken all of it.
        """
        for address, table in self._waiting.load(self._plan.num_rows):
            self._outdated.append(address)
            if table is not None:
                yield table.filter(
                    pc.invert(pc.is_in(table["status"], value_set=pa.array([*UNREACHABLE], pa.string())))
                )

    def _hold(self, part: _Open, predictions: pa.Table) -> None:
        part.unsaved.append(predictions)
        part.statuses.update(predictions["status"].to_pylist())
        self._held_bytes += predictions.nbytes

    def _collect(self, part: _Open) -> pa.Table:
        """Return all predictions of a part, which is open no longer."""
        held = [*part.unsaved, *(table for table in part.saved.values() if table is not None)]
        self._held_bytes -= sum(table.nbytes for table in held)
        return pa.concat_tables(
            held + self._waiting.read([name for name, table in part.saved.items() if table is None])
        )

    def _release(self) -> None:
        """Keep no saved prediction in memory."""
        for part in self._open.values():
            part.saved = dict.fromkeys(part.saved)
        self._held_bytes = 0

    def _get_range(self, number: int) -> tuple[int, int]:
        first = number * self._rows_per_part
        return first, min(self._rows_per_part, self._plan.num_rows - first)

    def _add_kept(self, first: int, count: int, planned: pa.Table, fresh: pa.Table | None) -> pa.Table:
        """Return fresh predictions with those that are copied from the earlier output."""
        pieces = [] if fresh is None else [fresh]
        if self._earlier is not None and self._kept is not None:
            copied = self._done.mask_missing(first, count) & ~self._kept.mask_missing(first, count)
            kept = self._earlier.take(planned.filter(pa.array(copied))).select(self._prediction_names)
            pieces.append(kept.cast(self._prediction_schema))
        return pa.concat_tables(pieces)

    def _write(self, first: int, count: int, fresh: pa.Table | None) -> Part:
        name = make_name(first, count)
        address = storage.join(self._output, FOLDER, name)
        planned = self._plan.read(first, count)
        predictions = self._add_kept(first, count, planned, fresh)
        if predictions.num_rows < count:
            kept = from_parquet(storage.get(address)).select(self._prediction_names)
            others = pc.invert(pc.is_in(kept["row_id"], value_set=predictions["row_id"]))
            predictions = pa.concat_tables([predictions, kept.filter(others).cast(predictions.schema)])
        predictions = predictions.sort_by("row_id")
        model_id = self._schema.metadata[MODEL_ID_KEY].decode()
        columns = dict(zip(predictions.column_names, predictions.columns, strict=True))
        columns |= {name: planned[name] for name in planned.column_names if name.startswith("input_")}
        columns |= {"uri": planned["uri"], "model_id": pa.array([model_id] * count, pa.string())}
        table = pa.table([columns[entry.name] for entry in self._schema], schema=self._schema)
        data = to_parquet(table)
        written = storage.put(address, data)
        part = describe_part(name, data, table)
        if self._on_written is not None:
            self._on_written(part, len(data), written)
        return part


def describe_part(name: str, data: bytes, table: pa.Table) -> Part:
    """Return the record of a part by its file and its table, which needs the columns `status` and `needs_review`."""
    statuses, counts = pc.value_counts(table["status"]).flatten()
    failed = dict(zip(statuses.to_pylist(), counts.to_pylist(), strict=True))
    failed.pop(OK, None)
    needs_review = pc.sum(table["needs_review"]).as_py() or 0
    return Part(name, table.num_rows, hashlib.sha256(data).hexdigest(), failed, needs_review)
