"""Each problem of a cluster is reported once, and none of a healthy one."""

from dataclasses import replace

import pytest

from tests.doctor.data import (
    ANSWER,
    DENIED,
    GB,
    GONE,
    PLACES,
    VERSIONS,
    WORKERS,
    C,
    change,
    change_all,
    make_cluster,
    meet,
)
from tlray.cluster.nodes import Node
from tlray.doctor import DoctorSummary, Level
from tlray.doctor.findings import find_all
from tlray.doctor.inspect_node import Trouble
from tlray.doctor.machines import Machine

CASES = {
    "nobody works": (make_cluster(0), "error", "no machine takes work"),
    "nobody works yet": (replace(make_cluster(0), grows=True), "note", "no machine takes work yet: jobs ask for some"),
    "silent": (change(C, 4, silence="no answer in 60 s"), "error", "no answer from worker4 (no answer in 60 s)"),
    "without tlray": (
        change(C, 4, silence="ModuleNotFoundError: No module named 'tlray'"),
        "error",
        "on worker4: install tlray 0.1.0",
    ),
    "fewer GPUs": (change(C, 2, report={"gpus": 0}), "error", "missing on worker2 (Ray counts 4, the machine shows 0)"),
    "more GPUs": (change(C, 2, node={"gpus": 2}), "warning", "idle on worker2 (Ray counts 2, the machine shows 4)"),
    "python minor": (
        change(C, 1, report={"versions": {**VERSIONS, "python": "3.12.1"}}),
        "error",
        "python is 3.12.1 on worker1",
    ),
    "python patch": (
        change(C, 1, report={"versions": {**VERSIONS, "python": "3.11.2"}}),
        "warning",
        "python is 3.11.2 on worker1",
    ),
    "ray": (
        change(C, 1, report={"versions": {**VERSIONS, "ray": "2.61.0"}}),
        "error",
        "ray is 2.61.0 on worker1 but 2.60",
    ),
    "tlray": (change(C, 1, report={"versions": {**VERSIONS, "tlray": "0.2.0"}}), "error", "tlray is 0.2.0 on worker1"),
    "keras": (
        change(C, 1, report={"versions": {**VERSIONS, "keras": "3.16.0"}}),
        "warning",
        "keras is 3.16.0 on worker1",
    ),
    "no tensorflow": (
        change(C, 1, report={"versions": {**VERSIONS, "tensorflow": None}}),
        "error",
        "tensorflow is not installed on worker1: install tensorflow 2.21.0",
    ),
    "input denied to all workers": (
        change_all(C, WORKERS, report=meet(0, DENIED)),
        "error",
        "--input s3://photos/2024 cannot be read from worker1, worker2, worker3 and 1 more (DENIED: access denied)",
    ),
    "input denied to the driver": (
        replace(C, troubles=meet(0, DENIED)["troubles"]),
        "error",
        "cannot be read from the driver (DENIED",
    ),
    "input denied on the driver's machine": (
        replace(change(C, 0, report=meet(0, DENIED)), troubles=meet(0, DENIED)["troubles"]),
        "error",
        "cannot be read from head (DENIED",
    ),
    "local input": (
        change(C, 3, report=meet(1, GONE)),
        "error",
        "--input /shared/more cannot be read from worker3 (NOT_FOUND: there is no such file or folder): give an s3://",
    ),
    "model denied to workers": (change(C, 1, report=meet(2, DENIED)), "note", "only the driver reads it"),
    "model denied to the driver": (replace(C, troubles=meet(2, DENIED)["troubles"]), "error", "--model s3://models"),
    "output denied to workers": (change(C, 1, report=meet(3, DENIED)), "warning", "training needs a location"),
    "output denied to the head": (change(C, 0, report=meet(3, DENIED)), "error", "cannot be written from head"),
    "local output": (change(C, 1, report=meet(4, GONE)), "note", "prediction writes from the driver only"),
    "open": (change_all(C, range(5), report={"token": False}), "warning", "ANYONE WHO REACHES 10.0.0.10:6379 CAN RUN"),
    "little disk": (change(C, 4, report={"spill_free_bytes": 9 * GB}), "warning", "on worker4 (as little as 9.0 GB)"),
    "less disk than objects": (
        change(C, 4, report={"spill_free_bytes": 19 * GB}),
        "warning",
        "little room on worker4",
    ),
    "small object store": (
        change(C, 1, node={"object_store_bytes": GB}),
        "warning",
        "the object store is small on worker1 (1.0 GB)",
    ),
    "small shared memory": (
        change(C, 1, report={"shm_bytes": 64 * 10**6}),
        "warning",
        "object store on worker1 (64.0 MB for 20.0 GB)",
    ),
    "head at work": (change(C, 0, node={"cpus": 4}), "note", "the head head takes work"),
    "clock by seconds": (
        change(C, 1, clock_offset_s=-6.0),
        "warning",
        "the clock is 6 s behind the driver's on worker1",
    ),
    "clock by minutes": (
        change(C, 1, clock_offset_s=400.0),
        "error",
        "the clock is 400 s ahead of the driver's on worker1",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_problem_is_reported_once_and_nothing_else(name):
    cluster, level, words = CASES[name]
    (finding,) = find_all(cluster)
    assert (finding.level, words in finding.sentence) == (level, True), finding
    assert DoctorSummary(cluster, (finding,)).exit_code == (level == "error")


@pytest.mark.parametrize("workers", [1, 4])
def test_a_healthy_cluster_has_no_finding(workers):
    assert find_all(make_cluster(workers)) == []


def test_harmless_differences_are_no_finding():
    small = make_cluster(1)
    assert find_all(change(small, 0, node={"cpus": 4})) == []  # a head may work beside one other
    assert find_all(replace(change_all(C, range(5), report={"token": False}), address="127.0.0.1:6379")) == []
    assert find_all(change(C, 1, clock_offset_s=4.0)) == []
    assert find_all(change(C, 1, report={"shm_bytes": None})) == []
    idle = Node("id9", "10.0.0.99", False, cpus=0, gpus=0, object_store_bytes=2 * GB)
    out = replace(ANSWER, gpus=0, **meet(1, GONE))
    assert find_all(replace(C, machines=(*C.machines, Machine("idle", idle, out)))) == []


def test_the_worst_comes_first():
    cluster = change(change(change(C, 0, node={"cpus": 4}), 1, clock_offset_s=6.0), 2, report={"gpus": 0})
    assert [finding.level for finding in find_all(cluster)] == [Level.ERROR, Level.WARNING, Level.NOTE]


def test_different_troubles_with_a_location_are_two_findings():
    cluster = change(change(C, 1, report=meet(0, DENIED)), 2, report=meet(0, Trouble("TIMEOUT", "no answer in 20 s")))
    one, two = find_all(cluster)
    assert "worker1 (DENIED" in one.sentence
    assert "worker2 (TIMEOUT" in two.sentence


def test_timeouts_with_different_messages_are_one_finding():
    for_one, for_two = Trouble("TIMEOUT", "no answer in 20 s"), Trouble("TIMEOUT", "Could not connect to x")
    (finding,) = find_all(change(change(C, 1, report=meet(0, for_one)), 2, report=meet(0, for_two)))
    assert "from worker1, worker2 (TIMEOUT: no answer in 20 s)" in finding.sentence


def test_secrets_in_an_address_are_not_printed():
    location = replace(PLACES[0], uri="s3://key:se/cret@photos/2024")
    cluster = replace(change(C, 1, report=meet(0, DENIED)), locations=(location, *PLACES[1:]))
    (finding,) = find_all(cluster)
    assert "cret" not in finding.sentence
