"""Monitor a prediction run: times, failed rows, progress, SIGTERM."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tlray import storage
from tlray.config import count_allowed
from tlray.console import now
from tlray.errors import OK, UNREACHABLE, OutageError, OutputError, StoppedError

PROGRESS = "_progress.json"

_PROGRESS_INTERVAL_S = 5.0
_TIMELINE_SAMPLES = 400


@dataclass(frozen=True)
class ThroughputSample:
    """Numbers of rows fetched and predicted until `seconds` after the start."""

    seconds: float
    fetched: int
    predicted: int


class RunClock:
    """The times and rates of a run, from the construction of the clock on.

    Attributes:
        stages: seconds by stage.
        first_label_s: seconds until the first predictions, None before them.
        engines: number of engines by compute type, of the last pass.
        timeline: about one sample per second, at most 400.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.stages: dict[str, float] = {}
        self.first_label_s: float | None = None
        self.num_predicted = 0
        self.num_retries = 0
        self.engines: dict[str, int] = {}
        self.timeline: list[ThroughputSample] = []
        self._timeline_step_s = 1.0
        self._last_label_s = 0.0
        self._first_rows = 0
        self._fetched_before = 0

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """Images/s including start-up."""
        return self.num_predicted / self.seconds

    @property
    def steady_rate(self) -> float:
        """Images/s from the first predictions to the last; `rate` if there was only one batch."""
        steady_s = self._last_label_s - (self.first_label_s or 0.0)
        return (self.num_predicted - self._first_rows) / steady_s if steady_s > 0 else self.rate

    def spend(self, stage: str) -> None:
        """Assign the time since the last stage to this one."""
        self.stages[stage] = self.seconds - sum(self.stages.values())

    def count(self, num_rows: int, num_retries: int, count_fetched: Callable[[], int]) -> None:
        """Count new predictions and their repeated requests.

        `count_fetched` returns the number of rows fetched in this pass; it is called about once per second.
        """
        self._last_label_s = self.seconds
        if self.first_label_s is None:
            self.first_label_s, self._first_rows = self._last_label_s, num_rows
        self.num_predicted += num_rows
        self.num_retries += num_retries
        if not self.timeline or self._last_label_s - self.timeline[-1].seconds >= self._timeline_step_s:
            fetched = self._fetched_before + count_fetched()
            self.timeline.append(ThroughputSample(self._last_label_s, fetched, self.num_predicted))
        if len(self.timeline) > _TIMELINE_SAMPLES:
            self.timeline = self.timeline[::2]
            self._timeline_step_s *= 2

    def end_pass(self, engines: dict[str, int]) -> None:
        """End a pass over the rows; the next one counts fetched rows from 0."""
        self.engines = engines
        self._fetched_before = self.num_predicted


class Failures:
    """A check that stops a run with more failed rows than `--max-failed` allows.

    `max_failed` is a share of all rows up to 1, or a count above 1; `num_failed` rows had failed before this run.
    """

    def __init__(self, max_failed: float, num_rows: int, num_failed: int) -> None:
        self._max_failed = max_failed
        self._allowed = count_allowed(max_failed, num_rows)
        self._by_code: Counter[str] = Counter()
        self._num_failed = num_failed
        self.check([])

    def check(self, statuses: list[str], *, final: bool = True) -> None:
        """Take the statuses of new rows; unless they are final, unreachable rows do not count yet.

        Raises:
            StoppedError: too many rows failed.
        """
        failed = [status for status in statuses if status != OK and (final or status not in UNREACHABLE)]
        self._num_failed += len(failed)
        self._by_code.update(failed)
        if self._num_failed > self._allowed:
            listed = ", ".join(f"{code} {count:,}" for code, count in sorted(self._by_code.items()))
            raise StoppedError(
                f"{self._num_failed:,} rows failed, more than --max-failed {self._max_failed:g} allows"
                f"{f' ({listed})' if listed else ''}; run the same command with a larger one to resume"
            )


class ProgressFile:
    """`_progress.json`, for watching a run from another machine."""

    def __init__(self, output: str, planned: int, done: int) -> None:
        self._address = storage.join(output, PROGRESS)
        self._planned = planned
        self._done = self._before = done
        self._failed = 0
        self._started = time.monotonic()
        self._last = 0.0

    def advance(self, statuses: list[str]) -> None:
        """Count finished rows; write the file at most every 5 s."""
        self._done += len(statuses)
        self._failed += sum(status != OK for status in statuses)
        if time.monotonic() - self._last >= _PROGRESS_INTERVAL_S:
            self.write("predicting")

    def write(self, state: str) -> None:
        """Write the file; a run goes on without it."""
        self._last = time.monotonic()
        rate = (self._done - self._before) / max(1e-9, self._last - self._started)
        progress = {
            "state": state,
            "planned": self._planned,
            "done": self._done,
            "failed": self._failed,
            "images_per_s": round(rate, 2),
            "seconds_left": round((self._planned - self._done) / rate) if rate else None,
            "updated": now(),
        }
        with contextlib.suppress(OutputError, OutageError):
            storage.put(self._address, json.dumps(progress).encode())
