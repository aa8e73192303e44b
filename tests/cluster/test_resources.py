"""Whatever is asked for fits beside each other, or is refused."""

import pytest

from tlray.cluster.resources import DATA_TASK_CPUS, Cluster, share_engines, share_workers
from tlray.errors import StoppedError


@pytest.mark.parametrize("workers", [1, 2, 4, 16])
@pytest.mark.parametrize("cpus", [1, 2, 16])
def test_workers_and_their_readers_fit_on_this_machine(workers, cpus):
    shares = share_workers(Cluster(cpus, 0, local=True), workers, None)
    assert shares.gpus == 0
    assert shares.worker_cpus > 0
    assert shares.reader_cpus > 0
    assert workers * (shares.worker_cpus + shares.num_readers * shares.reader_cpus) <= cpus


def test_gpus_are_taken_where_there_are_enough():
    assert share_workers(Cluster(128, 8, local=False), 8, None).gpus == 1
    assert share_workers(Cluster(128, 4, local=False), 8, None).gpus == 0
    assert share_workers(Cluster(128, 8, local=False), 8, None).num_readers > 4
    with pytest.raises(StoppedError, match="needs 8 GPUs; the cluster has 4"):
        share_workers(Cluster(128, 4, local=False), 8, 1)


def test_a_cluster_that_is_too_small_is_refused():
    with pytest.raises(StoppedError, match="CPUs"):
        share_workers(Cluster(4, 0, local=False), 8, 0)


@pytest.mark.parametrize("cpus", [1, 2, 3, 16])
@pytest.mark.parametrize("rows", [1, 39, 100_000])
def test_engines_leave_room_for_reading(cpus, rows):
    shares = share_engines(Cluster(cpus, 0, local=True), rows, 32)
    assert 1 <= shares.actors <= cpus
    assert shares.actors * shares.num_cpus + DATA_TASK_CPUS <= cpus
    assert shares.actors * shares.num_threads <= cpus


def test_engines_are_told_in_words():
    assert (
        str(share_engines(Cluster(2, 0, local=True), 1000, 32)) == "2 engines of 1 thread, which decode for themselves"
    )
    assert str(share_engines(Cluster(4, 0, local=True), 10, 32)) == "1 engine of 4 threads, which decode for themselves"
    assert str(share_engines(Cluster(16, 2, local=False), 10**4, 128)).startswith("2 engines, a GPU each; the cores")
