"""Copy predictions of an earlier output whose object and model are unchanged."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tlray.console import say
from tlray.errors import UNREACHABLE
from tlray.output.finished import open_finished
from tlray.output.plan import Plan
from tlray.output.reader import LabelsReader, hash_addresses
from tlray.output.receipt import UpdateRecord
from tlray.output.rowset import RowSet
from tlray.output.schema import PREDICTED_COLUMNS, PREDICTION_FIELDS
from tlray.storage.records import Json

_IDENTITY = ("uri", "size", "etag", "mtime_ns")
_MUST_AGREE = (
    "model_id", "top_k", "embeddings", "min_probability", "max_ood", "max_bytes", "max_pixels", "precision",
    "image_column",
)  # fmt: skip


class EarlierOutput:
    """A finished output from which a job with the options `asked` can copy.

    Raises:
        OutputError: the output is not finished.
    """

    def __init__(self, output: str, asked: dict[str, Json]) -> None:
        receipt, plan = open_finished(output, "--update-from")
        self.output = output
        self.comparison = UpdateRecord(output)
        self._plan = plan
        self._labels = LabelsReader.open(output, receipt)
        self._addresses = np.concatenate([hash_addresses(rows) for rows in plan.iter_tables()])
        self._order = np.argsort(self._addresses, kind="stable")
        differing = [name for name in _MUST_AGREE if receipt.config.get(name) != asked.get(name)]
        self._usable = not differing
        if differing:
            say(f"nothing can be copied from {output}: another {' and '.join(differing)}; all rows are predicted again")

    def compare(self, plan: Plan, again: Collection[str] = ()) -> RowSet:
        """Return the rows of a new plan whose prediction can be copied, and set `comparison`.

        Rows with a status in `again`, or that could not be reached, are not copied.
        """
        kept = RowSet(plan.num_rows)
        matched = RowSet(self._plan.num_rows)
        new_rows = changed = kept_rows = 0
        for table in plan.iter_tables():
            new, old = self._find(table)
            ours, theirs = table.take(pa.array(new)), self._plan.take(old)
            same_uri, *same = (_compare(ours[name], theirs[name]) for name in _IDENTITY)
            known = np.logical_or.reduce([ours[name].is_valid().to_numpy() for name in ("etag", "mtime_ns")])
            unchanged = np.logical_and.reduce([known, same_uri, *same]) & self._usable
            unchanged[unchanged] = self._find_settled(old[unchanged], UNREACHABLE | set(again))
            kept.add(ours["row_id"].to_numpy()[unchanged])
            matched.add(old[same_uri])
            num_found, num_kept = int(same_uri.sum()), int(unchanged.sum())
            new_rows += table.num_rows - num_found
            kept_rows += num_kept
            changed += num_found - num_kept
        vanished = self._plan.num_rows - len(matched)
        self.comparison = UpdateRecord(self.output, new_rows, changed, kept_rows, vanished)
        return kept

    def take(self, rows: pa.Table) -> pa.Table:
        """Return the earlier predictions of kept rows under their new row ids, by `PREDICTION_FIELDS`."""
        _, old = self._find(rows)
        labels = self._labels.take(old)
        predictions = labels.select([name for name in labels.column_names if name in PREDICTED_COLUMNS])
        predictions = predictions.set_column(0, PREDICTION_FIELDS[0], rows["row_id"])
        return predictions.append_column(PREDICTION_FIELDS[-1], pa.array(np.zeros(len(old), np.int32)))

    def _find_settled(self, row_ids: npt.NDArray[np.int64], codes: Collection[str]) -> npt.NDArray[np.bool_]:
        """Return a mask of the rows whose status is none of `codes`."""
        statuses = self._labels.take(row_ids, ["status"])["status"].to_pylist()
        return np.array([status not in codes for status in statuses], bool)

    def _find(self, table: pa.Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the positions of a new plan's rows that the earlier one may have, and their row ids in that."""
        hashes = hash_addresses(table)
        places = np.minimum(np.searchsorted(self._addresses, hashes, sorter=self._order), len(self._order) - 1)
        candidates = self._order[places]
        new = np.flatnonzero(self._addresses[candidates] == hashes)
        return new, candidates[new].astype(np.int64)


def _compare(ours: pa.ChunkedArray, theirs: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Return a mask of the rows in which two columns are equal, or both null."""
    equal = pc.fill_null(pc.equal(ours, theirs), False).to_numpy(zero_copy_only=False)
    both_null = (~ours.is_valid().to_numpy()) & (~theirs.is_valid().to_numpy())
    return np.asarray(equal | both_null, np.bool_)
