"""What finds room where, and how long it is waited for."""

import pytest

from tlray.cluster import capacity
from tlray.cluster.capacity import Demand, NodeResources, demand_engines, demand_workers, wait_for
from tlray.cluster.resources import (
    DATA_TASK_CPUS,
    Cluster,
    EngineBounds,
    choose_engine_cpus,
    count_gpu_slots,
    plan_engines,
    plan_workers,
)
from tlray.errors import StoppedError


@pytest.mark.parametrize(
    ("gpus", "share", "expected"),
    [(2, 1.0, 2), (2, 0.5, 4), (1, 0.3, 3), (3, 0.4, 6), (0, 1.0, 0), (1, 0.1, 10), (0.5, 0.5, 1), (1.4, 0.5, 2)],
)
def test_no_process_lies_across_two_gpus(gpus, share, expected):
    assert count_gpu_slots(gpus, share) == expected


def test_a_process_needs_its_cores_and_gpus_on_one_machine():
    demand = Demand("--num-workers 2", 2, cpus=4.0, gpus=1.0)
    assert NodeResources(16, 4, 16, 4).fits(demand) == 4
    assert NodeResources(16, 4, 7, 4).fits(demand) == 1
    assert NodeResources(16, 4, 16, 0).fits(demand) == 0


def test_demands_are_told_in_words():
    workers = demand_workers(Cluster(16, 4, local=False), 4, None)
    assert str(workers) == "4 GPUs and 5 CPUs"
    assert str(demand_workers(Cluster(16, 1, local=False), 4, None)) == "5 CPUs"
    assert str(demand_engines(Cluster(16, 1, local=False), EngineBounds())) == "1 GPU and 1.25 CPUs"
    assert str(demand_engines(Cluster(16, 1, local=False), EngineBounds(0.0, min_engines=4))) == "3.25 CPUs"


@pytest.fixture
def watched(monkeypatch):
    """A cluster that is looked at without Ray: what it says, how time goes, what the autoscaler is asked for."""
    state = {
        "rooms": [NodeResources(2, 0, 2, 0)],
        "said": [],
        "now": 0.0,
        "asked": [],
        "growing": False,
        "grows_at": None,
    }

    def sleep(seconds):
        state["now"] += seconds
        if state["grows_at"] is not None and state["now"] >= state["grows_at"]:
            state["rooms"] = [NodeResources(8, 4, 8, 4)]

    class Clock:
        monotonic = staticmethod(lambda: state["now"])

    Clock.sleep = staticmethod(sleep)

    class Asking:
        def __enter__(self):
            state["asked"].append("for")

            return self

        def __exit__(self, *_):
            state["asked"].append("no more")

        def is_there(self):
            return state["grows_at"] is not None and state["now"] >= state["grows_at"]

    monkeypatch.setattr(capacity, "time", Clock)
    monkeypatch.setattr(capacity, "list_node_resources", lambda: state["rooms"])
    monkeypatch.setattr(capacity, "say", state["said"].append)
    monkeypatch.setattr(capacity, "is_growing", lambda: state["growing"])
    monkeypatch.setattr(capacity, "_RoomRequest", lambda demand: Asking())
    monkeypatch.setattr(capacity, "measure", lambda local: "measured")
    return state


GPUS = Demand("--num-workers 4", 4, 1.0, 1.0, 5.0)
JOINED = Cluster(2, 0, local=False)


def test_what_finds_room_does_not_wait(watched):
    assert wait_for(Demand("--num-workers 1", 1, 1.0, 0.0, 1.25), JOINED, None) == "measured"
    assert watched["now"] == 0
    assert watched["said"] == []


def test_a_fixed_cluster_is_waited_for_a_minute(watched):
    with pytest.raises(
        StoppedError, match=r"--num-workers 4 needs 4 GPUs and 5 CPUs; the cluster has 0 GPUs \(0 free\)"
    ):
        wait_for(GPUS, JOINED, None)
    assert watched["now"] == 60
    assert [line[-len("60 s left") :] for line in watched["said"]] == ["60 s left", "30 s left"]
    assert watched["asked"] == []


def test_a_growing_cluster_is_asked_and_waited_for_longer(watched):
    watched |= {"growing": True}
    with pytest.raises(StoppedError, match="after waiting for 900 s"):
        wait_for(GPUS, JOINED, None)
    assert watched["asked"] == ["for", "no more"]
    assert len(watched["said"]) == 30


def test_machines_that_come_are_measured(watched):
    watched |= {"growing": True, "grows_at": 70.0}
    assert wait_for(GPUS, JOINED, None) == "measured"
    assert watched["now"] == 70
    assert watched["asked"] == ["for", "no more"]


