"""Decide how often a request is made again, by what this process has seen of its store.

One request that fails says little: the object may be out of reach, or the store. So each process keeps what it has seen
of a store. Requests share a pace, which slows down while the store throttles. A folder whose objects are denied is not
asked for long. While nothing can be read, not even what was read before, the time that a request has is not used up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

_LONGEST_FIRST_DENIAL_S = 3.0
"""Seconds of retries of what is denied before anything could be read: mostly the credentials are wrong."""

_MAX_DENIED_FOLDERS = 10_000
_FORBIDDEN_AFTER = 3
_ASK_INTERVAL_S = 2.0

_MIN_RATE = 1.0
_MAX_RATE = 5_000.0
_SLOWDOWN = 0.5
_RECOVERY_PER_S = 1.1


class Pace:
    """Requests per second of a process to one store: no limit until the store throttles, then half of what was sent.

    While it no longer throttles, the rate grows by a tenth each second.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rate: float | None = None
        self._next = 0.0
        self._changed = 0.0
        self._window = (0.0, 0, 0)  # start of the current second, requests in it, and in the one before

    def wait(self) -> None:
        """Wait until the next request may be sent."""
        with self._lock:
            now = time.monotonic()
            self._count(now)
            if self._rate is None:
                return
            start = max(now, self._next)
            self._next = start + 1 / self._rate
        time.sleep(start - now)

    def slow_down(self) -> None:
        """Halve the rate, but once for all requests that were in flight."""
        with self._lock:
            now = time.monotonic()
            if self._rate is not None and now - self._changed < 1:
                return
            _, here, before = self._window
            sent = float(max(here, before))
            self._rate = max(_MIN_RATE, _SLOWDOWN * (sent if self._rate is None else min(sent, self._rate)))
            self._changed = now

    def speed_up(self) -> None:
        """Let the rate grow with the time since it was changed."""
        with self._lock:
            now = time.monotonic()
            if self._rate is None or now - self._changed < 1:
                return
            self._rate *= _RECOVERY_PER_S ** (now - self._changed)
            self._changed = now
            if self._rate > _MAX_RATE:
                self._rate = None

    def _count(self, now: float) -> None:
        start, here, before = self._window
        if now - start >= 1:
            start, here, before = now, 0, here if now - start < 2 else 0
        self._window = (start, here + 1, before)


class StoreHistory:
    """The experience of this process with one store.

    Args:
        can_be_read: asks once for an address that was read before; True if the store answers.
    """

    def __init__(self, can_be_read: Callable[[str], bool]) -> None:
        self.pace = Pace()
        self._can_be_read = can_be_read
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._read: str | None = None
        self._answered = 0.0
        self._asked = 0.0
        self._away = False
        self._denied: dict[str, int] = {}

    def note_read(self, uri: str) -> None:
        """Note that an address was read."""
        self.pace.speed_up()
        with self._lock:
            self._read = uri
            self._answered = time.monotonic()
            if self._denied:
                for folder in _iter_folders(uri):
                    self._denied.pop(folder, None)

    def note_denied(self, uri: str) -> None:
        """Note that an address was denied until its last try."""
        with self._lock:
            if len(self._denied) > _MAX_DENIED_FOLDERS:
                self._denied.clear()
            for folder in _iter_folders(uri):
                self._denied[folder] = self._denied.get(folder, 0) + 1

    def choose_limit(self, uri: str, retry_for_s: float) -> float:
        """Return the seconds for which a denied address is tried again."""
        with self._lock:
            if self._read is None:
                retry_for_s = min(retry_for_s, _LONGEST_FIRST_DENIAL_S)
            forbidden = any(self._denied.get(folder, 0) >= _FORBIDDEN_AFTER for folder in _iter_folders(uri))
            return 0.0 if forbidden else retry_for_s

    def is_away(self, since: float) -> bool:
        """Return whether nothing was read since a monotonic time, not even what was read before, which is asked for."""
        with self._asking:
            if self._read is None or self._answered > since:
                return False
            if time.monotonic() - self._asked >= _ASK_INTERVAL_S:
                self._away = not self._can_be_read(self._read)
                self._asked = time.monotonic()
            return self._away


def _iter_folders(uri: str) -> Iterator[str]:
    """Yield the folders that hold an address, up to the bucket."""
    start = uri.find("://") + 3 if "://" in uri else 0
    end = uri.rfind("/")
    while end > start:
        yield uri[:end]
        end = uri.rfind("/", 0, end)
