from types import SimpleNamespace

import pytest

from tlray.training import interim
from tlray.training.interim import InterimClock


@pytest.fixture
def now(monkeypatch):
    times = SimpleNamespace(now=100.0)
    monkeypatch.setattr(interim.time, "monotonic", lambda: times.now)
    return times


def take_steps(clock, now, seconds_a_step):
    """Take steps until the workers ask each other; return their number."""
    count = 0
    while True:
        now.now += seconds_a_step
        count += 1
        if clock.count_step():
            return count


def test_workers_ask_each_other_about_once_a_second(now):
    clock = InterimClock(600.0, lambda: False)
    assert take_steps(clock, now, 0.1) == 1
    for expected in (10, 10):
        due, steps = clock.propose()
        assert (due, steps) == (False, pytest.approx(10, abs=1))
        clock.agree(steps)
        assert take_steps(clock, now, 0.1) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(("seconds_a_step", "steps"), [(30.0, 1), (1e-7, 1000)])
def test_they_ask_after_each_long_step_and_at_least_every_thousand(now, seconds_a_step, steps):
    clock = InterimClock(600.0, lambda: False)
    take_steps(clock, now, seconds_a_step)
    assert clock.propose() == (False, steps)


def test_a_checkpoint_is_due_when_its_time_has_come(now):
    clock = InterimClock(60.0, lambda: False)
    dues = []
    for _ in range(130):
        take_steps(clock, now, 1.0)
        due, steps = clock.propose()
        clock.agree(steps)
        if due:
            dues.append(now.now - 100.0)
            clock.note_saved()
    assert dues == [60.0, 120.0]


def test_one_that_is_asked_for_is_due_at_once(now):
    asked = [False, True, False]
    clock = InterimClock(0.0, lambda: asked.pop(0))
    found = []
    for _ in range(3):
        take_steps(clock, now, 5.0)
        due, steps = clock.propose()
        clock.agree(steps)
        found.append(due)
    assert found == [False, True, False]


def test_short_intervals_are_kept(now):
    clock = InterimClock(0.01, lambda: False)
    take_steps(clock, now, 0.1)
    assert clock.propose() == (True, 1)
