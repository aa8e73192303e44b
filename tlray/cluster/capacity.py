"""Measure a connected cluster, and wait until it has what a job needs at least."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ray.util.placement_group import placement_group, remove_placement_group

from tlray.cluster.nodes import list_nodes
from tlray.cluster.ray_private import list_node_types, read_free_resources
from tlray.cluster.resources import (
    DATA_TASK_CPUS,
    ENGINE_CPUS,
    WORKER_CPUS,
    Cluster,
    EngineBounds,
    choose_feeding_cpus,
    count_gpu_slots,
)
from tlray.console import say
from tlray.errors import StoppedError

DEFAULT_WAIT_S = 60.0
DEFAULT_WAIT_GROWING_S = 900.0

_LOOK_INTERVAL_S = 1.0
_SAY_INTERVAL_S = 30.0
_SETTLE_S = 10.0


@dataclass(frozen=True)
class Demand:
    """Processes that a job needs at the same time.

    Attributes:
        option: option that asks for them, such as "--num-workers 4".
        count: number of processes.
        cpus, gpus: of each process, on one machine.
        all_cpus: of the whole cluster, reading tasks included.
    """

    option: str
    count: int
    cpus: float
    gpus: float
    all_cpus: float = 0.0

    def __str__(self) -> str:
        cpus = _count(max(self.all_cpus, self.count * self.cpus), "CPU")
        return f"{_count(self.count * self.gpus, 'GPU')} and {cpus}" if self.gpus else cpus


@dataclass(frozen=True)
class NodeResources:
    """Resources of one machine.

    Attributes:
        cpus, gpus: in total.
        free_cpus, free_gpus: not booked by any job.
    """

    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float

    def fits(self, demand: Demand) -> int:
        """Return the number of the processes that could start here now."""
        by_cpu = self.free_cpus // demand.cpus if demand.cpus else demand.count
        by_gpu = count_gpu_slots(self.free_gpus, demand.gpus) if demand.gpus else demand.count
        return int(min(by_cpu, by_gpu))


def measure(*, local: bool) -> Cluster:
    """Return the resources of the connected cluster: of a local one all, of a joined one the free ones."""
    nodes = list_node_resources()
    if local:
        return Cluster(sum(node.cpus for node in nodes), sum(node.gpus for node in nodes), local=True)
    return Cluster(
        cpus=sum(node.free_cpus for node in nodes),
        gpus=sum(node.free_gpus for node in nodes),
        local=False,
        node_cpus=tuple(node.free_cpus for node in nodes if node.free_cpus > 0),
    )


def demand_workers(cluster: Cluster, num_workers: int, gpus_per_worker: int | None) -> Demand:
    """Return what training needs at least, one reader per worker included; arguments as `resources.plan_workers`."""
    gpus = (cluster.gpus >= num_workers) if gpus_per_worker is None else gpus_per_worker
    all_cpus = num_workers * (WORKER_CPUS + DATA_TASK_CPUS)
    return Demand(f"--num-workers {num_workers}", num_workers, WORKER_CPUS, float(gpus), all_cpus)


def demand_engines(cluster: Cluster, bounds: EngineBounds) -> Demand:
    """Return what prediction needs at least, one reader included."""
    gpus = bounds.choose_gpus(cluster)
    cpus = choose_feeding_cpus(cluster, gpus) if gpus else ENGINE_CPUS
    option = f"--min-engines {bounds.min_engines}"
    return Demand(option, bounds.min_engines, cpus, gpus, bounds.min_engines * cpus + DATA_TASK_CPUS)


def wait_for(demand: Demand, cluster: Cluster, wait_s: float | None) -> Cluster:
    """Wait until a job's processes fit, and measure the cluster then; an autoscaler is asked to add machines.

    Args:
        demand: processes that must fit.
        cluster: a local one does not change and is returned as it is, if it has the GPUs.
        wait_s: longest wait in seconds; None for 60, or 900 with an autoscaler.

    Raises:
        StoppedError: the processes still do not fit.
    """
    if cluster.local:
        if demand.gpus and count_gpu_slots(cluster.gpus, demand.gpus) < demand.count:
            raise StoppedError(f"{demand.option} needs {demand}; this machine has {cluster.gpus:g} GPUs")
        return cluster
    if not has_room(list_node_resources(), demand):
        growing = is_growing()
        wait_s = choose_wait(wait_s, growing=growing)
        with _ScalingRequest(demand) if growing else contextlib.nullcontext() as request:
            _wait(demand, wait_s, growing=growing, is_met=request.is_met if request is not None else None)
    _settle()
    return measure(local=False)


def choose_wait(wait_s: float | None, *, growing: bool) -> float:
    """Return the seconds that a job waits for resources."""
    if wait_s is not None:
        return wait_s
    return DEFAULT_WAIT_GROWING_S if growing else DEFAULT_WAIT_S


def _wait(demand: Demand, wait_s: float, *, growing: bool, is_met: Callable[[], bool] | None) -> None:
    began = time.monotonic()
    said = -_SAY_INTERVAL_S
    while not (is_met() if is_met is not None else has_room(list_node_resources(), demand)):
        has = describe_resources(list_node_resources(), gpus=demand.gpus > 0)
        waited = time.monotonic() - began
        if waited >= wait_s:
            raise StoppedError(
                f"{demand.option} needs {demand}; {has}, after waiting for {wait_s:g} s; ask for less, add machines, "
                "or wait longer with --wait-for-resources"
            )
        if waited - said >= _SAY_INTERVAL_S:
            grows = ", which grows by itself" if growing else ""
            say(f"waiting for {demand} ({demand.option}): {has}{grows}; {wait_s - waited:.0f} s left")
            said = waited
        time.sleep(_LOOK_INTERVAL_S)


def _settle() -> None:
    """Wait briefly for processes of a job that has just ended: what they still hold would count as taken."""
    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline:
        if all(node.free_cpus >= node.cpus and node.free_gpus >= node.gpus for node in list_node_resources()):
            return
        time.sleep(_LOOK_INTERVAL_S)


def list_node_resources() -> list[NodeResources]:
    """Return the resources of each machine that is alive."""
    free = read_free_resources()
    resources = []
    for node in list_nodes():
        here = free.get(node.node_id, {})
        resources.append(NodeResources(node.cpus, node.gpus, here.get("CPU", 0.0), here.get("GPU", 0.0)))
    return resources


def has_room(rooms: Sequence[NodeResources], demand: Demand) -> bool:
    """Return whether all of a job's processes could start now."""
    enough = sum(node.free_cpus for node in rooms) >= demand.all_cpus
    return enough and sum(node.fits(demand) for node in rooms) >= demand.count


