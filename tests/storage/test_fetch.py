import importlib
import itertools
import random
import threading
from collections import Counter, deque
from types import SimpleNamespace

import pytest

from tlray.errors import Code, FetchError
from tlray.storage import local, s3
from tlray.storage.addresses import Request
from tlray.storage.fetch import IN_FLIGHT, Fetched, fetch, fetch_many

fetching = importlib.import_module("tlray.storage.fetch")  # the package's attribute is the function

MIB = 2**20


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock that pauses move on, so that none is waited for; no store has been seen before."""
    random.seed(0)  # of the jitter
    times = SimpleNamespace(now=1000.0, pauses=[])

    def sleep(pause_s):
        times.now += pause_s
        times.pauses.append(pause_s)

    monkeypatch.setattr(fetching.time, "sleep", sleep)
    monkeypatch.setattr(fetching.time, "monotonic", lambda: times.now)
    fetching._open_history.cache_clear()
    yield times
    fetching._open_history.cache_clear()


@pytest.fixture
def pauses(clock):
    """The pauses between tries, in seconds."""
    return clock.pauses


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


def test_transient_errors_are_retried_and_counted(tmp_path, pauses, fail):
    (tmp_path / "file").write_bytes(b"content")
    fail(Code.TIMEOUT, Code.TIMEOUT)
    assert fetch(Request(str(tmp_path / "file"))) == Fetched(b"content", 2)
    assert len(pauses) == 2


def test_a_local_file_that_is_denied_stays_so(tmp_path, pauses, fail):
    (tmp_path / "file").write_bytes(b"content")
    fail(Code.DENIED)
    data, retries = fetch(Request(str(tmp_path / "file")))
    assert (data.code, retries, pauses) == (Code.DENIED, 0, [])


@pytest.mark.parametrize("code", [Code.NOT_FOUND, Code.CHANGED, Code.TOO_LARGE])
def test_other_errors_are_final(tmp_path, pauses, fail, code):
    (tmp_path / "file").write_bytes(b"content")
    fail(code)
    data, retries = fetch(Request(str(tmp_path / "file")))
    assert (data.code, retries, pauses) == (code, 0, [])


class Store:
    """Objects that are out of reach by a code, by a part of their key; others are their own address."""

    def __init__(self, clock):
        self.codes = {}
        self.retry_after_s = None
        self.tries = Counter()
        self.times = []
        self._clock = clock

    def read(self, request):
        self.tries[request.uri] += 1
        self.times.append(self._clock.now)
        for part, code in self.codes.items():
            if part in request.uri:
                raise FetchError(code, f"failed by {code}", self.retry_after_s)
        return request.uri.encode()


@pytest.fixture
def store(monkeypatch, clock):
    store = Store(clock)
    monkeypatch.setattr(s3, "read", store.read)
    monkeypatch.setattr(s3, "read_again", store.read)
    return store


@pytest.mark.parametrize("code", [Code.DENIED, Code.THROTTLED, Code.TIMEOUT])
def test_an_object_is_tried_for_a_minute_beside_others_that_are_read(store, clock, code):
    assert fetch(Request("s3://b/a/good")).data == b"s3://b/a/good"
    store.codes = {"bad": code}
    began = clock.now
    data, retries = fetch(Request("s3://b/a/bad"))
    assert data.code is code
    assert 59.9 < clock.now - began < 70
    assert retries == store.tries["s3://b/a/bad"] - 1
    assert 10 < retries < 30


def test_pauses_grow_to_five_seconds(store, pauses):
    store.codes = {"bad": Code.TIMEOUT}
    fetch(Request("s3://b/bad"))
    assert all(limit / 2 <= pause <= limit for pause, limit in zip(pauses, [0.2, 0.4, 0.8, 1.6, 3.2], strict=False))
    assert all(2.5 <= pause <= 5 for pause in pauses[5:-1])


def test_what_is_denied_before_anything_was_read_is_given_up_soon(store, clock):
    store.codes = {"bad": Code.DENIED}
    began = clock.now
    assert fetch(Request("s3://b/bad")).data.code is Code.DENIED
    assert 2.9 < clock.now - began < 4


def test_objects_of_a_forbidden_folder_get_one_try_each(store):
    store.codes = {"shut/": Code.DENIED}
    fetch(Request("s3://b/open/0"))
    for index in range(10):
        fetch(Request(f"s3://b/shut/{index}"))
    assert [store.tries[f"s3://b/shut/{index}"] > 1 for index in range(10)] == [True] * 3 + [False] * 7
    store.codes = {"/7": Code.DENIED}
    assert fetch(Request("s3://b/shut/9")).data == b"s3://b/shut/9"  # it is open again
    fetch(Request("s3://b/shut/7"))
    assert store.tries["s3://b/shut/7"] > 2


def test_a_store_that_is_away_is_waited_for(store, clock, monkeypatch):
    fetch(Request("s3://b/0"))
    store.codes = {"s3://": Code.TIMEOUT}
    began = clock.now
    sleep = fetching.time.sleep

    def sleep_until_it_is_back(pause_s):
        sleep(pause_s)
        if clock.now - began > 90:
            store.codes = {}

    monkeypatch.setattr(fetching.time, "sleep", sleep_until_it_is_back)
    assert fetch(Request("s3://b/1")).data == b"s3://b/1"
    assert 90 < clock.now - began < 100


def test_a_store_that_stays_away_is_given_up_after_the_patience(store, clock):
    fetch(Request("s3://b/0"))
    store.codes = {"s3://": Code.TIMEOUT}
    began = clock.now
    assert fetch(Request("s3://b/1")).data.code is Code.TIMEOUT
    assert 290 < clock.now - began < 310


def test_a_store_that_says_when_to_come_back_is_obeyed(store, pauses):
    fetch(Request("s3://b/0"))
    store.codes, store.retry_after_s = {"bad": Code.THROTTLED}, 20.0
    fetch(Request("s3://b/bad"))
    assert [pause for pause in pauses if pause > 5] == [20.0, 20.0, pytest.approx(20, abs=1)]


def test_throttled_requests_slow_down_and_recover(monkeypatch, clock):
    """Never more than a few requests over the limit in any second, and all objects in the end."""
    limit, sent = 20, deque()

    def read(request):
        sent.append(clock.now)
        clock.now += 0.001
        if sum(when > clock.now - 1 for when in sent) > limit:
            raise FetchError(Code.THROTTLED, "slow down")
        return b""

    monkeypatch.setattr(s3, "read", read)
    monkeypatch.setattr(s3, "read_again", read)
    results = [fetch(Request(f"s3://b/{index}")) for index in range(300)]
    assert {result.data for result in results} == {b""}
    throttled = sum(result.retries for result in results)
    assert 0 < throttled < 50
    assert clock.now - sent[0] < 40


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
    monkeypatch.setattr(s3, "read", lambda request: request.uri.encode())


@pytest.mark.usefixtures("objects")
def test_objects_come_in_order_beside_local_files(tmp_path):
    local.put(str(tmp_path / "file"), b"local")
    uris = [f"s3://bucket/{index}" if index % 3 else str(tmp_path / "file") for index in range(200)]
    expected = [uri.encode() if uri.startswith("s3") else b"local" for uri in uris]
    assert [result.data for result in fetch_many(map(Request, uris))] == expected


def test_objects_are_read_at_the_same_time(monkeypatch):
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


class Sized:
    """Objects whose sizes are known once they are asked for; counts the bytes that are held at once."""

    def __init__(self, *sizes):
        self.sizes = sizes
        self.read_bytes = []
        self.asked = []

    def read(self, request):
        size = self.sizes[int(request.uri.rpartition("/")[2])]
        self.asked.append(request.uri)
        local.check_size(request, size)
        self.read_bytes.append(size)
        return bytes(size)


@pytest.fixture
def small_flight(monkeypatch):
    """100 bytes in flight, 10 for the first objects of unknown size."""
    monkeypatch.setattr(fetching, "_MAX_IN_FLIGHT_BYTES", 100)
    monkeypatch.setattr(fetching, "_TYPICAL_BYTES", 10)


@pytest.mark.usefixtures("small_flight")
def test_unknown_sizes_are_expected_to_be_like_those_before(monkeypatch):
    objects = Sized(*[20] * 30)
    monkeypatch.setattr(s3, "read", objects.read)
    taken = []
    results = fetch_many(count((Request(f"s3://b/{index}") for index in range(30)), taken))
    next(results)
    assert len(taken) == 11
    assert [len(result.data) for result in results] == [20] * 29
    assert len(objects.read_bytes) == 30  # each is read once
    later = objects.asked[-15:]
    assert len(set(later)) == len(later)  # and asked for once, as soon as their size is known to be likely


@pytest.mark.usefixtures("small_flight")
def test_objects_of_unknown_size_are_read_only_where_there_is_room(monkeypatch):
    """Ten of them are asked for at once; of the larger ones two have room beside each other."""
    objects = Sized(*[45] * 10, 5, 300, 5)
    monkeypatch.setattr(s3, "read", objects.read)
    results = fetch_many(Request(f"s3://b/{index}") for index in range(13))
    sizes = []
    for result in results:
        sizes.append(len(result.data))
        fetching._get_pool().submit(int).result()
        assert sum(objects.read_bytes) - sum(sizes) <= 100
    assert sizes == [*objects.sizes]
    assert sorted(objects.read_bytes) == sorted(objects.sizes)


@pytest.mark.usefixtures("small_flight")
def test_a_larger_object_that_cannot_be_read_is_its_own_error(monkeypatch):
    def read(request):
        local.check_size(request, 50)
        raise FetchError(Code.DENIED, "no")

    monkeypatch.setattr(s3, "read", read)
    fetched = list(fetch_many(Request(f"s3://b/{index}", max_bytes=size) for index, size in enumerate((49, 50, 50))))
    assert [result.data.code for result in fetched] == [Code.TOO_LARGE, Code.DENIED, Code.DENIED]
