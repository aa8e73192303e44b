import contextlib
import io
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from tlray import console as module
from tlray.console import Stage, now, say, silence_stderr


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still at 10:20:30 UTC; `seconds` is the monotonic one."""
    state = SimpleNamespace(seconds=1000.0)
    fixed = SimpleNamespace(
        monotonic=lambda: state.seconds,
        strftime=lambda form, *moment: "10:20:30" if form == "%H:%M:%S" else pytest.fail(form),
    )
    monkeypatch.setattr(module, "time", fixed)
    return state


@pytest.fixture
def log(monkeypatch):
    """Lines printed to a file."""
    file = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=file, highlight=False, soft_wrap=True, width=40))
    return lambda: file.getvalue().splitlines()


@pytest.fixture
def terminal(monkeypatch):
    """Text printed to a terminal of 120 columns, without control codes."""
    file = io.StringIO()
    wide = Console(file=file, force_terminal=True, highlight=False, soft_wrap=True, width=120, color_system=None)
    monkeypatch.setattr(module, "console", wide)
    return lambda: re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())


def test_the_time_is_utc_in_iso_8601(monkeypatch):
    monkeypatch.setattr(module.time, "gmtime", lambda: (2026, 3, 9, 7, 5, 1, 0, 68, 0))
    assert now() == "2026-03-09T07:05:01Z"


def test_a_line_in_a_log_has_the_time_and_is_neither_wrapped_nor_styled(clock, log):
    text = "[bold]" + "a long line " * 10 + "[/bold]"
    say(text)
    assert log() == [f"10:20:30  {text}"]


def test_a_line_on_a_terminal_has_no_time(clock, terminal):
    say("[red] stays as it is")
    assert terminal() == "[red] stays as it is\n"


def test_a_stage_in_a_log_is_a_line_at_its_start_and_its_end(clock, log):
    with Stage("predict", 1_400) as stage:
        clock.seconds += 20
        stage.advance(1_400)
    assert log() == ["10:20:30  predict: 1,400 images", "10:20:30  predict: 1,400/1,400 images, 70.0/s"]


def test_a_stage_in_a_log_prints_its_rate_and_time_left_every_15_seconds(clock, log):
    with Stage("train", 4_000, unit="rows") as stage:
        for seconds in (14.9, 0.1, 14.9, 0.1):
            clock.seconds += seconds
            stage.advance(500)
        stage.note("epoch 2")
        clock.seconds += 10
        stage.advance(2_000)
    assert log() == [
        "10:20:30  train: 4,000 rows",
        "10:20:30  train: 1,000/4,000 rows, 66.7/s, 45 s left",
        "10:20:30  train: 2,000/4,000 rows, 66.7/s, 30 s left",
        "10:20:30  train: 4,000/4,000 rows, 100.0/s, epoch 2",
    ]


def test_a_stage_without_progress_prints_no_time_left(clock, log):
    with Stage("predict", 10) as stage:
        clock.seconds += 15
        stage.advance(0)
        stage.say("waiting")
    assert log()[1:] == [
        "10:20:30  predict: 0/10 images, 0.0/s",
        "10:20:30  waiting",
        "10:20:30  predict: 0/10 images, 0.0/s",
    ]


def test_an_empty_stage_takes_no_time(clock, log):
    with Stage("predict", 0):
        pass
    assert log()[-1] == "10:20:30  predict: 0/0 images, 0.0/s"


def test_a_stage_that_fails_prints_no_last_line(clock, log):
    with contextlib.suppress(ValueError), Stage("predict", 10) as stage:
        stage.advance(4)
        raise ValueError
    assert log() == ["10:20:30  predict: 10 images"]


def test_a_stage_counts_no_more_than_its_total_and_can_go_back(clock, log):
    with Stage("train", 100) as stage:
        stage.advance(250)
        clock.seconds += 20
        stage.move_to(40)
        stage.advance(10)
    assert log()[1:] == [
        "10:20:30  train: 40/100 images, 2.0/s, 30 s left",
        "10:20:30  train: 50/100 images, 2.5/s, 20 s left",
    ]


def test_a_stage_on_a_terminal_is_a_bar_with_a_note(terminal):
    with Stage("predict", 1_399) as stage:
        stage.note("2 failed")
        stage.say("3 engines")
        stage.advance(1_399)
    printed = terminal()
    assert "3 engines\n" in printed
    last = printed.rstrip().splitlines()[-1]
    assert last.startswith("predict")
    assert "1,399/1,399 images" in last
    assert last.endswith("2 failed")


def test_stderr_of_native_code_is_dropped_and_comes_back():
    script = (
        "import os, sys\n"
        "from tlray.console import silence_stderr\n"
        "with silence_stderr():\n"
        "    os.write(2, b'native'); print('python', file=sys.stderr, flush=True)\n"
        "    os.system('echo child >&2')\n"
        "os.write(2, b'after\\n')\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert result.stderr == "after\n"


def test_stderr_comes_back_after_an_error_and_leaves_no_file_open(capfd):
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208
    with contextlib.suppress(ValueError), silence_stderr():
        os.write(2, b"dropped")
        raise ValueError
    os.write(2, b"kept")
    assert capfd.readouterr().err == "kept"
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208
