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


def run_replicas(folder, workers, mode):
    addresses = ",".join(find_addresses(workers))
    outputs = [folder / f"{mode}-{workers}-{rank}.npz" for rank in range(workers)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(REPLICA), str(rank), str(workers), addresses, str(outputs[rank]), mode],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(workers)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return [dict(np.load(output)) for output in outputs]


def split(result):
    losses, drifted = result.pop("losses"), bool(result.pop("drifted"))
    return losses, drifted, [result[key] for key in sorted(result, key=lambda name: int(name.removeprefix("arr_")))]


@pytest.mark.parametrize("mode", ["frozen", "live", "half"])
def test_two_workers_hold_identical_weights(tmp_path, mode):
    (_, drift_a, a), (_, drift_b, b) = map(split, run_replicas(tmp_path, 2, mode))
    assert not drift_a
    assert not drift_b
    assert len(a) > 200
    for one, two in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("mode", ["frozen", "clipped", "cached"])
def test_two_workers_take_the_steps_of_one(tmp_path, mode):
    one = split(run_replicas(tmp_path, 1, mode)[0])
    two = [split(result) for result in run_replicas(tmp_path, 2, mode)]
    np.testing.assert_allclose(two[0][0] + two[1][0], one[0], rtol=TOLERANCE)
    for ours, theirs in zip(two[0][2], one[2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE, atol=1e-5)


def test_workers_that_drift_apart_are_noticed(tmp_path):
    assert all(split(result)[1] for result in run_replicas(tmp_path, 2, "drift"))
