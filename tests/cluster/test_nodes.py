from types import SimpleNamespace

import pytest
import ray

from tlray.cluster import nodes as module
from tlray.cluster.nodes import Node, ask_nodes, is_loopback, list_nodes, name_some

A, B, C = ("a" * 56, "b" * 56, "c" * 56)  # as long as Ray's ids
NODES = [Node(node_id, "10.0.0.1", False, 1.0, 0.0, 0) for node_id in (A, B, C)]


def describe(node_id, address, *, alive=True, **resources):
    return {"NodeID": node_id, "NodeManagerAddress": address, "Alive": alive, "Resources": resources}


def test_live_nodes_are_listed_with_the_head_first(monkeypatch):
    described = [
        describe("c1", "10.0.0.3", CPU=4.0, GPU=2.0, object_store_memory=2e9),
        describe("b2", "10.0.0.2", CPU=8.0),
        describe("b1", "10.0.0.2", CPU=8.0),
        describe("d1", "10.0.0.1", alive=False, CPU=8.0),
        describe("a1", "10.0.0.9", **{"node:__internal_head__": 1.0}),
    ]
    monkeypatch.setattr(ray, "nodes", lambda: described)
    head, first, second, third = list_nodes()
    assert head == Node("a1", "10.0.0.9", True, 0.0, 0.0, 0)
    assert [first.node_id, second.node_id] == ["b1", "b2"]
    assert third == Node("c1", "10.0.0.3", False, 4.0, 2.0, 2_000_000_000)


@pytest.mark.parametrize(("cpus", "gpus", "expected"), [(0, 0, False), (1, 0, True), (0, 1, True)])
def test_a_node_without_cores_and_gpus_takes_no_work(cpus, gpus, expected):
    assert Node("a", "10.0.0.1", True, cpus, gpus, 0).takes_work is expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, ""), (1, "n0"), (3, "n0, n1, n2"), (4, "n0, n1, n2 and 1 more"), (2003, "n0, n1, n2 and 2,000 more")],
)
def test_three_machines_are_named_and_the_others_counted(count, expected):
    assert name_some([f"n{index}" for index in range(count)]) == expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:6379", True),
        ("127.3.2.1:6379", True),
        ("[::1]:6379", True),
        ("localhost:6379", True),
        ("10.0.0.1:6379", False),
        ("[fd00::1]:6379", False),
        ("0.0.0.0:6379", False),
        ("head.example:6379", False),
        ("localhost.example:6379", False),
        ("", False),
    ],
)
def test_only_loopback_addresses_are_out_of_reach_of_others(address, expected):
    assert is_loopback(address) is expected


@pytest.fixture
def calls(monkeypatch):
    """Stand-ins for Ray's calls, which run here; nodes in `late` time out, those in `lost` raise an error."""
    state = {"made": [], "options": None, "late": (), "lost": (), "timeout": None}

    def remote(**options):
        state["options"] = options

        def wrap(question):
            def place(scheduling_strategy):
                assert not scheduling_strategy.soft  # on no other node
                return SimpleNamespace(remote=lambda *arguments: call(scheduling_strategy.node_id, question, arguments))

            return SimpleNamespace(options=place)

        return wrap

    def call(node_id, question, arguments):
        state["made"].append(node_id)
        return (node_id, lambda: question(*arguments))

    def wait(calls, num_returns, timeout):
        assert num_returns == len(calls)
        state["timeout"] = timeout
        return [call for call in calls if call[0] not in state["late"]], []

    def get(call):
        if call[0] in state["lost"]:
            raise ray.exceptions.NodeDiedError("the node is gone")
        return call[1]()

    for name, function in {"remote": remote, "wait": wait, "get": get}.items():
        monkeypatch.setattr(module.ray, name, function)
    return state


def test_each_node_is_called_once_without_booking_anything(calls):
    assert ask_nodes(NODES, lambda one, two: one + two, 1, 2, timeout_s=5.0) == [3, 3, 3]
    assert calls["made"] == [A, B, C]
    assert calls["options"] == {"num_cpus": 0, "max_retries": 0}
    assert calls["timeout"] == 5.0


def test_results_and_errors_come_in_the_order_of_the_nodes(calls):
    calls |= {"late": (A,), "lost": (B,)}
    late, lost, answer = ask_nodes(NODES, lambda: "here", timeout_s=2.5)
    assert isinstance(late, TimeoutError)
    assert str(late) == "no answer in 2.5 s"
    assert isinstance(lost, ray.exceptions.RayError)
    assert answer == "here"


def test_no_nodes_are_no_calls(calls):
    assert ask_nodes([], lambda: "here") == []
    assert calls["made"] == []
