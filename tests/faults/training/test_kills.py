"""Faults 41 to 44: a training whose processes are killed goes on as if undisturbed, and no checkpoint is lost."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.entry.conftest import read_manifest
from tests.faults.conftest import LONG_OPTIONS, TWO_WORKERS, check_same_history, read_history
from tests.faults.processes import Watched, kill


@pytest.mark.chaos
def test_41_workers_killed_and_stopped_dead(tmp_path, small, undisturbed):
    """A killed worker, and one that is there but answers nothing: training goes on without a hand, as undisturbed."""
    watched = Watched(
        "train", "--data", str(small), "--output", str(tmp_path / "bundle"), *LONG_OPTIONS, *TWO_WORKERS,
        "--collective-timeout", "10",
    )  # fmt: skip
    watched.wait_for("epoch 1/10 (head)")
    kill(watched.find_workers()[0])
    watched.wait_for("epoch 6/10 (finetune)")
    watched.stop(watched.find_workers()[-1])
    output = watched.finish()
    assert output.count("workers were lost; 2 new ones go on after epoch") == 2
    check_same_history(read_history(tmp_path / "bundle"), read_history(undisturbed))
    ours, theirs = read_manifest(tmp_path / "bundle"), read_manifest(undisturbed)
    assert ours["metrics"]["validation"]["accuracy"] == theirs["metrics"]["validation"]["accuracy"]


@pytest.mark.chaos
def test_41_the_process_between_driver_and_workers_is_killed(tmp_path, small, undisturbed):
    """As Ray's memory monitor may do: the workers start again, behind the last finished epoch."""
    watched = Watched("train", "--data", str(small), "--output", str(tmp_path / "bundle"), *LONG_OPTIONS, *TWO_WORKERS)
    watched.wait_for("epoch 3/10 (head)")
    kill(watched.find_channel())
    output = watched.finish()
    assert "training stopped: " in output
    assert "; starting workers again" in output
    assert "workers were lost; 2 new ones go on after epoch" in output
    check_same_history(read_history(tmp_path / "bundle"), read_history(undisturbed))


def test_42_44_63_driver_killed_and_fewer_workers(tmp_path, small, undisturbed):
    """Killed in each phase, the same command goes on: once with one worker of twice the batch, then with two again.

    The last one comes while the one before it seems to live, and waits for it.
    """
    output = tmp_path / "bundle"
    options = ["--data", str(small), "--output", str(output), *LONG_OPTIONS]
    watched = Watched("train", *options, *TWO_WORKERS)
    watched.wait_for("epoch 3/10 (head)")
    watched.kill_driver()
    watched = Watched("train", *options, "--num-workers", "1", "--batch-size", "8")
    watched.wait_for("epoch 7/10 (finetune)")
    watched.stop_driver()
    last = Watched("train", *options, *TWO_WORKERS)
    last.wait_for(f"another tlray works on {output} (process {watched.pid} on")
    watched.kill_driver()
    assert "with 1 workers" in watched.output
    assert not output.exists()
    last.finish()
    for told in (watched.output, last.output):
        assert "an earlier run was stopped; going on after epoch" in told
        assert "epoch 1/10" not in told
    check_same_history(read_history(output), read_history(undisturbed))
    assert not (tmp_path / "bundle-checkpoints").exists()


def stop_within_an_epoch(watched, states, workers):
    """SIGSTOP all workers at a moment when the latest state lies within an epoch."""
    while True:
        assert watched.wait_until(lambda: list(states.glob("run-*/epoch-*-000000000008/state.npz")), pause_s=0.001)
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        if sorted(path.parent.name for path in states.glob("run-*/epoch-*/state.npz"))[-1].count("-") == 2:
            return
        for pid in workers:
            os.kill(pid, signal.SIGCONT)


def test_41_42_killed_within_an_epoch(tmp_path, small, undisturbed):
    """A worker killed while it computes features, another within an epoch, then SIGTERM to the command.

    It goes on at the very step, with its rate and dropout.
    """
    options = ["--data", str(small), *LONG_OPTIONS, *TWO_WORKERS, "--cache-dir", str(tmp_path / "cache")]
    options += ["--output", str(tmp_path / "bundle"), "--checkpoint-every", "0.001"]
    states = tmp_path / "bundle-checkpoints"
    watched = Watched("train", *options)
    assert watched.wait_until(lambda: list((tmp_path / "cache").rglob("pooled.npy")), pause_s=0.001)
    kill(watched.find_workers()[0])
    watched.wait_for("training on")
    assert watched.wait_until(lambda: list(states.glob("run-*/epoch-0000*")), pause_s=0.01)
    workers = watched.find_workers()
    stop_within_an_epoch(watched, states, workers)
    kill(workers[0])
    for pid in workers[1:]:
        os.kill(pid, signal.SIGCONT)
    watched.wait_for("workers were lost; 2 new ones go on after ")
    assert re.search(r"go on after \d+ images of epoch \d", watched.output)
    assert watched.wait_until(lambda: list(states.glob("run-*/epoch-0006-000000000008/state.npz")), pause_s=0.001)
    watched.terminate()
    told = watched.finish(expect=1)
    assert "SIGTERM: saving a checkpoint" in told
    assert "training was stopped by SIGTERM; the same command continues after the last checkpoint" in told
    again = Watched("train", *options).finish()
    assert re.search("an earlier run was stopped; going on after .* with 2 workers", again)
    check_same_history(read_history(tmp_path / "bundle"), read_history(undisturbed))


WRITE_STATES = """
import sys, numpy as np
from tests.factories import make_epoch
from tlray.training.checkpoint import TrainingState, save_state
for epoch in range(1, 1000):
    state = TrainingState(history=[make_epoch(number + 1) for number in range(epoch)])
    state.weights = {"head/a/kernel": np.full(6_000_000, epoch, np.float32)}
    save_state(sys.argv[1], state)
    print(epoch, flush=True)
"""


def test_43_killed_while_saving(tmp_path):
    from tlray.training.checkpoint import load_state

    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITE_STATES, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
        )
        done = [int(writer.stdout.readline()) for _ in range(3)][-1]
        while not list((tmp_path / "run").glob("*/.*.partial")):
            time.sleep(0.001)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        state = load_state(str(tmp_path / "run"))
        assert state.epoch >= done
        np.testing.assert_array_equal(state.weights["head/a/kernel"], np.full(6_000_000, state.epoch, np.float32))
        shutil.rmtree(tmp_path / "run")
