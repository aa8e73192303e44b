"""Read many files or objects in order, several requests in flight, with retries of transient errors."""

from __future__ import annotations

import itertools
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

from tlray.errors import UNREACHABLE, Code, FetchError
from tlray.storage import local, s3
from tlray.storage.addresses import Request, is_s3, split_s3
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
    waiting: deque[tuple[Future[Fetched] | Request, int]] = deque()
    in_flight_bytes = 0
    largest = _TYPICAL_BYTES  # stands for unknown sizes; grows with the results
    for request in requests:
        expected = request.length or request.size or largest
        while waiting and (len(waiting) >= IN_FLIGHT or in_flight_bytes + expected > _MAX_IN_FLIGHT_BYTES):
            promised, size = waiting.popleft()
            in_flight_bytes -= size
            fetched = _take(promised)
            if isinstance(fetched.data, bytes):
                largest = max(largest, len(fetched.data))
            yield fetched
        if is_s3(request.uri):
            waiting.append((_get_pool().submit(fetch, request), expected))
            in_flight_bytes += expected
        else:
            waiting.append((request, 0))  # a local disk is fastest one file at a time
    while waiting:
        yield _take(waiting.popleft()[0])


def _take(promised: Future[Fetched] | Request) -> Fetched:
    return fetch(promised) if isinstance(promised, Request) else promised.result()


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
