"""What the driver keeps an eye on while rows are labelled: reach, failures, signals, and those who look on."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from types import FrameType, TracebackType

from tlray import storage
from tlray.console import now, say
from tlray.errors import IN_THE_WAY, OK, StoppedError

PROGRESS = "_progress.json"

_PROGRESS_INTERVAL_S = 5.0
_STOP_AFTER_IN_SUCCESSION = 20
_STOP_WINDOW = 1000
_STOP_SHARE = 0.01


class Reach:
    """Stops a run whose inputs cannot be reached, rather than writing that off as their fault."""

    def __init__(self, num_rows: int) -> None:
        self._in_succession = 0
        self._window: deque[bool] = deque()
        self._in_window = 0
        self._unreachable = 0
        self._num_rows = num_rows

    def check(self, statuses: list[str]) -> None:
        """Look at the statuses of rows as they come.

        Raises:
            StoppedError: 20 in succession, over 1% of the last 1,000, or all of them could not be reached.
        """
        for status in statuses:
            unreachable = status in IN_THE_WAY
            self._in_succession = self._in_succession + 1 if unreachable else 0
            full = len(self._window) == _STOP_WINDOW
            self._in_window += unreachable - (self._window.popleft() if full else 0)
            self._window.append(unreachable)
            self._unreachable += unreachable
            if (
                self._in_succession >= _STOP_AFTER_IN_SUCCESSION
                or (len(self._window) == _STOP_WINDOW and self._in_window > _STOP_SHARE * _STOP_WINDOW)
                or self._unreachable == self._num_rows
            ):
                raise StoppedError(
                    f"inputs cannot be reached ({status}); mend the access, then the same command goes on"
                )


class Failures:
    """Stops a run with more failed rows than `--max-failed` allows.

    Args:
        max_failed: a share of all rows up to 1, or a count above 1.
        num_rows: all rows.
        num_failed: rows that had failed before this run.
    """

    def __init__(self, max_failed: float, num_rows: int, num_failed: int) -> None:
        self._max_failed = max_failed
        self._allowed = max_failed * num_rows if max_failed <= 1 else max_failed
        self._by_code: dict[str, int] = {}
        self._num_failed = num_failed
        self.check([])

    def check(self, statuses: list[str], *, final: bool = True) -> None:
        """Count the statuses of rows as they come; unless they are final, rows out of reach don't count yet.

        Raises:
            StoppedError: there are too many.
        """
        for status in statuses:
            if status != OK and (final or status not in IN_THE_WAY):
                self._num_failed += 1
                self._by_code[status] = self._by_code.get(status, 0) + 1
        if self._num_failed > self._allowed:
            told = ", ".join(f"{code} {count:,}" for code, count in sorted(self._by_code.items()))
            raise StoppedError(
                f"{self._num_failed:,} rows failed, more than --max-failed {self._max_failed:g} allows"
                f"{f' ({told})' if told else ''}; the same command with a larger one goes on"
            )


class ProgressFile:
    """`_progress.json`, for those who watch from elsewhere."""

    def __init__(self, output: str, planned: int, done: int) -> None:
        self._address = storage.join(output, PROGRESS)
        self._planned = planned
        self._done = self._before = done
        self._failed = 0
        self._started = time.monotonic()
        self._last = 0.0

    def advance(self, statuses: list[str]) -> None:
        """Count finished rows; writes at most every 5 seconds."""
        self._done += len(statuses)
        self._failed += sum(status != OK for status in statuses)
        if time.monotonic() - self._last >= _PROGRESS_INTERVAL_S:
            self.write("predicting")

    def write(self, state: str) -> None:
        """Write it now."""
        self._last = time.monotonic()
        rate = (self._done - self._before) / max(1e-9, self._last - self._started)
        told = {
            "state": state,
            "planned": self._planned,
            "done": self._done,
            "failed": self._failed,
            "images_per_s": round(rate, 2),
            "seconds_left": round((self._planned - self._done) / rate) if rate else None,
            "updated": now(),
        }
        storage.put(self._address, json.dumps(told).encode())


class TermSignal:
    """While it is entered, the first SIGTERM calls `drain`; a second one ends the process as usual.

    Attributes:
        came: whether there was one.
    """

    def __init__(self, drain: Callable[[], None]) -> None:
        self._drain = drain
        self.came = False

    def __enter__(self) -> TermSignal:
        self._ours = threading.current_thread() is threading.main_thread()
        if self._ours:
            self._before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ours:
            signal.signal(signal.SIGTERM, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        signal.signal(signal.SIGTERM, self._before)
        # another thread, since the one that was interrupted may hold what draining needs
        threading.Thread(target=self._finish, name="drain", daemon=True).start()

    def _finish(self) -> None:
        say("SIGTERM: finishing what is in hand")
        self._drain()