def test_what_others_have_booked_is_no_room(watched):
    watched["rooms"] = [NodeResources(8, 4, 8, 3)]
    with pytest.raises(StoppedError, match=r"has 4 GPUs \(3 free\)"):
        wait_for(GPUS, JOINED, 1.0)


def test_what_a_job_leaves_behind_is_given_a_moment_to_go(watched):
    watched["rooms"] = [NodeResources(8, 0, 6, 0)]
    assert wait_for(Demand("--num-workers 1", 1, 1.0, 0.0, 1.25), JOINED, None) == "measured"
    assert watched["now"] == 10


def test_this_machine_gets_no_more_gpus(watched):
    with pytest.raises(StoppedError, match="this machine has 0 GPUs"):
        wait_for(GPUS, Cluster(2, 0, local=True), None)
    local = Cluster(2, 0, local=True)
    assert wait_for(Demand("--min-engines 9", 9, 0.75, 0.0, 7.0), local, None) is local


# ---- engines and workers on several machines ------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 40, 100, 10_000])
@pytest.mark.parametrize(("machines", "cores"), [(1, 4), (3, 1), (3, 2), (3, 4), (2, 5), (4, 16), (2, 12)])
def test_engines_fit_on_machines_not_only_on_their_sum(machines, cores, rows):
    shares = plan_engines(Cluster(machines * cores, 0, local=False, node_cpus=(cores,) * machines), rows, 32)
    assert shares.num_cpus <= cores
    assert shares.num_threads <= cores
    assert machines * int(cores / shares.num_cpus) >= shares.actors


@pytest.mark.parametrize("cores", [*range(1, 65), 96, 128, 192])
def test_a_machine_full_of_engines_still_has_room_to_read(cores):
    share = choose_engine_cpus([cores])
    assert cores * (1 - share) >= DATA_TASK_CPUS - 1e-9  # as many as cores
    assert cores - int(cores / share + 1e-9) * share >= DATA_TASK_CPUS - 1e-9  # with those of a lost machine


@pytest.mark.parametrize(("cpus", "gpus", "share"), [(4, 1, 0.25), (2, 1, 0.5), (8, 8, 1.0), (1, 1, 1.0), (16, 1, 1.0)])
def test_engines_on_gpus_leave_cores_to_read_with(cpus, gpus, share):
    shares = plan_engines(Cluster(cpus, gpus, local=False), 10**6, 128, EngineBounds(share))
    assert shares.actors == gpus / share
    assert 0 < shares.num_cpus <= 1
    assert shares.actors * shares.num_cpus + DATA_TASK_CPUS <= cpus


def test_bounds_hold():
    cluster = Cluster(64, 8, local=False, node_cpus=(16.0,) * 4)
    assert plan_engines(cluster, 10**6, 128).actors == 8
    assert plan_engines(cluster, 10**6, 128, EngineBounds(0.5)).actors == 16
    assert plan_engines(cluster, 10**6, 128, EngineBounds(max_engines=3)).actors == 3
    assert plan_engines(cluster, 10**6, 32, EngineBounds(0.0)).num_gpus == 0
    growing = plan_engines(cluster, 10**6, 128, EngineBounds(min_engines=2, max_engines=64))
    assert (growing.actors, growing.max_actors) == (8, 64)
    assert str(growing) == "8 engines (up to 64 as the cluster grows), a GPU each; the cores fetch and decode for them"
    assert "0.5 GPU each" in str(plan_engines(cluster, 10**6, 128, EngineBounds(0.5)))


@pytest.mark.parametrize(
    ("nodes", "workers", "expected"),
    [
        ((2, 2, 2), 2, 2), ((16, 16), 2, 15), ((8, 8), 3, 4), ((16, 16), 3, 8), ((16,) * 4, 6, 8), ((8,) * 3, 4, 4),
        ((4, 16), 2, 8), ((1, 1, 1), 2, 1), ((1.5, 1.5), 2, 1),
    ],
)  # fmt: skip
def test_workers_without_gpus_fit_on_machines_not_only_on_their_sum(nodes, workers, expected):
    shares = plan_workers(Cluster(sum(nodes), 0, local=False, node_cpus=nodes), workers, 0)
    assert shares.worker_cpus == expected
    assert sum(int(node / shares.worker_cpus) for node in nodes) >= workers
    assert workers * (shares.worker_cpus + shares.num_readers * shares.reader_cpus) <= sum(nodes)


def test_a_worker_with_a_gpu_takes_one_core():
    assert plan_workers(Cluster(32, 2, local=False, node_cpus=(16.0, 16.0)), 2, 1).worker_cpus == 1
