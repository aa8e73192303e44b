import contextlib
import importlib
from types import SimpleNamespace

import pytest

from tests.doctor.data import ANSWER, PLACES
from tlray.cluster.nodes import Node
from tlray.cluster.resources import Cluster
from tlray.config import DoctorConfig
from tlray.doctor import DoctorSummary, Finding, Level
from tlray.doctor.inspect_node import report_node, tell_time
from tlray.errors import ConfigError

module = importlib.import_module("tlray.doctor.examine")  # the package's attribute of this name is the function

HEAD = Node("id0", "10.0.0.10", is_head=True, cpus=0, gpus=0, object_store_bytes=2**31)
ONE = Node("id1", "10.0.0.11", is_head=False, cpus=4, gpus=4, object_store_bytes=2**31)
TWO = Node("id2", "10.0.0.11", is_head=False, cpus=4, gpus=4, object_store_bytes=2**31)


@pytest.fixture
def network(monkeypatch):
    """Three nodes without Ray; `reports` and `times` by node id, while the driver's clock goes from 100 s to 110 s."""
    state = {
        "reports": dict.fromkeys(["id0", "id1", "id2"], ANSWER),
        "times": dict.fromkeys(["id0", "id1", "id2"], 105.0),
    }
    state["asked"] = []

    def ask(nodes, question, *arguments, timeout_s):
        state["asked"].append((question, arguments, [node.node_id for node in nodes]))
        answers = state["reports"] if question is report_node else state["times"]
        return [answers[node.node_id] for node in nodes]

    clock = iter([100.0, 110.0])
    monkeypatch.setattr(module, "ask_nodes", ask)
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: next(clock)))
    return state


def ask():
    return module._ask([HEAD, ONE, TWO], PLACES, "id1")


def test_each_machine_has_its_report_name_and_the_driver_its_place(network):
    machines = ask()
    assert [machine.name for machine in machines] == ["10.0.0.10", "10.0.0.11#id1", "10.0.0.11#id2"]
    assert [machine.has_driver for machine in machines] == [False, True, False]
    assert [machine.report for machine in machines] == [ANSWER] * 3
    assert network["asked"] == [
        (report_node, (PLACES,), ["id0", "id1", "id2"]),
        (tell_time, (), ["id0", "id1", "id2"]),
    ]


def test_a_machine_without_an_answer_has_the_reason_without_secrets_and_is_not_asked_for_its_time(network):
    network["reports"]["id1"] = RuntimeError("Traceback\n  File x\nOSError: https://user:secret@store/x refused")
    network["reports"]["id2"] = TimeoutError("x" * 500)
    machines = ask()
    assert [machine.report for machine in machines] == [ANSWER, None, None]
    assert machines[0].silence == ""
    assert machines[1].silence == "OSError: https://***@store/x refused"
    assert machines[2].silence == "x" * 200
    assert network["asked"][1] == (tell_time, (), ["id0"])


def test_clocks_are_compared_with_the_drivers(network):
    network["times"] = {"id0": 109.0, "id1": 130.0, "id2": RuntimeError("gone")}
    assert [machine.clock_offset_s for machine in ask()] == [0.0, 20.0, 0.0]


@pytest.mark.parametrize(("told", "offset"), [(103.0, 0), (100.0, 0), (110.0, 0), (90.0, -10), (125.0, 15)])
def test_a_clock_is_off_by_the_offset_that_the_wait_cannot_explain(told, offset):
    assert module._bound_offset(told, 100.0, 110.0) == offset


def test_the_driver_lists_and_names_the_files_that_machines_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"a picture")
    (tmp_path / "pack.tar").write_bytes(b"a tar")
    config = DoctorConfig(input=("in", "pack.tar#a.jpg", "gone"), model="bundle", output="new/labels")
    locations = [
        (location.option, location.uri, location.target, location.found, location.writes)
        for location in module._list_locations(config)
    ]
    assert locations == [
        ("--input", "in", f"{tmp_path}/in/a.jpg", True, False),
        ("--input", "pack.tar#a.jpg", f"{tmp_path}/pack.tar", True, False),
        ("--input", "gone", f"{tmp_path}/gone", False, False),
        ("--model", "bundle", f"{tmp_path}/bundle/bundle.json", False, False),
        ("--output", "new/labels", str(tmp_path), False, True),
    ]


def test_an_s3_output_is_tried_at_its_own_address():
    (location,) = module._list_locations(DoctorConfig(output="s3://labels/2024"))
    assert (location.target, location.writes) == ("s3://labels/2024", True)


def examine(monkeypatch, *, local, grows=True, config=None):
    """Examine a cluster of the fixture's nodes without Ray."""

    @contextlib.contextmanager
    def connect(address, max_cpus, *, verbose, check):
        assert not check  # machines with another tlray are to be reported, not refused
        yield Cluster(8, 0, local=local)

    context = SimpleNamespace(gcs_address="10.0.0.10:6379", get_node_id=lambda: "id0")
    monkeypatch.setattr(module, "connect", connect)
    monkeypatch.setattr(module.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(module, "list_nodes", lambda: [HEAD, ONE, TWO])
    monkeypatch.setattr(module, "is_growing", lambda: grows)
    monkeypatch.setattr(module, "say", lambda text: None)
    monkeypatch.setattr(module.storage, "configure", lambda options: None)
    return module.examine(config or DoctorConfig())


def test_a_joined_cluster_is_reported_with_the_drivers_own_troubles(network, monkeypatch, tmp_path):
    output = tmp_path / "labels"
    output.mkdir()
    summary = examine(
        monkeypatch, local=False, config=DoctorConfig(input=(str(tmp_path / "gone"),), output=str(output))
    )
    report = summary.cluster
    assert (report.address, report.is_own, report.grows) == ("10.0.0.10:6379", False, True)
    assert [machine.has_driver for machine in report.machines] == [True, False, False]
    assert [location.option for location in report.locations] == ["--input", "--output"]
    assert [trouble and trouble.code for trouble in report.troubles] == ["NOT_FOUND", None]
    assert list(output.iterdir()) == []
    assert summary.exit_code == 1


def test_a_local_cluster_does_not_grow(network, monkeypatch):
    report = examine(monkeypatch, local=True).cluster
    assert (report.is_own, report.grows) == (True, False)


def test_addresses_are_checked_before_a_cluster_is_joined(monkeypatch):
    monkeypatch.setattr(module, "connect", lambda *arguments, **options: pytest.fail("joined a cluster"))
    with pytest.raises(ConfigError, match="--model takes"):
        module.examine(DoctorConfig(model="http://x/y"))


@pytest.mark.parametrize(
    ("levels", "code"), [([], 0), ([Level.WARNING, Level.NOTE], 0), ([Level.WARNING, Level.ERROR], 1)]
)
def test_only_an_error_makes_the_exit_code_1(levels, code):
    assert DoctorSummary(None, tuple(Finding(level, "x") for level in levels)).exit_code == code
