"""Measuring a cluster, and waiting for what a job needs."""

import pytest

from tlray.cluster import capacity
from tlray.cluster.capacity import (
    Demand,
    NodeResources,
    demand_engines,
    demand_workers,
    describe_resources,
    has_room,
    list_node_resources,
    measure,
    wait_for,
)
from tlray.cluster.nodes import Node
from tlray.cluster.resources import Cluster, EngineBounds
from tlray.errors import StoppedError


def test_a_process_needs_its_cores_and_gpus_on_one_machine():
    demand = Demand("--num-workers 2", 2, cpus=4.0, gpus=1.0)
    assert NodeResources(16, 4, 16, 4).fits(demand) == 4
    assert NodeResources(16, 4, 7, 4).fits(demand) == 1
    assert NodeResources(16, 4, 16, 0).fits(demand) == 0


def test_demands_are_phrased_in_words():
    workers = demand_workers(Cluster(16, 4, local=False), 4, None)
    assert str(workers) == "4 GPUs and 5 CPUs"
    assert str(demand_workers(Cluster(16, 1, local=False), 4, None)) == "5 CPUs"
    assert str(demand_engines(Cluster(16, 1, local=False), EngineBounds())) == "1 GPU and 1.25 CPUs"
    assert str(demand_engines(Cluster(16, 1, local=False), EngineBounds(0.0, min_engines=4))) == "3.25 CPUs"


def test_all_processes_and_what_serves_them_must_fit():
    demand = Demand("--num-workers 2", 2, cpus=1.0, gpus=0.0, all_cpus=2.5)
    assert not has_room([NodeResources(2, 0, 2, 0)], demand)  # no core for the readers
    assert not has_room([NodeResources(4, 0, 0.75, 0), NodeResources(4, 0, 1.75, 0)], demand)
    assert has_room([NodeResources(4, 0, 1, 0), NodeResources(4, 0, 1.5, 0)], demand)
    assert not has_room([], demand)


def test_resources_are_phrased_in_words():
    resources = [NodeResources(4, 1, 2.5, 0), NodeResources(4, 0, 4, 0)]
    assert describe_resources(resources, gpus=False) == "the cluster has 8 CPUs (6.5 free)"
    assert describe_resources(resources, gpus=True) == "the cluster has 1 GPU (0 free) and 8 CPUs (6.5 free)"


@pytest.fixture
def _nodes(monkeypatch):
    """A head that takes no work, a partly booked worker, and one that has just joined, with no free resources yet."""
    names = ("head", "one", "new")
    cpus = {"head": 0.0, "one": 8.0, "new": 4.0}
    nodes = [Node(name, "10.0.0.1", name == "head", cpus[name], float(name == "one"), 0) for name in names]
    monkeypatch.setattr(capacity, "list_nodes", lambda: nodes)
    monkeypatch.setattr(capacity, "read_free_resources", lambda: {"head": {"memory": 1e9}, "one": {"CPU": 6.5}})


@pytest.mark.usefixtures("_nodes")
def test_a_resource_that_ray_does_not_report_as_free_is_booked():
    assert list_node_resources() == [
        NodeResources(0, 0, 0, 0),
        NodeResources(8, 1, 6.5, 0),
        NodeResources(4, 0, 0, 0),
    ]


@pytest.mark.usefixtures("_nodes")
def test_a_joined_cluster_is_measured_by_its_free_resources_and_a_local_one_by_all():
    assert measure(local=False) == Cluster(6.5, 0, local=False, node_cpus=(6.5,))
    assert measure(local=True) == Cluster(12, 1, local=True)


@pytest.mark.parametrize(
    ("types", "growing"), [([], False), (["node_1a2b", ""], False), (["node_1a2b", "head_group", "gpu_workers"], True)]
)
def test_node_types_with_a_name_are_an_autoscalers(monkeypatch, types, growing):
    monkeypatch.setattr(capacity, "list_node_types", lambda: types)
    assert capacity.is_growing() is growing


