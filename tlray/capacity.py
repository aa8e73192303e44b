"""What a connected cluster has, and waiting until it has what a job cannot do without."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import ray

from tlray.errors import StoppedError
from tlray.nodes import list_nodes
from tlray.progress import say
from tlray.shares import DATA_TASK_CPUS, ENGINE_SHARE, WORKER_CPUS, Cluster, EngineBounds, count_gpu_shares

DEFAULT_WAIT_S = 60.0
DEFAULT_WAIT_GROWING_S = 900.0

_LOOK_INTERVAL_S = 1.0
_SAY_INTERVAL_S = 30.0


@dataclass(frozen=True)
class Demand:
    """Processes that a job needs at the same time.

    Attributes:
        option: what asked for them, such as "--num-workers 4".
        count: how many.
        cpus, gpus: of each, on one machine.
        all_cpus: of the whole cluster, what serves them included.
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
class Room:
    """What is on one machine.

    Attributes:
        cpus, gpus: altogether.
        free_cpus, free_gpus: that nobody has booked.
    """

    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float

    def fits(self, demand: Demand) -> int:
        """How many of the processes could start there now."""
        by_cpu = self.free_cpus // demand.cpus if demand.cpus else demand.count
        by_gpu = count_gpu_shares(self.free_gpus, demand.gpus) if demand.gpus else demand.count
        return int(min(by_cpu, by_gpu))


def measure(*, local: bool) -> Cluster:
    """What the cluster has that this process is connected to."""
    nodes = list_nodes()
    return Cluster(
        cpus=sum(node.cpus for node in nodes),
        gpus=sum(node.gpus for node in nodes),
        local=local,
        node_cpus=min((node.cpus for node in nodes if node.cpus), default=0.0),
    )


def demand_workers(cluster: Cluster, num_workers: int, gpus_per_worker: int | None) -> Demand:
    """What training cannot do without, a reader a worker included; arguments as `shares.share_workers`."""
    gpus = (cluster.gpus >= num_workers) if gpus_per_worker is None else gpus_per_worker
    all_cpus = num_workers * (WORKER_CPUS + DATA_TASK_CPUS)
    return Demand(f"--num-workers {num_workers}", num_workers, WORKER_CPUS, float(gpus), all_cpus)


def demand_engines(cluster: Cluster, bounds: EngineBounds) -> Demand:
    """What labelling cannot do without, a reader included."""
    gpus = bounds.choose_gpus(cluster)
    cpus = 1.0 if gpus else ENGINE_SHARE
    option = f"--min-engines {bounds.least}"
    return Demand(option, bounds.least, cpus, gpus, bounds.least * cpus + DATA_TASK_CPUS)


def wait_for(demand: Demand, cluster: Cluster, wait_s: float | None) -> Cluster:
    """Wait until a job's processes find room, and measure the cluster then; a cluster that grows is asked to.

    Args:
        demand: what must find room.
        cluster: a local one doesn't change, and is returned as it is, where it has the GPUs.
        wait_s: most seconds; None for a minute, or 15 where the cluster grows by itself.

    Raises:
        StoppedError: there is still no room.
    """
    if cluster.local:
        if demand.gpus and count_gpu_shares(cluster.gpus, demand.gpus) < demand.count:
            raise StoppedError(f"{demand.option} needs {demand}; this machine has {cluster.gpus:g} GPUs")
        return cluster
    if _has_room(list_rooms(), demand):
        return measure(local=False)
    growing = is_growing()
    if wait_s is None:
        wait_s = DEFAULT_WAIT_GROWING_S if growing else DEFAULT_WAIT_S
    began = time.monotonic()
    said = -_SAY_INTERVAL_S
    with _asking(demand) if growing else contextlib.nullcontext():
        while not _has_room(rooms := list_rooms(), demand):
            has = describe_rooms(rooms, gpus=demand.gpus > 0)
            waited = time.monotonic() - began
            if waited >= wait_s:
                raise StoppedError(
                    f"{demand.option} needs {demand}; {has}, after waiting for {wait_s:g} s; ask for "
                    "less, add machines, or wait longer with --wait-for-resources"
                )
            if waited - said >= _SAY_INTERVAL_S:
                grows = ", which grows by itself" if growing else ""
                left = f"{wait_s - waited:.0f} s left"
                say(f"waiting for {demand} ({demand.option}): {has}{grows}; {left}")
                said = waited
            time.sleep(_LOOK_INTERVAL_S)
    return measure(local=False)


def list_rooms() -> list[Room]:
    """A `Room` for each machine that is alive."""
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    rooms = []
    for node in list_nodes():
        here = free.get(node.node_id, {})
        rooms.append(Room(node.cpus, node.gpus, here.get("CPU", 0.0), here.get("GPU", 0.0)))
    return rooms


def _has_room(rooms: Sequence[Room], demand: Demand) -> bool:
    enough = sum(room.free_cpus for room in rooms) >= demand.all_cpus
    return enough and sum(room.fits(demand) for room in rooms) >= demand.count


def describe_rooms(rooms: Sequence[Room], *, gpus: bool) -> str:
    """Totals in words; of GPUs only where they matter."""
    totals = [("CPU", sum(room.cpus for room in rooms), sum(room.free_cpus for room in rooms))]
    if gpus:
        totals.insert(0, ("GPU", sum(room.gpus for room in rooms), sum(room.free_gpus for room in rooms)))
    return "the cluster has " + " and ".join(f"{_count(has, name)} ({free:g} free)" for name, has, free in totals)


def _count(amount: float, name: str) -> str:
    return f"{amount:g} {name}{'s' * (amount != 1)}"


def is_growing() -> bool:
    """Whether an autoscaler adds machines: without one, Ray makes up a type of machine for each, named node_ID."""
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.experimental.internal_kv import _internal_kv_get

    types: list[str] = []
    if status := _internal_kv_get(DEBUG_AUTOSCALING_STATUS):  # the older autoscaler's own notes
        report = json.loads(status).get("autoscaler_report") or {}
        types += (report.get("node_type_mapping") or {}).values()
    with contextlib.suppress(Exception):  # a cluster without the newer one may refuse in several ways
        now = get_cluster_status(ray.get_runtime_context().gcs_address)
        types += [node.ray_node_type_name for node in (*now.active_nodes, *now.idle_nodes)]
    return any(name and not name.startswith("node_") for name in types)


@contextlib.contextmanager
def _asking(demand: Demand) -> Iterator[None]:
    """Tell the autoscaler meanwhile."""
    from ray.autoscaler.sdk import request_resources

    bundle = {"CPU": demand.cpus, "GPU": demand.gpus}
    bundles = [{name: amount for name, amount in bundle.items() if amount}] * demand.count
    more = demand.all_cpus - demand.count * demand.cpus
    bundles += [{"CPU": 1.0}] * max(0, int(-(-more // 1)))
    request_resources(bundles=bundles)
    try:
        yield
    finally:
        request_resources(bundles=[])
