"""Divide a cluster's cores and GPUs so that processes that depend on each other can all run at the same time.

Ray starts a process only where its resources are free; a reader without any would wait forever, silently.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tlray.errors import StoppedError

DATA_TASK_CPUS = 0.25
"""Share of a core per reading task: it mostly waits, or decodes for a few milliseconds."""

ENGINE_CPUS = 0.75
"""Least share of a core per single-threaded engine; the rest is for reading tasks."""

WORKER_CPUS = 1.0
"""Least number of cores per training worker on a joined cluster."""

_ROUNDING = 1e-9
_ENGINE_CPUS_BESIDE_WORKERS = 0.25
_ENGINE_IMAGES = 16
_ENGINE_IMAGES_GPU = 128
_MAX_READERS = 32
_READING_SHARE = 0.25


def count_cores(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the cores that this process may use: its affinity mask, and its control group's quota, at least 1.

    `os.cpu_count` tells the machine's, of which a container or a batch job may have a few.

    Args:
        own: names the process's control groups (cgroups(7)).
        root: where they are mounted.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            folder = root / ("cpu" if controllers else "") / path.lstrip("/")
            for group in (folder, *folder.parents):
                if group == root.parent:
                    break
                cores = min(cores, _read_quota(group) or cores)
    return max(1, cores)


def _read_quota(group: Path) -> int | None:
    """Return the whole cores of a control group's quota, of version 2 or 1; None without one."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    with contextlib.suppress(OSError, ValueError):
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return max(1, int(quota) // int(period)) if int(quota) > 0 else None
    return None


@dataclass(frozen=True)
class Cluster:
    """Resources of a connected cluster.

    Attributes:
        cpus, gpus: totals over its nodes; of a joined cluster, the free ones.
        local: whether this process started it on its own machine.
        node_cpus: cores of each node that has any; empty if all of `cpus` are on one node.
    """

    cpus: float
    gpus: float
    local: bool
    node_cpus: tuple[float, ...] = ()

    @property
    def nodes(self) -> tuple[float, ...]:
        """Cores of each node."""
        return self.node_cpus or (self.cpus,)

    def count_slots(self, cpus: float) -> int:
        """Return the number of processes of `cpus` cores that fit; each must fit on one node."""
        return sum(int(node / cpus + _ROUNDING) for node in self.nodes)


@dataclass(frozen=True)
class WorkerResources:
    """Resources of one training worker and its readers.

    Attributes:
        gpus: 0 or 1 per worker.
        worker_cpus: cores per worker.
        num_readers: reading processes per worker.
        reader_cpus: cores per reader.
    """

    gpus: int
    worker_cpus: float
    num_readers: int
    reader_cpus: float


def plan_workers(cluster: Cluster, num_workers: int, gpus_per_worker: int | None) -> WorkerResources:
    """Divide a cluster so that all workers and readers run at the same time.

    Args:
        cluster: on a local one, shares shrink until all fit.
        num_workers: number of data-parallel workers.
        gpus_per_worker: 0, 1, or None for 1 if the cluster has enough GPUs, else 0.

    Raises:
        StoppedError: a cluster has too few GPUs, or a joined one too few CPUs.
    """
    cpus, gpus = cluster.cpus, cluster.gpus
    if gpus_per_worker is None:
        gpus_per_worker = 1 if gpus >= num_workers else 0
    if gpus_per_worker * num_workers > gpus:
        raise StoppedError(
            f"--num-workers {num_workers} with --gpus-per-worker {gpus_per_worker} needs "
            f"{gpus_per_worker * num_workers} GPUs; the cluster has {gpus:g}"
        )
    # one reader keeps up with a worker on CPUs; a GPU needs all that its share of the cores can decode
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


def choose_worker_threads(cluster: Cluster, num_workers: int, resources: WorkerResources) -> int:
    """Return TensorFlow's threads of each worker: its share of the cores, on a joined cluster those that it booked.

    A worker on a GPU books one core, but its host work, such as copies and input, may use its share of all.
    """
    if cluster.local or resources.gpus:
        return max(1, int(cluster.cpus / num_workers))
    return max(1, int(resources.worker_cpus))


def _floor(share: float) -> float:
    """Round down to hundredths, so that rounding never asks for more than exists."""
    return int(share * 100) / 100


@dataclass(frozen=True)
class EngineBounds:
    """The user's bounds on engines.

    Attributes:
        num_gpus: GPUs per engine, a fraction for several on one GPU, 0 for none; None for 1 if the cluster has GPUs.
        min_engines: engines that must fit before prediction starts.
        max_engines: engines at most; those that do not fit yet start as the cluster grows. None for all that fit at
            the start.
        allow_cpu: compute on cores where Ray counts a GPU that TensorFlow does not see.
    """

    num_gpus: float | None = None
    min_engines: int = 1
    max_engines: int | None = None
    allow_cpu: bool = False

    def choose_gpus(self, cluster: Cluster) -> float:
        """Return the GPUs per engine on this cluster."""
        return (1.0 if cluster.gpus >= 1 else 0.0) if self.num_gpus is None else self.num_gpus


@dataclass(frozen=True)
class EngineResources:
    """Number of engines on a cluster, and the resources of each.

    Attributes:
        actors: engine processes at the start.
        max_actors: engine processes at most, as the cluster grows.
        num_cpus, num_gpus: booked for each.
        num_threads: TensorFlow threads of each; None on GPUs.
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
    """Return the default number of images in one step of an engine.

    One thread was fastest with 8 and 16 images (InceptionV3, 2 cores with AVX2; 32 were 5 to 10% slower), and 16 pay
    the cost of a step half as often.
    """
    return _ENGINE_IMAGES_GPU if gpus else _ENGINE_IMAGES


IMAGES_AN_ENGINE = 64
"""Images for which another engine on CPUs is worth its start, 10 s of a core: InceptionV3 takes 5 s for them."""


def plan_engines(
    cluster: Cluster,
    num_rows: int,
    batch_size: int,
    bounds: EngineBounds = EngineBounds(),
    *,
    beside_workers: bool = False,
) -> EngineResources:
    """Plan one engine per GPU, or without GPUs one single-threaded engine per core.

    A quarter of the cores stays free for reading tasks. A short job starts no more engines than it has batches, and on
    CPUs none for fewer than 64 images, each with more threads, up to the cores of one machine.

    Args:
        cluster: resources to divide.
        num_rows: images of the job.
        batch_size: images per step.
        bounds: the user's.
        beside_workers: leave room for the idle training workers of a local cluster.
    """
    batches = max(1, math.ceil(num_rows / batch_size))
    num_gpus = bounds.choose_gpus(cluster)
    cores = max(1, int(cluster.cpus))
    slots = count_gpu_slots(cluster.gpus, num_gpus) if num_gpus else cores
    if not num_gpus and bounds.max_engines is None:
        batches = min(batches, math.ceil(num_rows / IMAGES_AN_ENGINE) or 1)
    most = min(batches, slots if bounds.max_engines is None else bounds.max_engines)
    actors = max(1, min(slots, most))
    if num_gpus:
        beside = beside_workers and cluster.local
        free = replace(cluster, cpus=cluster.cpus * _ENGINE_CPUS_BESIDE_WORKERS) if beside else cluster
        return EngineResources(actors, max(actors, most), choose_feeding_cpus(free, num_gpus), num_gpus, None)
    share = _ENGINE_CPUS_BESIDE_WORKERS if beside_workers and cluster.local else choose_engine_cpus(cluster.nodes)
    threads = max(1, min(cores // actors, int(max(cluster.nodes))))
    while threads > 1 and cluster.count_slots(share * threads) < actors:
        threads -= 1
    return EngineResources(actors, max(actors, most), _floor(share * min(threads, cluster.cpus)), 0.0, threads)


def plan_readers(cluster: Cluster, engines: EngineResources, booked_cpus: float) -> tuple[int, float]:
    """Return the number of processes that read and decode for engines on GPUs, and the cores that each books.

    Args:
        booked_cpus: cores that others have booked beside the engines.
    """
    left = cluster.cpus - booked_cpus - engines.actors * engines.num_cpus
    num_readers = max(1, min(_MAX_READERS * engines.actors, int(left)))
    return num_readers, min(DATA_TASK_CPUS, _floor(max(0.0, left + _ROUNDING) / num_readers))


def choose_engine_cpus(nodes: Sequence[float]) -> float:
    """Return the share of a core per single-threaded engine that leaves room for a reader on every full node.

    There are as many engines as cores, but those of a lost node restart on the others, as many as fit: a share that
    divides a node's cores evenly would leave nothing for readers.

    Args:
        nodes: cores of each node.
    """
    for hundredths in range(int(ENGINE_CPUS * 100), 100):
        share = hundredths / 100
        if all(cores - int(cores / share + _ROUNDING) * share >= DATA_TASK_CPUS - _ROUNDING for cores in set(nodes)):
            return share
    return ENGINE_CPUS


def choose_feeding_cpus(cluster: Cluster, num_gpus: float) -> float:
    """Return the cores per engine on a GPU: 1, or less if all engines together would leave none for readers."""
    engines = max(1, count_gpu_slots(cluster.gpus, num_gpus))
    return min(1.0, _floor(ENGINE_CPUS * cluster.cpus / engines)) if cluster.cpus else 1.0


def count_gpu_slots(gpus: float, share: float) -> int:
    """Return the number of processes of `share` GPUs each that fit; a fraction must fit on one GPU.

    The fractional part of `gpus` counts as one partly used GPU.
    """
    if share >= 1:
        return int(gpus / share + _ROUNDING)
    return int(gpus) * int(1 / share + _ROUNDING) + int(gpus % 1 / share + _ROUNDING)
