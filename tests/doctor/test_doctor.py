"""What doctor makes of what machines told: every finding once, and none of a healthy cluster."""

import threading
from dataclasses import replace

import psutil
import pytest
from rich.console import Console

from tlray.cli import print_cluster, tables
from tlray.cluster.nodes import Node
from tlray.config import DoctorConfig
from tlray.doctor import DoctorSummary, Level, inspect_node
from tlray.doctor.examine import _bound_offset as bound_offset
from tlray.doctor.examine import _list_locations as list_path_options
from tlray.doctor.findings import find_all
from tlray.doctor.inspect_node import Location, NodeReport, Trouble
from tlray.doctor.machines import ClusterReport, Machine, name_nodes
from tlray.errors import ConfigError

GB = 10**9
VERSIONS = {"python": "3.11.9", "ray": "2.60.0", "tensorflow": "2.21.0", "keras": "3.15.1", "tlray": "0.1.0"}
PLACES = (
    Location("--input", "s3://photos/2024", "s3://photos/2024/a.jpg", found=True),
    Location("--input", "/shared/more", "/shared/more"),
    Location("--model", "s3://models/first", "s3://models/first/bundle.json", found=True),
    Location("--output", "s3://labels/2024", "s3://labels/2024", writes=True),
    Location("--output", "/shared/labels", "/shared", writes=True),
)
NOTHING = (None,) * len(PLACES)
ANSWER = NodeReport(4, 256 * GB, 64 * GB, 400 * GB, VERSIONS, token=True, troubles=NOTHING)
DENIED = Trouble("DENIED", "access denied")
GONE = Trouble("NOT_FOUND", "there is no such file or folder")


def make_cluster(workers=4):
    """A head without work, where the driver runs, and workers of 4 GPUs."""
    head = Node("id0", "10.0.0.10", is_head=True, cpus=0, gpus=0, object_store_bytes=2 * GB)
    machines = [Machine("head", head, replace(ANSWER, gpus=0), has_driver=True)]
    for index in range(1, workers + 1):
        node = Node(f"id{index}", f"10.0.0.{10 + index}", False, cpus=32, gpus=4, object_store_bytes=20 * GB)
        machines.append(Machine(f"worker{index}", node, ANSWER))
    return ClusterReport("10.0.0.10:6379", False, tuple(machines), PLACES, VERSIONS, NOTHING)


def change(cluster, index, *, node=None, report=None, **fields):
    """The cluster with one machine's node, report or other fields changed."""
    machines = list(cluster.machines)
    machine = machines[index]
    if node is not None:
        fields["node"] = replace(machine.node, **node)
    if report is not None:
        fields["report"] = replace(machine.report, **report)
    if "silence" in fields:
        fields["report"] = None
    machines[index] = replace(machine, **fields)
    return replace(cluster, machines=tuple(machines))


def change_all(cluster, indices, **changes):
    for index in indices:
        cluster = change(cluster, index, **changes)
    return cluster


def meet(location, trouble):
    """The troubles of a machine that has one with one location."""
    return {"troubles": tuple(trouble if index == location else None for index in range(len(PLACES)))}


C = make_cluster()
WORKERS = (1, 2, 3, 4)

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
    "local output": (change(C, 1, report=meet(4, GONE)), "note", "labelling writes from the driver only"),
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
def test_each_trouble_is_found_once_and_nothing_else(name):
    cluster, level, words = CASES[name]
    (finding,) = find_all(cluster)
    assert (finding.level, words in finding.sentence) == (level, True), finding
    assert DoctorSummary(cluster, (finding,)).exit_code == (level == "error")


@pytest.mark.parametrize("workers", [1, 4])
def test_a_healthy_cluster_has_no_finding(workers):
    assert find_all(make_cluster(workers)) == []


def test_what_does_no_harm_is_no_finding():
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


def test_different_troubles_with_a_place_are_two_sentences():
    cluster = change(change(C, 1, report=meet(0, DENIED)), 2, report=meet(0, Trouble("TIMEOUT", "no answer in 20 s")))
    one, two = find_all(cluster)
    assert "worker1 (DENIED" in one.sentence
    assert "worker2 (TIMEOUT" in two.sentence


def test_connections_that_fail_in_their_own_words_are_one_sentence():
    for_one, for_two = Trouble("TIMEOUT", "no answer in 20 s"), Trouble("TIMEOUT", "Could not connect to x")
    (finding,) = find_all(change(change(C, 1, report=meet(0, for_one)), 2, report=meet(0, for_two)))
    assert "from worker1, worker2 (TIMEOUT: no answer in 20 s)" in finding.sentence


def test_secrets_in_an_address_are_not_printed():
    location = replace(PLACES[0], uri="s3://key:se/cret@photos/2024")
    cluster = replace(change(C, 1, report=meet(0, DENIED)), locations=(location, *PLACES[1:]))
    (finding,) = find_all(cluster)
    assert "cret" not in finding.sentence


def test_a_clock_is_off_by_what_the_wait_does_not_explain():
    assert bound_offset(103.0, 100.0, 110.0) == 0
    assert bound_offset(90.0, 100.0, 110.0) == -10
    assert bound_offset(125.0, 100.0, 110.0) == 15


def test_nodes_that_share_an_address_are_told_apart():
    node = Node("abcdef", "10.0.0.1", True, 1, 0, 0)
    other = replace(node, node_id="123456")
    assert name_nodes([node, other]) == ["10.0.0.1#abcd", "10.0.0.1#1234"]
    assert name_nodes([node]) == ["10.0.0.1"]


