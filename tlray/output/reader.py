"""Read labels back: whole parts, or some of their columns and rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tlray import storage
from tlray.errors import FetchError, OutputError
from tlray.output.ledger import find_line, read_ledger
from tlray.output.parts import CLASSES_KEY, FOLDER, Part, describe_part, get_row_ids
from tlray.output.receipt import Receipt
from tlray.output.schema import MODEL_ID_KEY, from_parquet

_THREADS = 8
_PARTS_AHEAD = 16
_PARTS_KEPT = 4
_PARTS_CHECKED = 64


class LabelsReader:
    """The labels of a finished run at `output`, in the parts `names`, which are sorted by their rows."""

    def __init__(self, output: str, names: Sequence[str]) -> None:
        self.names = sorted(names)
        self._output = output
        self._firsts = np.array([get_row_ids(name).start for name in self.names])
        self._read_or_recall = lru_cache(maxsize=_PARTS_KEPT)(self._read)

    @classmethod
    def open(cls, output: str, receipt: Receipt) -> LabelsReader:
        """Open all parts that a receipt lists."""
        return cls(output, [part.name for part in receipt.parts])

    @cached_property
    def classes(self) -> list[str]:
        """Class names by index, from the metadata of the first part.

        Raises:
            OutputError: that part cannot be read.
        """
        metadata = self._read(self.names[0], ("row_id",), metadata=True).schema.metadata
        classes: list[str] = json.loads(metadata[CLASSES_KEY])
        return classes

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield some columns of every part in order, reading a bounded number of parts ahead.

        Raises:
            OutputError: a part cannot be read.
        """
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(self.names), _PARTS_AHEAD):
                names = self.names[start : start + _PARTS_AHEAD]
                yield from pool.map(lambda name: self._read(name, tuple(columns)), names)

    def take(self, row_ids: npt.NDArray[np.int64], columns: Sequence[str] | None = None) -> pa.Table:
        """Return rows in the order of `row_ids`, with all columns or some.

        Raises:
            OutputError: a part cannot be read.
        """
        chosen = None if columns is None else tuple(columns)
        numbers = np.searchsorted(self._firsts, row_ids, side="right") - 1
        wanted = np.unique(numbers).tolist()
        pieces = [] if wanted else [self._read_or_recall(self.names[0], chosen).slice(0, 0)]
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(wanted), _PARTS_AHEAD):
                ahead = wanted[start : start + _PARTS_AHEAD]
                tables = pool.map(lambda number: self._read_or_recall(self.names[number], chosen), ahead)
                for number, table in zip(ahead, tables, strict=True):
                    pieces.append(table.take(pa.array(row_ids[numbers == number] - self._firsts[number])))
        order = np.argsort(numbers, kind="stable")
        return pa.concat_tables(pieces).take(pa.array(np.argsort(order)))

    def take_column(self, column: str) -> list[Any]:
        """Return the values of one column, in all parts.

        Raises:
            OutputError: a part cannot be read.
        """
        return [value for table in self.read([column]) for value in table[column].to_pylist()]

    def _read(self, name: str, columns: tuple[str, ...] | None, *, metadata: bool = False) -> pa.Table:
        try:
            # without Arrow's own threads; see `schema.from_parquet`
            with storage.open_arrow(storage.join(self._output, FOLDER, name)) as source:
                table = pq.ParquetFile(source).read(columns, use_threads=False)
        except (FetchError, pa.ArrowException, OSError) as error:
            why = storage.redact(str(error))
            raise OutputError(f"{name} of {self._output} cannot be read: {why}; check with tlray verify") from None
        return table if metadata else table.replace_schema_metadata(None)


def hash_addresses(table: pa.Table) -> npt.NDArray[np.int64]:
    """Return a hash of each row's address, valid within this process."""
    return np.fromiter((hash(uri) for uri in table["uri"].to_pylist()), np.int64, table.num_rows)


def read_part(output: str, name: str, columns: Sequence[str] | None = None) -> tuple[bytes, pa.Table]:
    """Return a part's file and its table, with all columns or some.

    Raises:
        OutputError: the part cannot be read.
    """
    try:
        data = storage.get(storage.join(output, FOLDER, name))
        return data, from_parquet(data, columns)
    except (FetchError, pa.ArrowException, OSError) as error:
        raise OutputError(f"{name} cannot be read: {storage.redact(str(error))}") from None


@dataclass(frozen=True)
class FoundPart:
    """A valid part of an unfinished run; `statuses` of its rows, None where the ledger says enough."""

    output: str
    part: Part
    statuses: Sequence[str] | None = None

    def read_statuses(self) -> Sequence[str]:
        """Return the status of every row.

        Raises:
            OutputError: the part cannot be read.
        """
        if self.statuses is not None:
            return self.statuses
        statuses: list[str] = LabelsReader(self.output, [self.part.name]).take_column("status")
        return statuses


def find_parts(output: str, model_id: str) -> Iterator[FoundPart]:
    """Yield every valid part of a model; ignore others. Those that fit a line of the ledger are not read."""
    folder = storage.join(output, FOLDER)
    if not storage.has_content(folder):
        return
    lines = read_ledger(output)
    unknown = []
    for entry in storage.iter_files(folder):
        line = find_line(lines, entry, model_id)
        if line is not None:
            yield FoundPart(output, line.to_part())
        elif get_row_ids(entry.name):
            unknown.append(entry.name)
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(unknown), _PARTS_CHECKED):
            names = unknown[start : start + _PARTS_CHECKED]
            checked = pool.map(lambda name: _check_part(output, name, model_id), names)
            yield from (found for found in checked if found is not None)


def _check_part(output: str, name: str, model_id: str) -> FoundPart | None:
    try:
        data, table = read_part(output, name, ["row_id", "status", "needs_review"])
    except OutputError:
        return None
    if (table.schema.metadata or {}).get(MODEL_ID_KEY) != model_id.encode():
        return None
    expected = get_row_ids(name)
    if not np.array_equal(table["row_id"].to_numpy(), np.arange(expected.start, expected.stop)):
        return None
    return FoundPart(output, describe_part(name, data, table), table["status"].to_pylist())
