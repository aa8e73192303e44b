"""Read many files or objects in order, several requests in flight, with retries of transient errors."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

from tlray.errors import UNREACHABLE, FetchError
from tlray.storage import local, s3
from tlray.storage.addresses import Request, is_s3

MAX_TRIES = 5
"""Times that a request is made while it is denied, throttled or times out."""

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
    """Read a file, an object or a range of it; retry codes in `UNREACHABLE` after growing, jittered pauses."""
    read = s3.read if is_s3(request.uri) else local.read
    for retries in range(MAX_TRIES):
        try:
            return Fetched(read(request), retries)
        except FetchError as error:
            if error.code not in UNREACHABLE or retries == MAX_TRIES - 1:
                return Fetched(error, retries)
        # jitter keeps many processes from retrying at the same time
        time.sleep(random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**retries))
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
            s3.open_connection(request.uri)
            waiting.append((_get_pool().submit(fetch, request), expected))
            in_flight_bytes += expected
        else:
            waiting.append((request, 0))  # a local disk is fastest one file at a time
    while waiting:
        yield _take(waiting.popleft()[0])


def _take(promised: Future[Fetched] | Request) -> Fetched:
    return fetch(promised) if isinstance(promised, Request) else promised.result()


@cache
def _get_pool() -> ThreadPoolExecutor:
    """Return the pool of this process, so that no batch waits for threads to start."""
    return ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="fetch")