# ---- what a machine tells


def test_local_places_are_tried(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"a picture")
    (tmp_path / "empty").mkdir()
    locations = [
        Location("--input", "x", str(tmp_path)),
        Location("--input", "x", str(tmp_path / "a.jpg"), found=True),
        Location("--input", "x", str(tmp_path / "empty")),
        Location("--input", "x", str(tmp_path / "nowhere")),
        Location("--output", "x", str(tmp_path), writes=True),
        Location("--output", "x", str(tmp_path / "nowhere"), writes=True),
    ]
    told = [trouble and trouble.code for trouble in inspect_node.try_locations(locations)]
    assert told == [None, None, "NOT_FOUND", "NOT_FOUND", None, "NOT_FOUND"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "empty"]


def test_a_place_that_hangs_is_left_to_itself(monkeypatch):
    done = threading.Event()
    monkeypatch.setattr(inspect_node, "PATIENCE_S", 0.1)
    monkeypatch.setattr(inspect_node, "_try", lambda location: done.wait(10) and None)
    (trouble,) = inspect_node.try_locations([PLACES[0]])
    done.set()
    assert trouble == Trouble("TIMEOUT", "no answer in 0.1 s")


def test_what_is_unforeseen_is_told_without_secrets(monkeypatch):
    def fail(uri):
        raise ValueError("https://user:secret@store/x\nmore")

    monkeypatch.setattr(inspect_node.storage, "find_any", fail)
    (trouble,) = inspect_node.try_locations([PLACES[1]])
    assert trouble == Trouble("ValueError", "https://***@store/x")


def test_versions_are_read_without_importing():
    assert set(inspect_node.read_versions()) == set(VERSIONS)
    assert None not in inspect_node.read_versions().values()


@pytest.mark.parametrize(
    ("listed", "gpus"),
    [("GPU 0: H100 (UUID: a)\n  MIG 1g.10gb\nGPU 1: H100 (UUID: b)\n", 2), ("No devices found.\n", 0)],
)
def test_gpus_are_counted_by_the_driver_s_own_tool(listed, gpus, tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{listed}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert inspect_node._count_gpus() == gpus


def test_gpus_are_counted_without_the_tool_too(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(inspect_node, "_DRIVER_GPUS", tmp_path / "gpus")
    assert inspect_node._count_gpus() == 0
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    assert inspect_node._count_gpus() == 1


def test_the_driver_lists_and_names_what_machines_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"a picture")
    (tmp_path / "pack.tar").write_bytes(b"a tar")
    config = DoctorConfig(input=("in", "pack.tar#a.jpg", "gone"), model="bundle", output="new/labels")
    told = [
        (location.option, location.target, location.found, location.writes) for location in list_path_options(config)
    ]
    assert told == [
        ("--input", f"{tmp_path}/in/a.jpg", True, False),
        ("--input", f"{tmp_path}/pack.tar", True, False),
        ("--input", f"{tmp_path}/gone", False, False),
        ("--model", f"{tmp_path}/bundle/bundle.json", False, False),
        ("--output", str(tmp_path), False, True),
    ]


def test_bad_addresses_are_refused_together():
    with pytest.raises(ConfigError) as caught:
        DoctorConfig(input=("http://x/y",), model="s3://", output="").check()
    assert len(caught.value.faults) == 3


# ---- what is printed


def show(cluster, monkeypatch, **options):
    printed = Console(highlight=False, soft_wrap=True, no_color=True, **options)
    monkeypatch.setattr(print_cluster, "console", printed)
    monkeypatch.setattr(tables, "console", printed)
    with printed.capture() as capture:
        print_cluster.print_doctor(DoctorSummary(cluster, tuple(find_all(cluster))))
    return capture.get()


def test_a_healthy_cluster_prints_its_machines(monkeypatch):
    text = show(C, monkeypatch, width=80)
    assert "5 machines, 128 cores, 16 GPUs" in text
    assert "worker4" in text
    assert "as here" in text
    assert "No trouble found." in text


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_s_lines_fit(width, monkeypatch):
    cluster = change(C, 1, report={"gpus": 0, "versions": {**VERSIONS, "keras": None}, **meet(0, GONE)})
    cluster = change(change(cluster, 2, clock_offset_s=-412.0), 3, silence="no answer in 60 s")
    text = show(cluster, monkeypatch, width=width, force_terminal=True, color_system=None)
    assert max(map(len, text.splitlines())) <= width
    assert "missing" in text
    assert "-412 s" in text


def test_a_finding_in_a_file_is_one_line(monkeypatch):
    text = show(change_all(C, WORKERS, report=meet(0, DENIED)), monkeypatch, width=80)
    (line,) = [line for line in text.splitlines() if line.startswith("error")]
    assert line.endswith("another bucket")
    assert "input denied" in text


def test_memory_is_the_machines_where_no_container_limits_it(monkeypatch, tmp_path):
    monkeypatch.setattr(inspect_node, "_MEMORY_LIMITS", (str(tmp_path / "none"),))
    assert inspect_node._measure_memory() == psutil.virtual_memory().total
    (tmp_path / "limit").write_text("123456\n")
    monkeypatch.setattr(inspect_node, "_MEMORY_LIMITS", (str(tmp_path / "limit"),))
    assert inspect_node._measure_memory() == 123456
