"""Hands rows out to reading tasks, and remembers what was in hand when a process died.

Ray starts a task anew when its process dies, without end where an image kills every process that touches it. So each
process says what it takes in hand: a window or batch whose process died is gone through row by row, and a row that was
alone in hand `MAX_TRIES` times when its process died is given up as CRASHED.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray

from tlray.cluster.nodes import stay_here
from tlray.errors import StoppedError
from tlray.output.plan import PLAN_SCHEMA
from tlray.output.rowset import RowSet
from tlray.sources.candidates import SourceKind

MAX_TRIES = 3
"""How many processes one row may kill."""

_MAX_STARTS_IN_VAIN = 8

Key = tuple[str, int]
"""What is in hand: "window" or "batch", and its first row id."""


class Rows(Protocol):
    """What is to be labelled, read a slice at a time: a `planning.Plan`, or a `MemoryRows`."""

    @property
    def num_rows(self) -> int:
        """How many rows there are."""

    @property
    def image_column(self) -> str | None:
        """Column of images in Parquet inputs."""

    def read(self, first: int, count: int) -> pa.Table:
        """Rows by `planning.PLAN_SCHEMA`."""


@dataclass
class _Isolated:
    """Rows of a window or batch that were alone in hand when its process died.

    Attributes:
        in_hand: the row that is now; None before the first one of an attempt.
        tries: how often each was.
    """

    in_hand: int | None = None
    tries: dict[int, int] = field(default_factory=dict)


class Dispatcher:
    """One actor a run, on the driver's machine.

    Args:
        rows: where rows are read from.
        done: those that need no work.
    """

    def __init__(self, rows: Rows, done: list[ray.ObjectRef[RowSet]] | RowSet) -> None:
        self._rows = rows
        self._done = done if isinstance(done, RowSet) else ray.get(done[0])
        self._draining = False
        self._entered: dict[Key, int] = {}
        self._isolated: dict[Key, _Isolated] = {}
        self._starts = 0
        self._engines: list[str] = []
        self._fetched = 0

    def lease(self, first: int, count: int) -> tuple[pa.Table, int]:
        """The rows of a window that are still to do, and how often it was leased before; no rows while draining."""
        if self._draining:
            return self._rows.read(0, 0), 0
        rows = self._rows.read(first, count)
        missing = self._done.find_missing(first, count)
        return rows.take(pa.array(missing - first)), self.enter(("window", first))

    def start_batch(self, key: Key) -> int | None:
        """Like `enter`; None while draining."""
        return None if self._draining else self.enter(key)

    def enter(self, key: Key) -> int:
        """Take a window or batch in hand; how often that was said before without `leave`."""
        tries = self._entered.get(key, 0)
        self._entered[key] = tries + 1
        if key in self._isolated:
            self._isolated[key].in_hand = None  # its process died on it, rather than going on to another row
        return tries

    def leave(self, key: Key, fetched: int = 0) -> None:
        """A window or batch is through, with so many rows fetched since the last `look`."""
        self._fetched += fetched
        self._entered.pop(key, None)
        self._isolated.pop(key, None)
        self._starts = 0

    def isolate(self, key: Key, row_id: int) -> int:
        """Take one row of it in hand, the one before having gone well; how often this row was in hand before."""
        isolated = self._isolated.setdefault(key, _Isolated())
        if isolated.in_hand is not None and isolated.tries[isolated.in_hand] <= MAX_TRIES:
            del isolated.tries[isolated.in_hand]  # one that was given up stays so
            self._starts = 0
        isolated.in_hand = row_id
        before = isolated.tries.get(row_id, 0)
        isolated.tries[row_id] = before + 1
        return before

    def start_engine(self, num_engines: int) -> None:
        """Count an engine's start.

        Raises:
            StoppedError: many in succession never got through a batch.
        """
        self._starts += 1
        if self._starts > _MAX_STARTS_IN_VAIN + 2 * num_engines:
            raise StoppedError(
                f"engine processes died {self._starts - 1} times without an answer (out of memory? a smaller "
                "--batch-size or fewer --max-cpus take less); the same command goes on"
            )

    def note_engine(self, form: str) -> None:
        """An engine is ready, and computes so."""
        self._engines.append(form)

    def get_engines(self) -> list[str]:
        """How the engines compute, in the order in which they were ready."""
        return self._engines

    def drain(self) -> None:
        """Hand out no more rows."""
        self._draining = True

    def look(self, fetched: int) -> bool:
        """Take note of rows that a task has fetched since it last looked; whether it should end early."""
        self._fetched += fetched
        return self._draining

    def get_fetched(self) -> int:
        """How many rows reading tasks have fetched so far."""
        return self._fetched


def start(rows: Rows, done: ray.ObjectRef[RowSet]) -> Any:
    """Start the dispatcher of a run on this machine; returns its handle.

    The caller keeps `done` for as long as the run lasts: a dispatcher that is killed is started anew with it.
    """
    actor = ray.remote(Dispatcher).options(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=stay_here(), max_concurrency=1
    )
    return actor.remote(rows, [done])


class MemoryRows:
    """Files that need no plan on disk."""

    def __init__(self, uris: list[str]) -> None:
        self._uris = np.array(uris, object)
        self.num_rows = len(uris)
        self.image_column = None

    def read(self, first: int, count: int) -> pa.Table:
        """Rows by `planning.PLAN_SCHEMA`."""
        uris = self._uris[first : first + count].tolist()
        columns = {field.name: pa.nulls(len(uris), field.type) for field in PLAN_SCHEMA}
        columns |= {
            "row_id": pa.array(range(first, first + len(uris)), pa.int64()),
            "uri": pa.array(uris, pa.string()),
            "source": pa.array([SourceKind.FILE.value] * len(uris), pa.string()),
        }
        return pa.table(columns, schema=PLAN_SCHEMA)
