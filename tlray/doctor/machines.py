"""What is known of a cluster after every machine was asked: plain values, which findings are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlray.cluster.nodes import Node, is_loopback

if TYPE_CHECKING:
    from tlray.doctor.inspect_node import Location, NodeReport, Trouble

CLOCK_S = 5.0
"""A clock that is off by less is taken for right."""


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster.

    Attributes:
        name: its address, made unique.
        node: what Ray says of it.
        report: what it told; None where it told nothing.
        silence: why it told nothing.
        clock_offset_s: how far its clock is ahead of the driver's, at the least.
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
        """Whether its clock and the driver's disagree."""
        return abs(self.clock_offset_s) > CLOCK_S

    @property
    def matters(self) -> bool:
        """Whether a job touches it: it takes work, or the driver runs there, as that of a submitted job on the head."""
        return self.node.takes_work or self.node.is_head or self.has_driver


@dataclass(frozen=True)
class ClusterReport:
    """A cluster, told by its machines.

    Attributes:
        address: host and port of the head.
        is_own: whether it is a local one that was started to be examined.
        machines: the head first.
        locations: what the machines tried to reach.
        versions: of the driver's packages.
        troubles: what the driver itself met, one for each location.
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
        """Whether its head listens on more than its machine's loopback address."""
        return not is_loopback(self.address)


def name_nodes(nodes: Sequence[Node]) -> list[str]:
    """Addresses, with a part of Ray's name behind those that several nodes share."""
    count = Counter(node.address for node in nodes)
    return [node.address if count[node.address] == 1 else f"{node.address}#{node.node_id[:4]}" for node in nodes]
