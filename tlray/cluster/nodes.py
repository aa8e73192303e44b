"""List the machines of a cluster, and call a function on each of them."""

from __future__ import annotations

import ipaddress
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tlray.cluster.ray_private import HEAD_RESOURCE

T = TypeVar("T")

_MAX_NAMED = 3


@dataclass(frozen=True)
class Node:
    """A machine that Ray counts as alive.

    Attributes:
        node_id: Ray's id in hexadecimal.
        address: IP address.
        is_head: whether it is the cluster's head.
        cpus, gpus: resources that Ray can book; a node with 0 of both takes no work.
        object_store_bytes: size of Ray's object store.
    """

    node_id: str
    address: str
    is_head: bool
    cpus: float
    gpus: float
    object_store_bytes: int

    @property
    def takes_work(self) -> bool:
        """Return whether tasks that book cores or GPUs can run there."""
        return self.cpus > 0 or self.gpus > 0


def list_nodes() -> list[Node]:
    """Return the live machines of the connected cluster, the head first."""
    nodes = []
    for described in ray.nodes():
        if described["Alive"]:
            resources: dict[str, float] = described["Resources"]
            node = Node(
                node_id=described["NodeID"],
                address=described["NodeManagerAddress"],
                is_head=HEAD_RESOURCE in resources,
                cpus=resources.get("CPU", 0.0),
                gpus=resources.get("GPU", 0.0),
                object_store_bytes=int(resources.get("object_store_memory", 0)),
            )
            nodes.append(node)
    return sorted(nodes, key=lambda node: (not node.is_head, node.address, node.node_id))


def name_some(names: Sequence[str]) -> str:
    """Return the first names, and the number of the others."""
    left = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {left:,} more" if left > 0 else "")


def is_loopback(address: str) -> bool:
    """Return whether HOST:PORT is on the loopback interface, which other machines cannot reach."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def stay_here() -> NodeAffinitySchedulingStrategy:
    """Return the strategy that places an actor on the driver's machine, so that it lives as long as the driver."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def read_there(node_id: str) -> NodeAffinitySchedulingStrategy:
    """Return the strategy that places tasks on one machine, or elsewhere once it is gone."""
    return NodeAffinitySchedulingStrategy(node_id, soft=True)


def restart_elsewhere() -> NoReturn:
    """End this process on a drained machine: Ray runs its task again, or starts its actor again, on another one."""
    if ray.get_runtime_context().get_actor_id() is not None:
        ray.kill(ray.get_runtime_context().current_actor, no_restart=False)
        threading.Event().wait()
    os._exit(0)


def ask_nodes(
    nodes: Sequence[Node], question: Callable[..., T], *arguments: Any, timeout_s: float = 60.0
) -> list[T | Exception]:
    """Call a function once on each machine, on all at the same time, without booking resources.

    Returns:
        one entry per machine, in order: the function's result, or the error that it raised, a `RayError` of a lost
        machine, or a `TimeoutError`.
    """
    remote: Any = ray.remote(num_cpus=0, max_retries=0)(question)
    calls = []
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        calls.append(remote.options(scheduling_strategy=there).remote(*arguments))
    ready, _ = ray.wait(calls, num_returns=len(calls), timeout=timeout_s) if calls else ([], [])
    answers: list[T | Exception] = []
    for call in calls:
        try:
            answers.append(ray.get(call) if call in ready else TimeoutError(f"no answer in {timeout_s:g} s"))
        except ray.exceptions.RayError as error:
            answers.append(error)
    return answers
