"""Tell objects that are out of reach from a store, or from credentials, that are gone.

Readers try an object for a while, and pass it on as DENIED, THROTTLED or TIMEOUT. Such rows are tried again at the end
of the run, and fail then. But while nothing can be read, trying is of no use: when many rows in succession come back
like this, the driver asks for an object that was read before. If that can be read, only those objects are out of
reach; if it cannot, the driver waits for the store. Where nothing was ever read, the driver asks for more and more
objects of the plan, and stops the run if it gets none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from tlray import storage
from tlray.console import say
from tlray.errors import UNREACHABLE, FetchError, StoppedError
from tlray.output.plan import Plan
from tlray.sources.candidates import REFUSED
from tlray.sources.reading import list_rows

_MAX_IN_SUCCESSION = 20
_ASK_INTERVAL_S = 5.0
_PAUSE_S = 2.0
_SAMPLES = (16, 64, 256, 1024)
_THREADS = 16
_SILENCE_S = 15.0


class Reach:
    """Watches which rows of a plan can be read; a context manager, in which it says if the store does not answer.

    Args:
        patience_s: seconds to wait for a store that does not answer.
        read_row: a row that an earlier run could read, None if there is none.
    """

    def __init__(self, plan: Plan, patience_s: float, read_row: int | None = None) -> None:
        self._plan = plan
        self._patience_s = patience_s
        self._read = None if read_row is None else self._find_address(read_row)
        self._read_at = self._heard_at = time.monotonic()
        self._asked_at = self._found_at = 0.0
        self._in_succession = 0
        self._ended = threading.Event()

    def __enter__(self) -> Reach:
        self._ended.clear()
        threading.Thread(target=self._tell_outages, name="reach", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def check(self, row_ids: npt.NDArray[np.int64], statuses: Sequence[str]) -> None:
        """Take the statuses of new rows.

        Raises:
            StoppedError: nothing can be read.
        """
        self._heard_at = time.monotonic()
        reached = np.array([status not in UNREACHABLE for status in statuses])
        if reached.any():
            known = self._read is not None and self._heard_at - self._found_at < _ASK_INTERVAL_S
            self._note_read(None if known else self._find_address(int(row_ids[reached.argmax()])))
        for status in statuses:
            self._in_succession = self._in_succession + 1 if status in UNREACHABLE else 0
        if self._in_succession >= _MAX_IN_SUCCESSION and time.monotonic() - self._asked_at >= _ASK_INTERVAL_S:
            self.ask()

    def ask(self) -> None:
        """Ask whether anything can be read, and wait for it for a while.

        Raises:
            StoppedError: nothing can be read.
        """
        self._asked_at = time.monotonic()
        if self._read is None:
            self._search()
        elif (error := storage.try_reading(self._read)) is not None:
            self._wait(self._read, error)
        self._in_succession = 0

    def _note_read(self, uri: str | None) -> None:
        self._read_at = time.monotonic()
        if uri is not None:
            self._read, self._found_at = uri, self._read_at

    def _find_address(self, row_id: int) -> str | None:
        (row,) = list_rows(self._plan.read(row_id, 1))
        return None if row.source in REFUSED else row.archive

    def _search(self) -> None:
        """Ask for objects all over the plan, a few first, until one can be read."""
        asked: set[str] = set()
        error: FetchError | None = None
        for count in _SAMPLES:
            row_ids = np.unique(np.linspace(0, self._plan.num_rows - 1, count, dtype=np.int64))
            rows = [row for row in list_rows(self._plan.take(row_ids)) if row.source not in REFUSED]
            uris = {row.archive for row in rows} - asked
            with ThreadPoolExecutor(_THREADS) as pool:
                errors = dict(zip(uris, pool.map(storage.try_reading, uris), strict=True))
            for uri, answer in errors.items():
                if answer is None:
                    self._note_read(uri)
                    return
                error = answer
            asked |= uris
        if error is not None:
            raise StoppedError(
                f"inputs cannot be reached ({error.code}: {error}); fix the access, then run the same command to resume"
            )

    def _wait(self, uri: str, error: FetchError) -> None:
        """Wait until an object that was read before can be read again."""
        say(f"{_describe(uri)} cannot be read ({error.code}: {error}); waiting up to {self._patience_s:.0f} s for it")
        failure: FetchError | None = error
        while failure is not None:
            if time.monotonic() - self._read_at >= self._patience_s:
                raise StoppedError(
                    f"inputs cannot be reached ({failure.code}: {failure}), not even what was read before, for "
                    f"{time.monotonic() - self._read_at:.0f} s; run the same command to resume"
                )
            time.sleep(min(_PAUSE_S, self._patience_s))
            failure = storage.try_reading(uri)
        self._note_read(uri)
        say("inputs can be read again")

    def _tell_outages(self) -> None:
        """Say if nothing is read because the store does not answer: the readers wait for it without a word."""
        said = False
        while not self._ended.wait(_ASK_INTERVAL_S):
            if self._read is None or time.monotonic() - self._heard_at < _SILENCE_S:
                continue
            away = storage.try_reading(self._read) is not None
            if away and not said:
                say(f"{_describe(self._read)} does not answer; the readers wait up to {self._patience_s:.0f} s for it")
            elif said and not away:
                say("inputs can be read again")
            said = away


def _describe(uri: str) -> str:
    """Return the bucket or folder of an address."""
    return storage.redact(uri.rpartition("/")[0] if not storage.is_s3(uri) else "/".join(uri.split("/")[:3]))
