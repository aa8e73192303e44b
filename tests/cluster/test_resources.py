"""Plans fit on the cluster with all that must run at the same time, or are refused."""

import pytest

from tlray.cluster.resources import (
    DATA_TASK_CPUS,
    Cluster,
    EngineBounds,
    choose_engine_cpus,
    choose_feeding_cpus,
    choose_worker_threads,
    count_cores,
    count_gpu_slots,
    plan_engines,
    plan_readers,
    plan_workers,
)
from tlray.errors import StoppedError


@pytest.mark.parametrize("workers", [1, 2, 4, 16])
@pytest.mark.parametrize("cpus", [1, 2, 16])
def test_workers_and_their_readers_fit_on_this_machine(workers, cpus):
    resources = plan_workers(Cluster(cpus, 0, local=True), workers, None)
    assert resources.gpus == 0
    assert resources.worker_cpus > 0
    assert resources.reader_cpus > 0
    assert workers * (resources.worker_cpus + resources.num_readers * resources.reader_cpus) <= cpus


def test_gpus_are_used_if_there_are_enough():
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


def test_engines_are_phrased_in_words():
    assert (
        str(plan_engines(Cluster(2, 0, local=True), 1000, 32)) == "2 engines of 1 thread, which decode for themselves"
    )
    assert str(plan_engines(Cluster(4, 0, local=True), 10, 32)) == "1 engine of 4 threads, which decode for themselves"
    assert str(plan_engines(Cluster(16, 2, local=False), 10**4, 128)).startswith("2 engines, a GPU each; the cores")


def test_workers_beside_engines_leave_them_their_cores():
    alone = plan_engines(Cluster(4, 0, local=True), 1000, 32)
    beside = plan_engines(Cluster(4, 0, local=True), 1000, 32, beside_workers=True)
    assert (alone.actors, beside.actors) == (4, 4)
    assert beside.num_cpus == 0.25
    workers = plan_workers(Cluster(4, 0, local=True), 2, 0)
    assert 4 * beside.num_cpus + 2 * (workers.worker_cpus + workers.reader_cpus) <= 4
    joined = Cluster(4, 0, local=False)
    assert plan_engines(joined, 1000, 32, beside_workers=True) == plan_engines(joined, 1000, 32)


@pytest.mark.parametrize(
    ("cluster", "workers", "threads"),
    [
        (Cluster(2, 0, local=True), 1, 2),
        (Cluster(2, 0, local=True), 4, 1),
        (Cluster(64, 0, local=False), 8, 7),  # eight on one machine: each has its share once
        (Cluster(128, 8, local=False, node_cpus=(16.0,) * 8), 8, 16),
        (Cluster(8, 1, local=True), 1, 8),
    ],
)
def test_a_worker_has_the_threads_of_its_share_of_the_cores(cluster, workers, threads):
    assert choose_worker_threads(cluster, workers, plan_workers(cluster, workers, None)) == threads


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 16])
def test_engines_on_gpus_their_readers_and_waiting_workers_fit_on_this_machine(cpus, gpus, workers):
    """As on a machine of 2 cores and a GPU that trains with 2 workers: they booked 2.25 cores, and waited forever."""
    cluster = Cluster(cpus, gpus, local=True)
    trained = plan_workers(cluster, workers, None)
    booked = 0.0 if trained.gpus else workers * trained.worker_cpus
    engines = plan_engines(cluster, 1000, 128, beside_workers=not trained.gpus)
    num_readers, reader_cpus = plan_readers(cluster, engines, booked)
    assert min(num_readers, reader_cpus, engines.num_cpus) > 0
    assert booked + engines.actors * engines.num_cpus + num_readers * reader_cpus <= cpus + 1e-6


def test_many_engines_on_gpus_get_a_reader_for_each_core_that_is_left():
    cluster = Cluster(64 * 16, 64, local=False, node_cpus=(16.0,) * 64)
    engines = plan_engines(cluster, 10**6, 128)
    assert (engines.actors, plan_readers(cluster, engines, 0.0)) == (64, (64 * 15, DATA_TASK_CPUS))


@pytest.mark.parametrize(("cpus", "expected"), [(1, 7), (2, 3), (3, 2), (4, 1), (5, 0), (0.1, 79)])
def test_no_process_lies_across_two_nodes(cpus, expected):
    assert Cluster(7.9, 0, local=False, node_cpus=(4.9, 3.0)).count_slots(cpus) == expected


def test_a_cluster_without_a_list_of_nodes_is_one_node():
    assert Cluster(6, 0, local=True).nodes == (6,)
    assert Cluster(6, 0, local=False, node_cpus=(4.0, 2.0)).nodes == (4.0, 2.0)


@pytest.mark.parametrize(
    ("cpus", "gpus", "share", "expected"),
    [(0, 4, 1.0, 1.0), (2, 4, 1.0, 0.37), (4, 4, 1.0, 0.75), (16, 4, 1.0, 1.0), (4, 0, 1.0, 1.0), (2, 1, 0.25, 0.37)],
)
def test_engines_on_gpus_book_at_most_three_quarters_of_the_cores(cpus, gpus, share, expected):
    assert choose_feeding_cpus(Cluster(cpus, gpus, local=False), share) == expected


# ---- several machines -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "share", "expected"),
    [(2, 1.0, 2), (2, 0.5, 4), (1, 0.3, 3), (3, 0.4, 6), (0, 1.0, 0), (1, 0.1, 10), (0.5, 0.5, 1), (1.4, 0.5, 2)],
)
def test_no_process_lies_across_two_gpus(gpus, share, expected):
    assert count_gpu_slots(gpus, share) == expected


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
    assert cores * (1 - share) >= DATA_TASK_CPUS - 1e-9  # one engine per core
    assert cores - int(cores / share + 1e-9) * share >= DATA_TASK_CPUS - 1e-9  # after a machine was lost


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


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({"cpu.max": "200000 100000"}, "0::/", 2),
        ({"cpu.max": "max 100000"}, "0::/", 16),
        ({"cpu.max": "50000 100000"}, "0::/", 1),
        ({"cpu.max": "max 100000", "a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b", 3),
        ({"a/cpu.max": "800000 100000", "a/b/cpu.max": "1600000 100000"}, "0::/a/b", 8),
        ({"cpu/a/cpu.cfs_quota_us": "400000", "cpu/a/cpu.cfs_period_us": "100000"}, "4:memory:/x\n3:cpu,cpuacct:/a", 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "3:cpu:/", 16),
        ({}, "0::/gone", 16),
        ({"cpu.max": "nonsense"}, "0::/", 16),
    ],
)
def test_cores_are_those_that_the_process_may_use(tmp_path, monkeypatch, files, own, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    (tmp_path / "own").write_text(own)
    assert count_cores(tmp_path / "own", tmp_path / "root") == expected
    assert count_cores(tmp_path / "none", tmp_path / "root") == 16
