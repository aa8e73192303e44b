"""The reports of all machines of a cluster, as plain values that findings are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tlray.cluster.nodes import Node, is_loopback
from tlray.doctor.inspect_node import Location, NodeReport, Trouble

CLOCK_S = 5.0
"""Seconds by which a clock may differ from the driver's."""


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster.

    Attributes:
        name: its address, made unique.
        node: its entry in Ray's list.
        report: its own report; None if there is none.
        silence: reason why there is none.
        clock_offset_s: least seconds by which its clock is ahead of the driver's; negative if behind.
        has_driver: whether the driver runs there.
    """

    name: str
    node: Node
    report: NodeReport | None = None
    silence: str = ""
    clock_offset_s: float = 0.0
    has_driver: bool = False

    @property
    def clock_is_off(self) -> bool:
        """Return whether its clock differs from the driver's by more than `CLOCK_S`."""
        return abs(self.clock_offset_s) > CLOCK_S

    @property
    def matters(self) -> bool:
        """Return whether a job uses it, as a worker or for the driver (on the head for a submitted job)."""
        return self.node.takes_work or self.node.is_head or self.has_driver


@dataclass(frozen=True)
class ClusterReport:
    """The reports of a cluster's machines, and of the driver.

    Attributes:
        address: host and port of the head.
        is_own: whether it is a local one, started to be examined.
        machines: the head first.
        locations: locations that the machines tried.
        versions: the driver's, by package.
        troubles: the driver's own, one per location; None where it is accessible.
        grows: whether an autoscaler adds machines.
    """

    address: str
    is_own: bool
    machines: tuple[Machine, ...]
    locations: tuple[Location, ...]
    versions: dict[str, str | None]
    troubles: tuple[Trouble | None, ...]
    grows: bool = False

    @property
    def is_reachable(self) -> bool:
        """Return whether other machines can reach its head."""
        return not is_loopback(self.address)


def name_nodes(nodes: Sequence[Node]) -> list[str]:
    """Return the addresses, with the start of Ray's id behind those that several nodes share."""
    count = Counter(node.address for node in nodes)
    return [node.address if count[node.address] == 1 else f"{node.address}#{node.node_id[:4]}" for node in nodes]
