"""Many bodies at once: in order, some in flight, tried again where the way to them was at fault."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

from tlray.errors import IN_THE_WAY, FetchError
from tlray.storage import local, s3
from tlray.storage.addresses import Request, is_s3

MAX_TRIES = 5
"""How often one request is made where it is denied, throttled or times out."""

IN_FLIGHT = 64
"""Requests that one process keeps in flight."""

_MAX_IN_FLIGHT_BYTES = 256 * 2**20
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_TYPICAL_BYTES = 2**20


class Fetched(NamedTuple):
    """What one request gave.

    Attributes:
        data: the bytes, or why there are none.
        retries: how often it was asked again.
    """

    data: bytes | FetchError
    retries: int


def fetch(request: Request) -> Fetched:
    """Read a file, an object or a range of it; what lies in the way is tried again after growing, jittered pauses."""
    read = s3.read if is_s3(request.uri) else local.read
    for retries in range(MAX_TRIES):
        try:
            return Fetched(read(request), retries)
        except FetchError as error:
            if error.code not in IN_THE_WAY or retries == MAX_TRIES - 1:
                return Fetched(error, retries)
        # jitter: random pauses keep many processes from asking again all at once
        time.sleep(random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**retries))
    raise AssertionError("unreachable")


def fetch_many(requests: Iterable[Request]) -> Iterator[Fetched]:
    """Answer requests in order, up to `IN_FLIGHT` of them and 256 MiB ahead of what has been taken."""
    waiting: deque[tuple[Future[Fetched] | Request, int]] = deque()
    in_flight_bytes = 0
    largest = _TYPICAL_BYTES  # what an unknown size is taken for, by those that have come
    for request in requests:
        expected = request.length or request.size or largest
        while waiting and (len(waiting) >= IN_FLIGHT or in_flight_bytes + expected > _MAX_IN_FLIGHT_BYTES):
            promised, size = waiting.popleft()
            in_flight_bytes -= size
            answer = _take(promised)
            if isinstance(answer.data, bytes):
                largest = max(largest, len(answer.data))
            yield answer
        if is_s3(request.uri):
            s3.open_connection(request.uri)
            waiting.append((_get_pool().submit(fetch, request), expected))
            in_flight_bytes += expected
        else:
            waiting.append((request, 0))  # a local disk is fastest when asked one by one
    while waiting:
        yield _take(waiting.popleft()[0])


def _take(promised: Future[Fetched] | Request) -> Fetched:
    return fetch(promised) if isinstance(promised, Request) else promised.result()


@cache
def _get_pool() -> ThreadPoolExecutor:
    """One pool a process, so that no batch waits for threads to start."""
    return ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="fetch")
