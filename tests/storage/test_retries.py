from types import SimpleNamespace

import pytest

from tlray.storage import retries
from tlray.storage.retries import Pace, StoreHistory


@pytest.fixture
def clock(monkeypatch):
    times = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(retries.time, "monotonic", lambda: times.now)
    monkeypatch.setattr(retries.time, "sleep", lambda pause_s: setattr(times, "now", times.now + pause_s))
    return times


def send(pace, clock, count, seconds_each=0.0):
    """Send requests one after another; the seconds that they took together."""
    began = clock.now
    for _ in range(count):
        pace.wait()
        clock.now += seconds_each
    return clock.now - began


def test_a_store_that_does_not_throttle_is_asked_at_once(clock):
    assert send(Pace(), clock, 1000) == 0


def test_a_throttled_pace_is_half_of_what_was_sent_and_recovers(clock):
    pace = Pace()
    send(pace, clock, 100, 0.01)
    pace.slow_down()
    for _ in range(63):  # those that were in flight are throttled too
        pace.slow_down()
    assert send(pace, clock, 100) == pytest.approx(2, abs=0.1)
    pace.slow_down()
    assert send(pace, clock, 100) == pytest.approx(4, abs=0.1)
    clock.now += 20
    pace.speed_up()
    assert send(pace, clock, 100) < 1
    clock.now += 60
    pace.speed_up()
    assert send(pace, clock, 1000) == 0


def test_one_request_a_second_is_the_least(clock):
    pace = Pace()
    for _ in range(20):
        pace.wait()
        clock.now += 1
        pace.slow_down()
    assert send(pace, clock, 10) == pytest.approx(10, abs=1)


def test_a_store_is_away_while_what_was_read_before_cannot_be(clock):
    can_be_read = {"s3://b/1": True}
    asked = []
    history = StoreHistory(lambda uri: asked.append(uri) or can_be_read[uri])
    assert not history.is_away(clock.now)  # nothing was ever read
    history.note_read("s3://b/1")
    clock.now += 10
    since = clock.now
    assert not history.is_away(since)
    can_be_read["s3://b/1"] = False
    assert not history.is_away(since)  # it was asked just now
    clock.now += 3
    assert history.is_away(since)
    assert history.is_away(since)
    assert asked == ["s3://b/1"] * 2
    clock.now += 1
    history.note_read("s3://b/1")
    assert not history.is_away(since)


def test_denials_count_for_all_folders_above_until_something_in_them_is_read():
    history = StoreHistory(lambda _: True)
    assert history.choose_limit("s3://b/a/1", 60) == 3
    history.note_read("s3://b/other")
    for folder in "xyz":
        history.note_denied(f"s3://b/a/{folder}/1")
        assert history.choose_limit(f"s3://b/a/{folder}/2", 60) == (60 if folder != "z" else 0)
    assert history.choose_limit("s3://b/a/new/2", 60) == 0
    assert history.choose_limit("s3://b/b/2", 60) == 0  # of the whole bucket nothing was read since
    history.note_read("s3://b/c/1")
    assert history.choose_limit("s3://b/b/2", 60) == 60
    assert history.choose_limit("s3://b/a/new/2", 60) == 0
    history.note_read("s3://b/a/x/3")
    assert history.choose_limit("s3://b/a/new/2", 60) == 60


def test_the_folders_of_many_denials_are_forgotten(monkeypatch):
    monkeypatch.setattr(retries, "_MAX_DENIED_FOLDERS", 100)
    history = StoreHistory(lambda _: True)
    for index in range(1000):
        history.note_denied(f"s3://b/{index}/1")
    assert len(history._denied) <= 102