@pytest.mark.parametrize(
    ("demand", "bundles"),
    [
        (Demand("--num-workers 2", 2, 1.0, 1.0, 2.5), [{"CPU": 1.0, "GPU": 1.0}] * 2 + [{"CPU": 0.25}] * 2),
        (Demand("--min-engines 1", 1, 0.75, 0.0, 1.0), [{"CPU": 0.75}, {"CPU": 0.25}]),
        (Demand("--min-engines 1", 1, 1.0, 0.5), [{"CPU": 1.0, "GPU": 0.5}]),
    ],
)
def test_the_autoscaler_is_asked_for_bundles_that_fit_on_one_machine(monkeypatch, demand, bundles):
    log = []

    class Group:
        def wait(self, seconds):
            assert seconds == 0
            return len(log) > 1

    monkeypatch.setattr(capacity, "placement_group", lambda bundles: log.append(bundles) or Group())
    monkeypatch.setattr(capacity, "remove_placement_group", lambda group: log.append("removed"))
    with capacity._ScalingRequest(demand) as request:
        assert not request.is_met()
        assert log == [bundles]
    assert log == [bundles, "removed"]
    assert request.is_met()


@pytest.fixture
def watched(monkeypatch):
    """A simulated cluster and clock: its nodes, messages, and requests to the autoscaler."""
    state = {
        "nodes": [NodeResources(2, 0, 2, 0)],
        "said": [],
        "now": 0.0,
        "asked": [],
        "growing": False,
        "grows_at": None,
    }

    def sleep(seconds):
        state["now"] += seconds
        if state["grows_at"] is not None and state["now"] >= state["grows_at"]:
            state["nodes"] = [NodeResources(8, 4, 8, 4)]

    class Clock:
        monotonic = staticmethod(lambda: state["now"])

    Clock.sleep = staticmethod(sleep)

    class Request:
        def __enter__(self):
            state["asked"].append("for")
            return self

        def __exit__(self, *_):
            state["asked"].append("no more")

        def is_met(self):
            return state["grows_at"] is not None and state["now"] >= state["grows_at"]

    monkeypatch.setattr(capacity, "time", Clock)
    monkeypatch.setattr(capacity, "list_node_resources", lambda: state["nodes"])
    monkeypatch.setattr(capacity, "say", state["said"].append)
    monkeypatch.setattr(capacity, "is_growing", lambda: state["growing"])
    monkeypatch.setattr(capacity, "_ScalingRequest", lambda demand: Request())
    monkeypatch.setattr(capacity, "measure", lambda local: "measured")
    return state


GPUS = Demand("--num-workers 4", 4, 1.0, 1.0, 5.0)
JOINED = Cluster(2, 0, local=False)


def test_a_job_that_fits_does_not_wait(watched):
    assert wait_for(Demand("--num-workers 1", 1, 1.0, 0.0, 1.25), JOINED, None) == "measured"
    assert watched["now"] == 0
    assert watched["said"] == []


def test_a_job_waits_a_minute_for_a_fixed_cluster(watched):
    with pytest.raises(
        StoppedError, match=r"--num-workers 4 needs 4 GPUs and 5 CPUs; the cluster has 0 GPUs \(0 free\)"
    ):
        wait_for(GPUS, JOINED, None)
    assert watched["now"] == 60
    assert [line[-len("60 s left") :] for line in watched["said"]] == ["60 s left", "30 s left"]
    assert watched["asked"] == []


def test_a_job_asks_a_growing_cluster_and_waits_longer(watched):
    watched |= {"growing": True}
    with pytest.raises(StoppedError, match="after waiting for 900 s"):
        wait_for(GPUS, JOINED, None)
    assert watched["asked"] == ["for", "no more"]
    assert len(watched["said"]) == 30


def test_machines_that_join_meanwhile_are_measured(watched):
    watched |= {"growing": True, "grows_at": 70.0}
    assert wait_for(GPUS, JOINED, None) == "measured"
    assert watched["now"] == 70
    assert watched["asked"] == ["for", "no more"]


def test_resources_that_others_have_booked_do_not_count(watched):
    watched["nodes"] = [NodeResources(8, 4, 8, 3)]
    with pytest.raises(StoppedError, match=r"has 4 GPUs \(3 free\)"):
        wait_for(GPUS, JOINED, 1.0)


def test_processes_of_a_job_that_has_just_ended_get_a_moment_to_go(watched):
    watched["nodes"] = [NodeResources(8, 0, 6, 0)]
    assert wait_for(Demand("--num-workers 1", 1, 1.0, 0.0, 1.25), JOINED, None) == "measured"
    assert watched["now"] == 10


def test_a_local_cluster_without_enough_gpus_is_refused_at_once(watched):
    with pytest.raises(StoppedError, match="this machine has 0 GPUs"):
        wait_for(GPUS, Cluster(2, 0, local=True), None)
    local = Cluster(2, 0, local=True)
    assert wait_for(Demand("--min-engines 9", 9, 0.75, 0.0, 7.0), local, None) is local
