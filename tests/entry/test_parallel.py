"""Training is the same for any number of workers."""

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

REPLICA = Path(__file__).with_name("replica.py")
TOLERANCE = 1e-3


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
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return {mode: [split(dict(np.load(folder / f"{mode}.npz"))) for folder in folders] for mode in modes}


def split(result):
    losses, drifted = result.pop("losses"), bool(result.pop("drifted"))
    return losses, drifted, [result[key] for key in sorted(result, key=lambda name: int(name.removeprefix("arr_")))]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return run_replicas(tmp_path_factory.mktemp("one"), 1, ["frozen", "clipped", "cached"])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    modes = ["frozen", "live", "half", "clipped", "cached", "drift"]
    return run_replicas(tmp_path_factory.mktemp("two"), 2, modes)


@pytest.mark.parametrize("mode", ["frozen", "live", "half"])
def test_two_workers_hold_identical_weights(two, mode):
    (_, drift_a, a), (_, drift_b, b) = two[mode]
    assert not drift_a
    assert not drift_b
    assert len(a) > 200
    for ours, theirs in zip(a, b, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("mode", ["frozen", "clipped", "cached"])
def test_two_workers_take_the_steps_of_one(one, two, mode):
    ((losses, _, weights),) = one[mode]
    first, second = two[mode]
    np.testing.assert_allclose(first[0] + second[0], losses, rtol=TOLERANCE)
    for ours, theirs in zip(first[2], weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE, atol=1e-5)


def test_workers_that_drift_apart_are_noticed(two):
    assert all(drifted for _, drifted, _ in two["drift"])
