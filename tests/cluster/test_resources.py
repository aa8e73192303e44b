"""Whatever is asked for fits beside each other, or is refused."""

import pytest

from tlray.cluster.resources import DATA_TASK_CPUS, Cluster, plan_engines, plan_workers
from tlray.errors import StoppedError


@pytest.mark.parametrize("workers", [1, 2, 4, 16])
@pytest.mark.parametrize("cpus", [1, 2, 16])
def test_workers_and_their_readers_fit_on_this_machine(workers, cpus):
    resources = plan_workers(Cluster(cpus, 0, local=True), workers, None)
    assert resources.gpus == 0
    assert resources.worker_cpus > 0
    assert resources.reader_cpus > 0
    assert workers * (resources.worker_cpus + resources.num_readers * resources.reader_cpus) <= cpus


def test_gpus_are_taken_where_there_are_enough():
    assert plan_workers(Cluster(128, 8, local=False), 8, None).gpus == 1
    assert plan_workers(Cluster(128, 4, local=False), 8, None).gpus == 0
    assert plan_workers(Cluster(128, 8, local=False), 8, None).num_readers > 4
    with pytest.raises(StoppedError, match="needs 8 GPUs; the cluster has 4"):
        plan_workers(Cluster(128, 4, local=False), 8, 1)


def test_a_cluster_that_is_too_small_is_refused():
    with pytest.raises(StoppedError, match="CPUs"):
        plan_workers(Cluster(4, 0, local=False), 8, 0)


@pytest.mark.parametrize("cpus", [1, 2, 3, 16])
@pytest.mark.parametrize("rows", [1, 39, 100_000])
def test_engines_leave_room_for_reading(cpus, rows):
    resources = plan_engines(Cluster(cpus, 0, local=True), rows, 32)
    assert 1 <= resources.actors <= cpus
    assert resources.actors * resources.num_cpus + DATA_TASK_CPUS <= cpus
    assert resources.actors * resources.num_threads <= cpus


def test_engines_are_told_in_words():
    assert (
        str(plan_engines(Cluster(2, 0, local=True), 1000, 32)) == "2 engines of 1 thread, which decode for themselves"
    )
    assert str(plan_engines(Cluster(4, 0, local=True), 10, 32)) == "1 engine of 4 threads, which decode for themselves"
    assert str(plan_engines(Cluster(16, 2, local=False), 10**4, 128)).startswith("2 engines, a GPU each; the cores")
