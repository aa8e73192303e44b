"""Find the rows that earlier runs of a job finished, and keep the state of the run that continues them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray import storage
from tlray.config import PredictConfig
from tlray.errors import OK, UNREACHABLE, Code
from tlray.output import receipt as receipts
from tlray.output.ledger import Ledger
from tlray.output.parts import Part, PartWriter, get_row_ids, make_name
from tlray.output.plan import Plan
from tlray.output.reader import FoundPart, find_parts
from tlray.output.receipt import UpdateRecord
from tlray.output.rowset import RowSet
from tlray.prediction.job import Job
from tlray.prediction.update import EarlierOutput


@dataclass
class RunState:
    """The rows of a run and their parts, from its start to its end.

    Attributes:
        settled: rows that need no prediction: done, kept, or waiting in `writer`.
        resumed_rows: number of rows that earlier runs had finished.
        retried_codes: codes of failed rows to predict again.
        ledger: what is known of the parts that this run writes.
        unreachable: row ids that could not be reached; they are tried again at the end.
        read_row: a row that an earlier run could read, None if there is none.
        update: comparison with the output of `--update-from`, None without it.
        blind, seeing: machines that read nothing, and something, by Ray's node ids.
    """

    writer: PartWriter
    settled: RowSet
    resumed_rows: int
    retried_codes: set[str]
    ledger: Ledger
    parts: dict[str, Part] = field(default_factory=dict)
    unreachable: list[int] = field(default_factory=list)
    read_row: int | None = None
    update: UpdateRecord | None = None
    blind: frozenset[str] = frozenset()
    seeing: frozenset[str] = frozenset()

    @property
    def num_failed(self) -> int:
        """Number of failed rows that stay failed, in parts and in waiting."""
        by_code = [item for part in self.parts.values() for item in part.failed_by_code.items()]
        by_code += [item for item in self.writer.count_waiting().items() if item[0] != OK]
        return sum(count for code, count in by_code if code not in self.retried_codes | UNREACHABLE)

    def add(self, predictions: pa.Table, statuses: Sequence[str]) -> None:
        """Take predictions, and write the parts that they complete."""
        self.parts.update((part.name, part) for part in self.writer.add(predictions))
        self.settled.add(predictions["row_id"].to_numpy())
        if UNREACHABLE & set(statuses):
            row_ids = predictions["row_id"].to_pylist()
            self.unreachable += [row for row, status in zip(row_ids, statuses, strict=True) if status in UNREACHABLE]

    def take_unreachable(self, writer: PartWriter, settled: RowSet) -> None:
        """Continue with the rows that could not be reached, the only ones not in `settled`."""
        self.unreachable = []
        self.writer, self.settled = writer, settled


def resume(config: PredictConfig, output: str, plan: Plan, job: Job, schema: pa.Schema, model_id: str) -> RunState:
    """Return the state in which earlier runs of a job left it; parts of another model are ignored."""
    # unreachable rows are tried again in any case, at the end
    retried = set() if config.retry_failed is None else set(config.retry_failed or map(str, Code)) - UNREACHABLE
    done = RowSet(plan.num_rows)
    parts: dict[str, Part] = {}
    unreachable: list[int] = []
    read_row: int | None = None
    partly: FoundPart | None = None
    for found in find_parts(output, model_id):
        part = found.part
        row_ids = get_row_ids(part.name)
        count = min(config.rows_per_part, plan.num_rows - row_ids.start)
        if row_ids.start % config.rows_per_part or part.name != make_name(row_ids.start, count):
            continue
        parts[part.name] = part
        rows = np.arange(row_ids.start, row_ids.stop)
        if not part.failed_by_code:
            read_row = row_ids.start
        elif sum(part.failed_by_code.values()) < part.rows:
            partly = found
        if part.failed_by_code.keys() & (UNREACHABLE | retried):
            statuses = np.array(found.read_statuses(), object)
            unreachable += rows[np.isin(statuses, [*UNREACHABLE])].tolist()
            rows = rows[~np.isin(statuses, [*retried])]
        done.add(rows)
    if read_row is None and partly is not None:
        read_row = get_row_ids(partly.part.name).start + [*partly.read_statuses()].index(OK)
    if config.retry_failed is not None:
        storage.delete(storage.join(output, receipts.NAME))
    ledger = Ledger(output, model_id)
    writer = PartWriter(output, plan, schema, config.rows_per_part, done, on_written=ledger.add)
    state = RunState(writer, done.copy(), len(done), retried, ledger, parts, unreachable, read_row)
    if job.update_from is not None:
        earlier = EarlierOutput(job.update_from, job.asked)
        kept = earlier.compare(plan, retried)
        state.update = earlier.comparison
        state.writer = PartWriter(output, plan, schema, config.rows_per_part, done, kept, earlier, ledger.add)
        state.settled.update(kept)
        state.parts.update((part.name, part) for part in state.writer.write_kept())
    known = len(state.settled)
    for waiting in state.writer.load_waiting():
        waiting = waiting.filter(pc.invert(pc.is_in(waiting["status"], pa.array([*retried], pa.string()))))
        state.add(waiting, waiting["status"].to_pylist())
    state.resumed_rows += len(state.settled) - known
    return state