def describe_resources(rooms: Sequence[NodeResources], *, gpus: bool) -> str:
    """Return the totals as a phrase; `gpus` includes GPUs."""
    totals = [("CPU", sum(node.cpus for node in rooms), sum(node.free_cpus for node in rooms))]
    if gpus:
        totals.insert(0, ("GPU", sum(node.gpus for node in rooms), sum(node.free_gpus for node in rooms)))
    return "the cluster has " + " and ".join(f"{_count(has, name)} ({free:g} free)" for name, has, free in totals)


def _count(amount: float, name: str) -> str:
    return f"{amount:g} {name}{'s' * (amount != 1)}"


def is_growing() -> bool:
    """Return whether an autoscaler adds machines."""
    return any(name and not name.startswith("node_") for name in list_node_types())


class _ScalingRequest:
    """A placement group as large as the demand: the autoscaler adds machines for it, whatever other jobs use."""

    def __init__(self, demand: Demand) -> None:
        bundle = {"CPU": demand.cpus, "GPU": demand.gpus}
        bundles = [{name: amount for name, amount in bundle.items() if amount}] * demand.count
        more = demand.all_cpus - demand.count * demand.cpus
        while more > 0:  # in pieces that fit on any machine
            bundles.append({"CPU": min(more, DATA_TASK_CPUS)})
            more -= DATA_TASK_CPUS
        self._bundles = bundles

    def __enter__(self) -> _ScalingRequest:
        self._group = placement_group(self._bundles)
        return self

    def __exit__(self, *_: object) -> None:
        remove_placement_group(self._group)

    def is_met(self) -> bool:
        """Return whether the cluster has reserved everything."""
        return bool(self._group.wait(0))
