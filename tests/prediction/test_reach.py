import numpy as np
import pytest

from tests.output.data import plan_images, write_images
from tlray import storage
from tlray.errors import Code, FetchError, StoppedError
from tlray.prediction import reach as reaching
from tlray.prediction.reach import Reach

NUM_ROWS = 3000


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    root = tmp_path_factory.mktemp("reach")
    return plan_images(root / "out", write_images(root / "in", NUM_ROWS))


class Inputs:
    """Inputs of which some can be read; its clock is moved on by waiting."""

    def __init__(self):
        self.now = 1000.0
        self.readable = set()
        self.code = Code.TIMEOUT
        self.back_at = float("inf")
        self.asked = []

    def sleep(self, pause_s):
        self.now += pause_s

    def try_reading(self, uri):
        self.asked.append(uri)
        if self.now >= self.back_at or any(uri.endswith(f"/{name}.jpg") for name in self.readable):
            return None
        return FetchError(self.code, "no")


@pytest.fixture
def inputs(monkeypatch):
    inputs = Inputs()
    monkeypatch.setattr(storage, "try_reading", inputs.try_reading)
    monkeypatch.setattr(reaching.time, "monotonic", lambda: inputs.now)
    monkeypatch.setattr(reaching.time, "sleep", inputs.sleep)
    return inputs


def check(reach, *statuses, first=0):
    reach.check(np.arange(first, first + len(statuses)), statuses)


def test_a_few_that_are_out_of_reach_are_no_reason_to_ask(plan, inputs):
    reach = Reach(plan, 300)
    check(reach, *["DENIED"] * 19)
    check(reach, "EMPTY", *["TIMEOUT"] * 19)
    assert inputs.asked == []


def test_where_nothing_was_ever_read_more_and_more_is_asked_for_until_the_run_stops(plan, inputs):
    inputs.code = Code.DENIED
    with pytest.raises(StoppedError, match=r"inputs cannot be reached \(DENIED: no\); fix the access, then run"):
        check(Reach(plan, 300), *["DENIED"] * 20)
    assert 1024 <= len(inputs.asked) == len(set(inputs.asked)) < 1400


def name(plan, row):
    return plan.read(row, 1)["uri"][0].as_py().rpartition("/")[2].removesuffix(".jpg")


def test_one_input_in_many_that_can_be_read_keeps_a_run_going(plan, inputs):
    sampled = np.unique(np.linspace(0, NUM_ROWS - 1, 1024, dtype=np.int64))
    inputs.readable = {name(plan, int(sampled[701]))}
    reach = Reach(plan, 300)
    check(reach, *["DENIED"] * 40)
    assert len(inputs.asked) > 64
    inputs.asked.clear()
    inputs.now += 6
    check(reach, *["DENIED"] * 40)
    assert len(inputs.asked) == 1


def test_while_what_was_read_before_can_be_read_the_run_goes_on(plan, inputs):
    inputs.readable = {name(plan, 5)}
    reach = Reach(plan, 300)
    check(reach, "ok", first=5)
    for _ in range(50):
        inputs.now += 6
        check(reach, *["DENIED"] * 40)
    assert len(set(inputs.asked)) == 1
    assert len(inputs.asked) == 50


def test_a_store_that_does_not_answer_is_waited_for(plan, inputs, capsys):
    reach = Reach(plan, 300)
    check(reach, "ok")
    inputs.back_at = inputs.now + 90
    check(reach, *["TIMEOUT"] * 20)
    assert 1090 <= inputs.now < 1095
    printed = capsys.readouterr()
    assert "cannot be read (TIMEOUT: no); waiting up to 300 s for it" in printed.out + printed.err
    assert "inputs can be read again" in printed.out + printed.err


def test_a_store_that_stays_away_stops_the_run(plan, inputs):
    reach = Reach(plan, 300)
    check(reach, "ok")
    with pytest.raises(StoppedError, match=r"inputs cannot be reached \(TIMEOUT: no\), not even what was read before"):
        check(reach, *["TIMEOUT"] * 20)
    assert 1300 <= inputs.now < 1310


def test_readers_that_have_waited_already_are_not_waited_for_again(plan, inputs):
    reach = Reach(plan, 300)
    check(reach, "ok")
    inputs.now += 320
    with pytest.raises(StoppedError, match="for 320 s; run the same command to resume"):
        check(reach, *["TIMEOUT"] * 20)


def test_an_earlier_run_tells_what_can_be_read(plan, inputs):
    inputs.readable = {name(plan, 7)}
    Reach(plan, 300, read_row=7).ask()
    assert len(inputs.asked) == 1
