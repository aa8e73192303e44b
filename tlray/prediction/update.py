"""Answers of an earlier output that still hold: the object is unchanged and the model is the same."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tlray.console import say
from tlray.errors import IN_THE_WAY, OutputError
from tlray.output.plan import Plan, open_plan
from tlray.output.reader import LabelsReader
from tlray.output.receipt import Receipt, read_receipt
from tlray.output.rowset import RowSet
from tlray.output.schema import PREDICTED_COLUMNS, PREDICTION_FIELDS

_IDENTITY = ("uri", "size", "etag", "mtime_ns")
_MUST_AGREE = (
    "model_id", "top_k", "embeddings", "min_probability", "max_bytes", "max_pixels", "precision", "image_column",
)  # fmt: skip


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


def find_finished(output: str) -> tuple[Receipt, Plan]:
    """Receipt and plan of a finished output.

    Raises:
        OutputError: it is not one.
    """
    receipt, plan = read_receipt(output), open_plan(output)
    if receipt is None or plan is None:
        raise OutputError(f"--update-from takes the output of a finished tlray predict; got {output}")
    return receipt, plan


class EarlierOutput:
    """A finished output to copy from.

    Args:
        output: its address.
        asked: what the new job is asked for.

    Raises:
        OutputError: it is not a finished labelling run.
    """

    def __init__(self, output: str, asked: dict[str, Any]) -> None:
        receipt, plan = find_finished(output)
        self.output = output
        self.comparison = Comparison()
        self._plan = plan
        self._labels = LabelsReader.open(output, receipt)
        self._addresses = _hash_all(plan)
        self._order = np.argsort(self._addresses, kind="stable")
        differing = [name for name in _MUST_AGREE if receipt.config.get(name) != asked.get(name)]
        self._usable = not differing
        if differing:
            say(f"nothing can be copied from {output}: another {' and '.join(differing)}; all rows are labelled anew")

    def compare(self, plan: Plan, again: Collection[str] = ()) -> RowSet:
        """The rows whose answer still holds; `comparison` is complete afterwards.

        Args:
            plan: the new one.
            again: codes of rows that are to be tried again.
        """
        kept = RowSet(plan.num_rows)
        matched = RowSet(self._plan.num_rows)
        for table in plan.iter_tables():
            new, old = self._find(table)
            ours, theirs = table.take(pa.array(new)), self._plan.take(old)
            same = {name: _compare(ours[name], theirs[name]) for name in _IDENTITY}
            known = ours["etag"].is_valid().to_numpy() | ours["mtime_ns"].is_valid().to_numpy()
            unchanged = known & np.logical_and.reduce(list(same.values())) & self._usable
            unchanged[unchanged] = self._find_settled(old[unchanged], IN_THE_WAY | set(again))
            kept.add(ours["row_id"].to_numpy()[unchanged])
            matched.add(old[same["uri"]])
            num_found, num_kept = int(same["uri"].sum()), int(unchanged.sum())
            self.comparison.new += table.num_rows - num_found
            self.comparison.kept += num_kept
            self.comparison.changed += num_found - num_kept
        self.comparison.vanished = self._plan.num_rows - len(matched)
        return kept

    def take(self, rows: pa.Table) -> pa.Table:
        """The earlier predictions of rows that `compare` kept, under their new row ids, by `PREDICTION_FIELDS`."""
        _, old = self._find(rows)
        labels = self._labels.take(old)
        predictions = labels.select([name for name in labels.column_names if name in PREDICTED_COLUMNS])
        predictions = predictions.set_column(0, PREDICTION_FIELDS[0], rows["row_id"])
        return predictions.append_column(PREDICTION_FIELDS[-1], pa.array(np.zeros(len(old), np.int32)))

    def _find_settled(self, row_ids: npt.NDArray[np.int64], codes: Collection[str]) -> npt.NDArray[np.bool_]:
        """Which rows have another status than these."""
        statuses = self._labels.take(row_ids, ["status"])["status"].to_pylist()
        return np.array([status not in codes for status in statuses], bool)

    def _find(self, table: pa.Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Positions in a table of new rows, and the earlier rows with the same address."""
        hashes = _hash(table)
        places = np.minimum(np.searchsorted(self._addresses, hashes, sorter=self._order), len(self._order) - 1)
        candidates = self._order[places]
        new = np.flatnonzero(self._addresses[candidates] == hashes)
        return new, candidates[new].astype(np.int64)


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
