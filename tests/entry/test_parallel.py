"""Training is the same for any number of workers."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

REPLICA = Path(__file__).with_name("replica.py")
TOLERANCE = 1e-3
LEAST_CHANGE = 1e-5


class Result(NamedTuple):
    """What a worker saved; `change` is the largest of a weight or slot."""

    losses: np.ndarray
    drifted: bool
    change: float
    weights: list[np.ndarray]


def find_addresses(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return addresses


def run_replicas(root, workers, modes):
    """Results by mode, of each worker."""
    addresses = ",".join(find_addresses(workers))
    folders = [root / f"{workers}-{rank}" for rank in range(workers)]
    processes = []
    for rank, folder in enumerate(folders):
        folder.mkdir()
        command = [sys.executable, str(REPLICA), str(rank), str(workers), addresses, str(folder), *modes]
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    saved = [mode for mode in modes if (folders[0] / f"{mode}.npz").exists()]
    return {mode: [split(dict(np.load(folder / f"{mode}.npz"))) for folder in folders] for mode in saved}


def split(result):
    losses, drifted, change = (result.pop(name) for name in ("losses", "drifted", "change"))
    return Result(
        losses,
        bool(drifted),
        float(change),
        [result[key] for key in sorted(result, key=lambda name: int(name.removeprefix("arr_")))],
    )


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return run_replicas(tmp_path_factory.mktemp("one"), 1, ["frozen", "clipped", "cached", "mixed"])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    modes = ["frozen", "live", "half", "overflow", "clipped", "cached", "mixed", "drift"]
    return run_replicas(tmp_path_factory.mktemp("two"), 2, modes)


def find(results, mode):
    if mode not in results:
        assert mode in ("half", "overflow")
        pytest.skip("this CPU, or oneDNN's limit for it, has no convolution of float16")
    return results[mode]


@pytest.mark.parametrize("mode", ["frozen", "live", "half"])
def test_two_workers_hold_identical_weights(two, mode):
    a, b = find(two, mode)
    assert not a.drifted
    assert not b.drifted
    assert a.change > LEAST_CHANGE
    assert len(a.weights) > 200
    for ours, theirs in zip(a.weights, b.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_step_that_overflows_moves_neither_weights_nor_momentum(two):
    for worker in find(two, "overflow"):
        assert worker.change == 0


@pytest.mark.parametrize("mode", ["frozen", "clipped", "cached", "mixed"])
def test_two_workers_take_the_steps_of_one(one, two, mode):
    (alone,) = one[mode]
    first, second = two[mode]
    assert alone.change > LEAST_CHANGE
    np.testing.assert_allclose(first.losses + second.losses, alone.losses, rtol=TOLERANCE)
    for ours, theirs in zip(first.weights, alone.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE, atol=1e-5)


def test_workers_that_drift_apart_are_noticed(two):
    assert all(worker.drifted for worker in two["drift"])
