"""Read many files or objects in order, several requests in flight, with retries of transient errors."""

from __future__ import annotations

import itertools
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from tlray.errors import UNREACHABLE, Code, FetchError
from tlray.storage import local, s3
from tlray.storage.addresses import LargerError, Request, is_s3, split_s3
from tlray.storage.retries import StoreHistory
from tlray.storage.s3_client import get_options

IN_FLIGHT = 64
"""Largest number of requests that a process keeps in flight."""

_MAX_IN_FLIGHT_BYTES = 256 * 2**20
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_TYPICAL_BYTES = 2**20


class Fetched(NamedTuple):
    """The result of one request.

    Attributes:
        data: the bytes, or the error.
        retries: number of times the request was repeated.
    """

    data: bytes | FetchError
    retries: int


def fetch(request: Request) -> Fetched:
    """Read a file, an object or a range of it; retry codes in `UNREACHABLE` after growing, jittered pauses.

    It gives up after `S3Options.retry_for_s`, or after `outage_patience_s` in which nothing of the store can be read.
    """
    remote = is_s3(request.uri)
    read = s3.read if remote else local.read
    history = _open_history(split_s3(request.uri)[0] if remote else "")
    options = get_options()
    began, used_s, away_s = time.monotonic(), 0.0, 0.0
    for retries in itertools.count():
        history.pace.wait()
        tried = time.monotonic()
        try:
            data = read(request)
        except FetchError as error:
            if error.code not in UNREACHABLE:
                history.note_read(request.uri)  # the store answers
                return Fetched(error, retries)
            failure = error
        else:
            history.note_read(request.uri)
            return Fetched(data, retries)
        if failure.code is Code.THROTTLED:
            history.pace.slow_down()
            read = s3.read_again
        # jitter keeps many processes from retrying at the same time
        pause_s = random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(retries, 9))
        pause_s = max(pause_s, failure.retry_after_s or 0.0)
        spent_s = time.monotonic() - tried
        if history.is_away(began):
            away_s += spent_s + pause_s
            has_time = away_s < options.outage_patience_s
        else:
            limit_s = options.retry_for_s
            if failure.code is Code.DENIED:
                limit_s = history.choose_limit(request.uri, limit_s) if remote else 0.0
            used_s += spent_s
            has_time = used_s < limit_s
            pause_s = min(pause_s, limit_s - used_s)
            used_s += pause_s
        if not has_time:
            if failure.code is Code.DENIED:
                history.note_denied(request.uri)
            return Fetched(failure, retries)
        time.sleep(pause_s)
    raise AssertionError("unreachable")


def fetch_many(requests: Iterable[Request]) -> Iterator[Fetched]:
    """Yield the results of requests in order, with up to `IN_FLIGHT` requests and 256 MiB of objects in flight."""
    flight = _Flight()
    for request in requests:
        while not flight.has_room(request):
            yield flight.take()
        flight.add(request)
    while flight.waiting:
        yield flight.take()


@dataclass
class _Waiting:
    """A request, its result unless it is of a local file, and the bytes that it may bring."""

    request: Request
    result: Future[Fetched] | None
    num_bytes: int


class _Flight:
    """The requests in flight, in order, and the bytes that are kept free for them.

    An object of unknown size gets twice the room of those before it. One that is larger only tells its size; it is read
    once there is room, or its turn has come.
    """

    def __init__(self) -> None:
        self.waiting: deque[_Waiting] = deque()
        self._num_bytes = 0
        self._num_read = 0
        self._read_bytes = 0
        self._are_larger = False

    def has_room(self, request: Request) -> bool:
        """Return whether a request may be added now; one always may."""
        full = len(self.waiting) >= IN_FLIGHT or self._num_bytes + self._expect(request) > _MAX_IN_FLIGHT_BYTES
        return not (self.waiting and full)

    def add(self, request: Request) -> None:
        """Start a request; a local disk is fastest one file at a time, so those are read when they are taken."""
        if not is_s3(request.uri):
            self.waiting.append(_Waiting(request, None, 0))
            return
        num_bytes = self._expect(request)
        bounded = request if request.length or request.size else request._replace(room=num_bytes)
        self.waiting.append(_Waiting(request, _get_pool().submit(fetch, bounded), num_bytes))
        self._num_bytes += num_bytes

    def take(self) -> Fetched:
        """Return the first result; start larger objects behind it for which there is room now."""
        first = self.waiting.popleft()
        self._num_bytes -= first.num_bytes
        if first.result is None:
            return fetch(first.request)
        try:
            fetched = first.result.result()
        except LargerError:
            fetched = fetch(first.request)
            self._are_larger = True
        if isinstance(fetched.data, bytes):
            self._num_read += 1
            self._read_bytes += len(fetched.data)
        if self._are_larger:
            larger = [self._enlarge(waiting) for waiting in self.waiting]
            self._are_larger = any(larger)
        return fetched

    def _enlarge(self, waiting: _Waiting) -> bool:
        """Start a larger object again if there is room now; return whether it is one."""
        if waiting.result is None or not waiting.result.done():
            return False
        error = waiting.result.exception()
        if not isinstance(error, LargerError):
            return False
        if self._num_bytes - waiting.num_bytes + error.size <= _MAX_IN_FLIGHT_BYTES:
            self._num_bytes += error.size - waiting.num_bytes
            waiting.num_bytes = error.size
            waiting.result = _get_pool().submit(fetch, waiting.request._replace(room=error.size))
        return True

    def _expect(self, request: Request) -> int:
        mean = self._read_bytes // self._num_read if self._num_read else 0
        return request.length or request.size or max(_TYPICAL_BYTES, 2 * mean)


@cache
def _open_history(store: str) -> StoreHistory:
    """Return what this process has seen of a bucket, or of local files."""
    return StoreHistory(lambda uri: try_reading(uri) is None)


def try_reading(uri: str) -> FetchError | None:
    """Ask once for the first byte of a file or object; return why it is out of reach, None if the store answers."""
    try:
        (s3.read if is_s3(uri) else local.read)(Request(uri, 0, 1))
    except FetchError as error:
        return error if error.code in UNREACHABLE else None
    return None


@cache
def _get_pool() -> ThreadPoolExecutor:
    """Return the pool of this process, so that no batch waits for threads to start."""
    return ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="fetch")
