"""Answers of an earlier output that still hold: the object is unchanged and the model is the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tlray import storage
from tlray.errors import IN_THE_WAY, OutputError
from tlray.prediction.parts import FOLDER, get_row_ids
from tlray.prediction.receipt import Receipt, read_receipt
from tlray.prediction.rowset import RowSet
from tlray.prediction.schema import ANSWER_FIELDS, TOP_FIELDS
from tlray.progress import say
from tlray.sources.planning import ROWS_PER_GROUP, Plan, open_plan

_IDENTITY = ("uri", "size", "etag", "mtime_ns")
_MUST_AGREE = ("model_id", "top_k", "max_bytes", "max_pixels", "image_column")


@dataclass
class Comparison:
    """What became of the rows.

    Attributes:
        new: rows whose address the earlier output doesn't have.
        changed: rows that it has, but whose object or model is another one, or whose sameness nothing tells.
        kept: rows whose answer is copied.
        vanished: rows of the earlier output that this one doesn't have.
    """

    new: int = 0
    changed: int = 0
    kept: int = 0
    vanished: int = 0


class Earlier:
    """A finished output to copy from.

    Args:
        output: its address.
        asked: what the new job is asked for.

    Raises:
        OutputError: it is not a finished labelling run.
    """

    def __init__(self, output: str, asked: dict[str, Any]) -> None:
        receipt = read_receipt(output)
        plan = open_plan(output)
        if receipt is None or plan is None:
            raise OutputError(f"--update-from takes the output of a finished tlray predict; got {output}")
        self.output = output
        self.comparison = Comparison()
        self._plan = plan
        self._parts = _Parts(output, receipt)
        differing = [name for name in _MUST_AGREE if receipt.config.get(name) != asked.get(name)]
        self._usable = not differing
        if differing:
            say(f"nothing can be copied from {output}: another {' and '.join(differing)}; all rows are labelled anew")

    def copy(self, plan: Plan) -> Iterator[pa.Table]:
        """The answers that still hold, numbered by the new plan; `comparison` is complete afterwards."""
        addresses = _hash_all(self._plan)
        order = np.argsort(addresses, kind="stable")
        matched = RowSet(self._plan.num_rows)
        for table in plan.iter_tables():
            hashes = _hash(table)
            places = np.minimum(np.searchsorted(addresses, hashes, sorter=order), len(order) - 1)
            candidates = order[places]
            new = np.flatnonzero(addresses[candidates] == hashes)
            old = candidates[new].astype(np.int64)
            ours, theirs = table.take(pa.array(new)), _gather(self._plan, old)
            same = {name: _compare(ours[name], theirs[name]) for name in _IDENTITY}
            known = ours["etag"].is_valid().to_numpy() | ours["mtime_ns"].is_valid().to_numpy()
            unchanged = known & np.logical_and.reduce(list(same.values())) & self._usable
            copied = 0
            for answers in self._take(table, new[unchanged], old[unchanged]):
                copied += answers.num_rows
                yield answers
            matched.add(old[same["uri"]])
            num_found = int(same["uri"].sum())
            self.comparison.new += table.num_rows - num_found
            self.comparison.kept += copied
            self.comparison.changed += num_found - copied
        self.comparison.vanished = self._plan.num_rows - len(matched)

    def _take(self, table: pa.Table, new: npt.NDArray[np.int64], old: npt.NDArray[np.int64]) -> Iterator[pa.Table]:
        """Old answers under their new row ids, one part's at a time."""
        parts = self._parts.find(old)
        for number in np.unique(parts):
            here = parts == number
            part, first = self._parts.read(int(number))
            answers = part.take(pa.array(old[here] - first))
            row_ids = table["row_id"].take(pa.array(new[here]))
            names = [field.name for field in ANSWER_FIELDS + TOP_FIELDS if field.name in answers.column_names]
            answers = answers.select(names).set_column(0, ANSWER_FIELDS[0], row_ids)
            answers = answers.append_column(ANSWER_FIELDS[-1], pa.array(np.zeros(len(row_ids), np.int32)))
            reached = [status not in IN_THE_WAY for status in answers["status"].to_pylist()]
            yield answers.filter(pa.array(reached))


class _Parts:
    """The parts of a finished output, by the rows they hold."""

    def __init__(self, output: str, receipt: Receipt) -> None:
        self._output = output
        self._names = sorted(part["name"] for part in receipt.parts)
        self._firsts = np.array([get_row_ids(name).start for name in self._names])
        self.read = lru_cache(maxsize=4)(self._read)

    def find(self, row_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Numbers of the parts that hold rows."""
        return np.searchsorted(self._firsts, row_ids, side="right") - 1

    def _read(self, number: int) -> tuple[pa.Table, int]:
        """A part, and its first row id."""
        data = storage.get(storage.join(self._output, FOLDER, self._names[number]))
        return pq.read_table(pa.BufferReader(data)), int(self._firsts[number])


def _gather(plan: Plan, rows: npt.NDArray[np.int64]) -> pa.Table:
    """Rows of a plan, in the order asked for."""
    groups = rows // ROWS_PER_GROUP
    order = np.argsort(groups, kind="stable")
    pieces = [plan.read(0, 0)]
    for group in np.unique(groups):
        inside = rows[groups == group] - group * ROWS_PER_GROUP
        pieces.append(plan.read(int(group) * ROWS_PER_GROUP, ROWS_PER_GROUP).take(pa.array(inside)))
    return pa.concat_tables(pieces).take(pa.array(np.argsort(order)))


def _compare(ours: pa.ChunkedArray, theirs: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Where two columns are equal, or both null."""
    equal = pc.fill_null(pc.equal(ours, theirs), False).to_numpy(zero_copy_only=False)
    both_null = (~ours.is_valid().to_numpy()) & (~theirs.is_valid().to_numpy())
    either: npt.NDArray[np.bool_] = np.logical_or(equal, both_null)
    return either


def _hash_all(plan: Plan) -> npt.NDArray[np.int64]:
    """A hash of each row's address, good within this process."""
    return np.concatenate([_hash(table) for table in plan.iter_tables()])


def _hash(table: pa.Table) -> npt.NDArray[np.int64]:
    return np.fromiter((hash(uri) for uri in table["uri"].to_pylist()), np.int64, table.num_rows)
