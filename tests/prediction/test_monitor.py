import json

import pytest

from tlray import storage
from tlray.errors import OutageError, OutputError, StoppedError
from tlray.prediction import monitor
from tlray.prediction.monitor import Failures, ProgressFile, RunClock


def test_too_many_failures_stop_the_run():
    share = Failures(0.1, 100, 0)
    share.check(["EMPTY"] * 10)
    share.check(["TIMEOUT"] * 5, final=False)
    with pytest.raises(StoppedError, match="EMPTY 11"):
        share.check(["EMPTY"])
    with pytest.raises(StoppedError, match="--max-failed 2"):
        Failures(2, 100, 3)
    Failures(1.0, 3, 0).check(["EMPTY"] * 3)


def test_failures_of_earlier_runs_count_and_codes_are_listed_in_order():
    failures = Failures(3, 100, 1)
    failures.check(["TRUNCATED", "ok", "EMPTY"])
    with pytest.raises(
        StoppedError, match=r"^4 rows failed, more than --max-failed 3 allows \(EMPTY 2, TRUNCATED 1\);"
    ):
        failures.check(["EMPTY"])


@pytest.fixture
def clock(monkeypatch):
    """A clock that starts at 0 and whose time is set by `tick`."""
    times = {"now": 100.0}
    monkeypatch.setattr(monitor.time, "monotonic", lambda: times["now"])
    clock = RunClock()
    clock.tick = lambda seconds: times.update(now=100.0 + seconds)
    return clock


def test_each_stage_gets_the_time_since_the_one_before(clock):
    clock.tick(2)
    clock.spend("planning")
    clock.tick(5)
    clock.spend("predicting")
    assert clock.stages == {"planning": 2.0, "predicting": 3.0}


def test_the_steady_rate_leaves_out_start_up_and_the_first_batch(clock):
    clock.tick(10)
    clock.count(32, 1, lambda: 64)
    assert clock.first_label_s == 10.0
    assert clock.steady_rate == clock.rate == pytest.approx(3.2)
    clock.tick(14)
    clock.count(80, 2, lambda: 112)
    assert clock.steady_rate == pytest.approx(80 / 4)
    assert clock.rate == pytest.approx(112 / 14)
    assert (clock.num_predicted, clock.num_retries) == (112, 3)


def test_the_timeline_has_a_sample_a_second_and_counts_over_passes(clock):
    for seconds, predicted in ((1.0, 10), (1.5, 10), (2.0, 10)):
        clock.tick(seconds)
        clock.count(predicted, 0, lambda: 40)
    clock.end_pass({"float32": 2})
    clock.tick(4)
    clock.count(5, 0, lambda: 5)
    assert [(one.seconds, one.fetched, one.predicted) for one in clock.timeline] == [
        (1, 40, 10),
        (2, 40, 30),
        (4, 35, 35),
    ]
    assert clock.engines == {"float32": 2}


def test_a_long_run_keeps_at_most_400_samples_from_all_of_it(clock):
    for seconds in range(1, 2001):
        clock.tick(seconds)
        clock.count(1, 0, lambda: 0)
    seconds = [one.seconds for one in clock.timeline]
    assert 200 <= len(seconds) <= 400
    assert (seconds[0], seconds == sorted(seconds)) == (1, True)
    assert seconds[-1] > 1980


def test_progress_holds_the_counts_and_the_time_left(tmp_path, monkeypatch):
    times = {"now": 100.0}
    monkeypatch.setattr(monitor.time, "monotonic", lambda: times["now"])
    progress = ProgressFile(str(tmp_path), planned=100, done=20)
    times["now"] = 110.0
    progress.advance(["ok"] * 38 + ["EMPTY"] * 2)
    written = json.loads((tmp_path / "_progress.json").read_text())
    assert written.pop("updated")
    assert written == {
        "state": "predicting", "planned": 100, "done": 60, "failed": 2, "images_per_s": 4.0, "seconds_left": 10,
    }  # fmt: skip
    times["now"] = 114.0
    progress.advance(["ok"])
    assert json.loads((tmp_path / "_progress.json").read_text())["done"] == 60
    times["now"] = 115.0
    progress.advance(["ok"])
    assert json.loads((tmp_path / "_progress.json").read_text())["done"] == 62


def test_progress_without_a_row_has_no_time_left(tmp_path):
    ProgressFile(str(tmp_path), planned=100, done=20).write("stopped")
    written = json.loads((tmp_path / "_progress.json").read_text())
    assert (written["state"], written["images_per_s"], written["seconds_left"]) == ("stopped", 0.0, None)


@pytest.mark.parametrize("kind", [OutputError, OutageError])
def test_a_run_goes_on_without_its_progress_file(tmp_path, monkeypatch, kind):
    def put(address, data):
        raise kind(f"{address} cannot be written")

    monkeypatch.setattr(storage, "put", put)
    ProgressFile(str(tmp_path), planned=100, done=20).write("predicting")
