import importlib
import itertools
import threading

import pytest

from tlray.errors import Code, FetchError
from tlray.storage import local, s3
from tlray.storage.addresses import Request
from tlray.storage.fetch import IN_FLIGHT, MAX_TRIES, Fetched, fetch, fetch_many

fetching = importlib.import_module("tlray.storage.fetch")  # the package's attribute is the function

MIB = 2**20


@pytest.fixture
def pauses(monkeypatch):
    """The pauses between tries, in seconds, none of which is waited for."""
    made = []
    monkeypatch.setattr(fetching.time, "sleep", made.append)
    return made


@pytest.fixture
def fail(monkeypatch):
    """Makes the next reads of local files fail, in order."""
    real = local.read

    def prepare(*codes):
        left = list(codes)
        monkeypatch.setattr(local, "read", lambda request: raise_error(left.pop(0)) if left else real(request))

    return prepare


def raise_error(code):
    raise FetchError(code, f"failed by {code}")


def count(requests, taken):
    for request in requests:
        taken.append(request.uri)
        yield request


def test_a_first_success_is_no_retry(tmp_path, pauses):
    (tmp_path / "file").write_bytes(b"content")
    assert fetch(Request(str(tmp_path / "file"))) == Fetched(b"content", 0)
    assert pauses == []


@pytest.mark.parametrize("code", [Code.DENIED, Code.THROTTLED, Code.TIMEOUT])
def test_transient_errors_are_retried_and_counted(tmp_path, pauses, fail, code):
    (tmp_path / "file").write_bytes(b"content")
    fail(code, code)
    assert fetch(Request(str(tmp_path / "file"))) == Fetched(b"content", 2)
    assert len(pauses) == 2


@pytest.mark.parametrize("code", [Code.NOT_FOUND, Code.CHANGED, Code.TOO_LARGE])
def test_other_errors_are_final(tmp_path, pauses, fail, code):
    (tmp_path / "file").write_bytes(b"content")
    fail(code)
    data, retries = fetch(Request(str(tmp_path / "file")))
    assert (data.code, retries, pauses) == (code, 0, [])


def test_the_last_error_is_returned_when_all_tries_fail(tmp_path, pauses, fail):
    fail(*[Code.THROTTLED] * (MAX_TRIES - 1), Code.TIMEOUT)
    data, retries = fetch(Request(str(tmp_path / "file")))
    assert (data.code, retries) == (Code.TIMEOUT, MAX_TRIES - 1)
    longest = [0.2, 0.4, 0.8, 1.6]
    assert len(pauses) == len(longest)
    assert all(limit / 2 <= pause <= limit for pause, limit in zip(pauses, longest, strict=True))


def test_a_pause_never_exceeds_its_limit(tmp_path, pauses, fail, monkeypatch):
    monkeypatch.setattr(fetching, "MAX_TRIES", 10)
    fail(*[Code.TIMEOUT] * 10)
    fetch(Request(str(tmp_path / "file")))
    assert len(pauses) == 9
    assert all(2.5 <= pause <= 5 for pause in pauses[5:])


def test_results_come_in_order_with_errors_in_their_places(tmp_path):
    uris = [str(tmp_path / str(index)) for index in range(200)]
    for uri in uris[::2]:
        local.put(uri, uri.encode())
    fetched = list(fetch_many(Request(uri) for uri in uris))
    assert [result.data for result in fetched[::2]] == [uri.encode() for uri in uris[::2]]
    assert {result.data.code for result in fetched[1::2]} == {Code.NOT_FOUND}


def test_no_requests_give_no_results():
    assert list(fetch_many([])) == []


def test_local_files_are_read_one_by_one_as_they_are_taken(tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(local, "read", lambda request: reads.append(request.uri) or b"")
    results = fetch_many(Request(f"/file/{index}") for index in range(10))
    next(results)
    assert reads == ["/file/0"]
    next(results)
    assert reads == ["/file/0", "/file/1"]


@pytest.fixture
def objects(monkeypatch):
    """Objects of any address, whose content is their own address."""
    monkeypatch.setattr(s3, "open_connection", lambda uri: None)
    monkeypatch.setattr(s3, "read", lambda request: request.uri.encode())


@pytest.mark.usefixtures("objects")
def test_objects_come_in_order_beside_local_files(tmp_path):
    local.put(str(tmp_path / "file"), b"local")
    uris = [f"s3://bucket/{index}" if index % 3 else str(tmp_path / "file") for index in range(200)]
    expected = [uri.encode() if uri.startswith("s3") else b"local" for uri in uris]
    assert [result.data for result in fetch_many(map(Request, uris))] == expected


def test_objects_are_read_at_the_same_time(monkeypatch):
    monkeypatch.setattr(s3, "open_connection", lambda uri: None)
    both = threading.Barrier(2, timeout=30)
    monkeypatch.setattr(s3, "read", lambda request: str(both.wait() in (0, 1)).encode())
    assert [result.data for result in fetch_many([Request("s3://b/0"), Request("s3://b/1")])] == [b"True"] * 2


@pytest.mark.usefixtures("objects")
@pytest.mark.parametrize(
    ("size", "most"),
    [(1, IN_FLIGHT), (None, IN_FLIGHT), (4 * MIB, 64), (8 * MIB, 32), (100 * MIB, 2), (256 * MIB, 1), (1024 * MIB, 1)],
)
def test_requests_in_flight_are_bounded_in_number_and_bytes(size, most):
    taken = []
    results = fetch_many(count((Request(f"s3://b/{index}", size=size) for index in itertools.count()), taken))
    for number in range(1, 4):
        next(results)
        # one request more has been taken, and waits for this result to be consumed
        assert len(taken) == most + number


@pytest.mark.usefixtures("objects")
def test_a_range_counts_by_its_length():
    taken = []
    ranges = (Request(f"s3://b/{index}", 0, 64 * MIB, size=1) for index in itertools.count())
    next(fetch_many(count(ranges, taken)))
    assert len(taken) == 4 + 1


def test_unknown_sizes_are_judged_by_the_largest_result(monkeypatch):
    monkeypatch.setattr(fetching, "_MAX_IN_FLIGHT_BYTES", 100)
    monkeypatch.setattr(fetching, "_TYPICAL_BYTES", 10)
    monkeypatch.setattr(s3, "open_connection", lambda uri: None)
    monkeypatch.setattr(s3, "read", lambda request: bytes(50))
    taken = []
    results = fetch_many(count((Request(f"s3://b/{index}") for index in itertools.count()), taken))
    next(results)
    assert len(taken) == 11
    for _ in range(20):
        next(results)
    # two of 50 bytes fill the 100: taken are those, the 21 results, and the next request
    assert len(taken) == 21 + 2
