"""How a cluster's cores and GPUs are shared out, so that what waits for each other also fits beside each other.

Ray starts a process only where what it books is free; a reader that finds no share waits for ever without a word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tlray.errors import StoppedError

DATA_TASK_CPUS = 0.25
"""Share of a core that Ray books for one reading task: reading mostly waits, or decodes for a few milliseconds."""

ENGINE_CPUS = 0.75
"""Share of a core that Ray books at least for an engine of one thread; the rest is for reading tasks."""

WORKER_CPUS = 1.0
"""Cores that Ray books at least for a training worker on a cluster."""

_ROUNDING = 1e-9
_ENGINE_CPUS_BESIDE_WORKERS = 0.25
_ENGINE_IMAGES = 16
_ENGINE_IMAGES_GPU = 128
_MAX_READERS = 32
_READING_SHARE = 0.25


@dataclass(frozen=True)
class Cluster:
    """What a connected cluster has.

    Attributes:
        cpus, gpus: totals over its nodes; of a joined cluster, what nobody has booked.
        local: whether it is a local one of this process's own.
        node_cpus: of each node that has any; empty for all of `cpus`, on one node.
    """

    cpus: float
    gpus: float
    local: bool
    node_cpus: tuple[float, ...] = ()

    @property
    def nodes(self) -> tuple[float, ...]:
        """Cores by node."""
        return self.node_cpus or (self.cpus,)

    def count_slots(self, cpus: float) -> int:
        """How many processes of so many cores fit: none lies across two nodes."""
        return sum(int(node / cpus + _ROUNDING) for node in self.nodes)


@dataclass(frozen=True)
class WorkerResources:
    """What Ray books for one worker and its readers.

    Attributes:
        gpus: 0 or 1 a worker.
        worker_cpus: cores a worker.
        num_readers: processes that read images for a worker.
        reader_cpus: cores a reader.
    """

    gpus: int
    worker_cpus: float
    num_readers: int
    reader_cpus: float


def plan_workers(cluster: Cluster, num_workers: int, gpus_per_worker: int | None) -> WorkerResources:
    """Share a cluster out so that workers and readers fit beside each other; one that waited would wait for ever.

    Args:
        cluster: a local one shrinks shares until all fit.
        num_workers: data-parallel workers.
        gpus_per_worker: 0, 1, or None for 1 where the cluster has that many.

    Raises:
        StoppedError: a cluster that is not a local one is too small.
    """
    cpus, gpus = cluster.cpus, cluster.gpus
    if gpus_per_worker is None:
        gpus_per_worker = 1 if gpus >= num_workers else 0
    if gpus_per_worker * num_workers > gpus:
        raise StoppedError(
            f"--num-workers {num_workers} with --gpus-per-worker {gpus_per_worker} needs "
            f"{gpus_per_worker * num_workers} GPUs; the cluster has {gpus:g}"
        )
    # one reader outruns a worker on CPUs; a GPU takes what its share of the cores can decode
    num_readers = max(1, min(_MAX_READERS, int(cpus / num_workers) - 1)) if gpus_per_worker else 1
    if cluster.local:
        reader_cpus = min(DATA_TASK_CPUS, cpus * _READING_SHARE / (num_workers * num_readers))
        left = cpus * (1 - _ENGINE_CPUS_BESIDE_WORKERS) - reader_cpus * num_workers * num_readers
        return WorkerResources(gpus_per_worker, _floor(left / num_workers), num_readers, _floor(reader_cpus))
    needed = num_workers * (WORKER_CPUS + num_readers * DATA_TASK_CPUS)
    if needed > cpus:
        raise StoppedError(
            f"--num-workers {num_workers} needs {needed:g} CPUs, reading included; the cluster has {cpus:g}"
        )
    worker_cpus = WORKER_CPUS
    if not gpus_per_worker:
        most = int(cpus / num_workers - num_readers * DATA_TASK_CPUS)
        sizes = range(most, 1, -1)
        worker_cpus = next((float(size) for size in sizes if cluster.count_slots(size) >= num_workers), WORKER_CPUS)
    return WorkerResources(gpus_per_worker, worker_cpus, num_readers, DATA_TASK_CPUS)


def _floor(share: float) -> float:
    """To the hundredth below, so that rounding never asks for more than there is."""
    return int(share * 100) / 100


@dataclass(frozen=True)
class EngineBounds:
    """What the user says about engines.

    Attributes:
        num_gpus: GPUs of each, a fraction for several on one GPU, 0 for none; None for 1 where there are GPUs.
        min_engines: that must find room before labelling begins.
        max_engines: None for what the cluster has then; where more, they start as it grows.
    """

    num_gpus: float | None = None
    min_engines: int = 1
    max_engines: int | None = None

    def choose_gpus(self, cluster: Cluster) -> float:
        """GPUs of each engine on this cluster."""
        return (1.0 if cluster.gpus >= 1 else 0.0) if self.num_gpus is None else self.num_gpus


@dataclass(frozen=True)
class EngineResources:
    """How engines are spread over a cluster.

    Attributes:
        actors: engine processes.
        max_actors: to which their number may rise while the cluster grows.
        num_cpus, num_gpus: what Ray books for each.
        num_threads: TensorFlow's threads in each; None on GPUs.
    """

    actors: int
    max_actors: int
    num_cpus: float
    num_gpus: float
    num_threads: int | None

    def __str__(self) -> str:
        engines = f"{self.actors} engine{'s' * (self.actors > 1)}"
        if self.max_actors > self.actors:
            engines += f" (up to {self.max_actors} as the cluster grows)"
        if self.num_threads is None:
            share = "a GPU" if self.num_gpus == 1 else f"{self.num_gpus:g} GPU"
            return f"{engines}, {share} each; the cores fetch and decode for them"
        return f"{engines} of {self.num_threads} thread{'s' * (self.num_threads > 1)}, which decode for themselves"


def choose_batch_size(*, gpus: bool) -> int:
    """Images in one step of an engine, where nobody says.

    One thread was fastest with 8 and 16 (InceptionV3, 2 cores with AVX2), 32 were 5 to 10% slower, and 16 ask half as
    often for the rest of the process.
    """
    return _ENGINE_IMAGES_GPU if gpus else _ENGINE_IMAGES


def plan_engines(
    cluster: Cluster,
    num_rows: int,
    batch_size: int,
    bounds: EngineBounds = EngineBounds(),
    *,
    beside_workers: bool = False,
) -> EngineResources:
    """One engine a GPU; without GPUs one single-threaded engine a core, so that engines don't wait for each other.

    A quarter of the cores stays for the reading tasks, which mostly wait; a short job starts no more engines than it
    has batches, each with more threads, but no more than one machine has cores. `beside_workers` leaves room for a
    local cluster's training workers, which wait meanwhile.
    """
    batches = max(1, math.ceil(num_rows / batch_size))
    num_gpus = bounds.choose_gpus(cluster)
    cores = max(1, int(cluster.cpus))
    room = count_gpu_slots(cluster.gpus, num_gpus) if num_gpus else cores
    most = min(batches, room if bounds.max_engines is None else bounds.max_engines)
    actors = max(1, min(room, most))
    if num_gpus:
        return EngineResources(actors, max(actors, most), choose_feeding_cpus(cluster, num_gpus), num_gpus, None)
    share = _ENGINE_CPUS_BESIDE_WORKERS if beside_workers and cluster.local else choose_engine_cpus(cluster.nodes)
    threads = max(1, min(cores // actors, int(max(cluster.nodes))))
    while threads > 1 and cluster.count_slots(share * threads) < actors:
        threads -= 1
    return EngineResources(actors, max(actors, most), _floor(share * min(threads, cluster.cpus)), 0.0, threads)


def choose_engine_cpus(nodes: Sequence[float]) -> float:
    """Share of a core that Ray books for an engine of one thread, so that a reader finds room on every full node.

    Engines are as many as there are cores, but those of a lost node start again on the others, as many as fit: where
    the share divides a node's cores, they would leave nothing to read with.
    """
    for hundredths in range(int(ENGINE_CPUS * 100), 100):
        share = hundredths / 100
        if all(cores - int(cores / share + _ROUNDING) * share >= DATA_TASK_CPUS - _ROUNDING for cores in set(nodes)):
            return share
    return ENGINE_CPUS


def choose_feeding_cpus(cluster: Cluster, num_gpus: float) -> float:
    """Cores that Ray books for an engine on a GPU: one, or less where all engines together would take the readers'."""
    engines = max(1, count_gpu_slots(cluster.gpus, num_gpus))
    return min(1.0, _floor(ENGINE_CPUS * cluster.cpus / engines)) if cluster.cpus else 1.0


def count_gpu_slots(gpus: float, share: float) -> int:
    """How many processes of `share` of a GPU, or of whole GPUs, fit: none lies across two.

    What is left of a GPU that others use counts as one piece.
    """
    if share >= 1:
        return int(gpus / share + _ROUNDING)
    return int(gpus) * int(1 / share + _ROUNDING) + int(gpus % 1 / share + _ROUNDING)
