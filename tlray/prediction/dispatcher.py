"""Hand out rows to reading tasks, and remember the rows in progress when a process dies.

Ray restarts a task when its process dies, without end if an image kills every process that reads it. So each process
registers its work first: a window or batch whose process died is repeated row by row, and a row whose process died
`MAX_TRIES` times while it was the only one in progress is given up as CRASHED.

A machine that reads nothing while others do gets no more rows: its windows are given back, for another pass. Processes
of a machine that Ray drains end as soon as what they have in hand is done, and Ray starts them elsewhere.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, TypeAlias

import pyarrow as pa
import ray

from tlray.cluster.nodes import stay_here
from tlray.cluster.ray_private import list_draining_nodes
from tlray.errors import StoppedError
from tlray.output.parts import PlannedRows
from tlray.output.plan import PLAN_SCHEMA
from tlray.output.rowset import RowSet
from tlray.sources.places import Places
from tlray.storage import S3Options, adopt, get_options

MAX_TRIES = 3
"""Number of processes that one row may kill."""

_MAX_FAILED_STARTS = 8
_MIN_UNREACHABLE = 20
"""Rows that a machine failed to reach, and read none, before it counts as blind."""

_DRAINING_INTERVAL_S = 1.0

Key = tuple[str, int]
"""Work in progress: "window" or "batch", and its first row id."""

Handle: TypeAlias = Any
"""A Ray handle of a `Dispatcher`; mypy cannot type its remote calls."""


class Order(StrEnum):
    """An instruction to a process of the run."""

    WORK = "work"
    STOP = "stop"
    """The run ends early: take no more rows."""
    MOVE = "move"
    """The machine is about to be taken away: end with `restart_elsewhere`."""


class Rows(PlannedRows, Protocol):
    """Rows to predict, read a slice at a time: a `Plan` or `MemoryRows`."""

    @property
    def image_column(self) -> str | None:
        """Column of images in Parquet inputs."""


class _Entry(NamedTuple):
    """A window or batch in progress: the number of processes that died with it, and the machine that has it."""

    tries: int
    node: str


@dataclass
class _Isolated:
    """A window or batch that is repeated row by row.

    Attributes:
        current: the row in progress; None before the first one of an attempt.
        tries: attempts by row.
    """

    current: int | None = None
    tries: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Sight:
    """The machines of a run that can read the inputs, and those that cannot, by Ray's node ids.

    Attributes:
        num_given_back: rows that blind machines gave back.
        blind: machines that read nothing while others did.
        seeing: machines that read something.
    """

    num_given_back: int
    blind: frozenset[str]
    seeing: frozenset[str]


class Dispatcher:
    """One actor per run, on the driver's machine; rows in `done` need no work."""

    def __init__(
        self, rows: Rows, done: list[ray.ObjectRef[RowSet]] | RowSet, options: S3Options | None = None
    ) -> None:
        if options is not None:
            adopt(options)
        self._rows = rows
        self._done = done if isinstance(done, RowSet) else ray.get(done[0])
        self._stopping = False
        self._drained: set[str] = set()
        self._drained_at = -_DRAINING_INTERVAL_S
        self._entered: dict[Key, _Entry] = {}
        self._isolated: dict[Key, _Isolated] = {}
        self._starts = 0
        self._engines: list[str] = []
        self._fetched = 0
        self._read: Counter[str] = Counter()
        self._unreachable: Counter[str] = Counter()
        self._num_given_back = 0

    def lease(self, first: int, count: int, node: str = "") -> tuple[pa.Table | None, int]:
        """Return the unfinished rows of a window, and the number of earlier leases.

        There are no rows once the run is to end; None stands for those of a blind machine, which has to wait a while.
        """
        if self._stopping:
            return self._rows.read(0, 0).select(PLAN_SCHEMA.names), 0
        rows = self._rows.read(first, count)
        missing = self._done.find_missing(first, count)
        if node in self.describe_sight().blind:
            self._num_given_back += len(missing)
            return None, 0
        places = rows.select(PLAN_SCHEMA.names)  # readers need no column that a list carries along
        return places.take(pa.array(missing - first)), self.enter(("window", first), node)

    def start_batch(self, key: Key, node: str) -> tuple[Order, int]:
        """Do as `enter`, where the order is to work."""
        order = self._give_order(node)
        return order, self.enter(key, node) if order is Order.WORK else 0

    def enter(self, key: Key, node: str) -> int:
        """Register a window or batch as in progress; return how often its process died, but for machines' ends."""
        before = self._entered.get(key)
        drained = before is not None and before.node in self._drained
        tries = 0 if before is None else before.tries + (not drained)
        self._entered[key] = _Entry(tries, node)
        if key in self._isolated:
            isolated = self._isolated[key]
            if drained and isolated.current is not None:
                isolated.tries[isolated.current] -= 1
            isolated.current = None  # its process died with this row in progress
        return tries

    def leave(self, key: Key, fetched: int = 0) -> None:
        """Register a window or batch as finished, with the rows fetched since the last `look`."""
        self._fetched += fetched
        self._entered.pop(key, None)
        self._isolated.pop(key, None)
        self._starts = 0

    def note_reach(self, node: str, num_read: int, num_unreachable: int) -> None:
        """Count rows that a machine could read, and could not reach."""
        self._read[node] += num_read
        self._unreachable[node] += num_unreachable

    def describe_sight(self) -> Sight:
        """Return which machines read something, and which read nothing while others did."""
        seeing = frozenset(node for node, count in self._read.items() if count)
        blind = (node for node, count in self._unreachable.items() if count >= _MIN_UNREACHABLE and node not in seeing)
        return Sight(self._num_given_back, frozenset(blind) if seeing else frozenset(), seeing)

    def isolate(self, key: Key, row_id: int) -> int:
        """Register one row as in progress and the one before it as finished; return the row's earlier attempts."""
        isolated = self._isolated.setdefault(key, _Isolated())
        if isolated.current is not None and isolated.tries[isolated.current] <= MAX_TRIES:
            del isolated.tries[isolated.current]  # a row that was given up stays so
            self._starts = 0
        isolated.current = row_id
        before = isolated.tries.get(row_id, 0)
        isolated.tries[row_id] = before + 1
        return before

    def start_engine(self, num_engines: int) -> None:
        """Count an engine's start.

        Raises:
            StoppedError: many in succession finished no batch.
        """
        self._starts += 1
        if self._starts > _MAX_FAILED_STARTS + 2 * num_engines:
            raise StoppedError(
                f"engine processes died {self._starts - 1} times without a prediction; if memory is short, give "
                "a smaller --batch-size or fewer --max-cpus; run the same command to resume"
            )

    def note_engine(self, form: str) -> None:
        """Register an engine that is ready, with its compute type."""
        self._engines.append(form)

    def get_engines(self) -> list[str]:
        """Return the compute types of the engines, in the order in which they were ready."""
        return self._engines

    def stop(self) -> None:
        """Hand out no more rows."""
        self._stopping = True

    def look(self, fetched: int, node: str) -> Order:
        """Count rows that a task has fetched since its last call; return what it is to do."""
        self._fetched += fetched
        return self._give_order(node)

    def _give_order(self, node: str) -> Order:
        if self._stopping:
            return Order.STOP
        if time.monotonic() - self._drained_at >= _DRAINING_INTERVAL_S:
            with contextlib.suppress(Exception):  # the cluster's head may be busy; then the last answer counts
                self._drained |= list_draining_nodes()
            self._drained_at = time.monotonic()
        return Order.MOVE if node in self._drained else Order.WORK

    def get_fetched(self) -> int:
        """Return the number of rows that reading tasks have fetched so far."""
        return self._fetched


def start(rows: Rows, done: ray.ObjectRef[RowSet]) -> Handle:
    """Start the dispatcher of a run on this machine.

    The caller holds `done` until the run ends: a dispatcher that is killed restarts with it.
    """
    actor = ray.remote(Dispatcher).options(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=stay_here(), max_concurrency=1
    )
    return actor.remote(rows, [done], get_options())


class MemoryRows:
    """Rows without a plan on disk."""

    def __init__(self, places: Places) -> None:
        self._table = places.table
        self.num_rows = len(places)
        self.image_column = places.image_column

    def read(self, first: int, count: int) -> pa.Table:
        """Return rows by `plan.PLAN_SCHEMA`."""
        part = self._table.slice(first, count)
        row_ids = pa.array(range(first, first + part.num_rows), pa.int64())
        return pa.table([row_ids, *part.columns], schema=PLAN_SCHEMA)
