"""Join a cluster as every command does, ask each machine for a report, and derive findings."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from tlray import storage
from tlray.cluster.capacity import is_growing
from tlray.cluster.connect import connect
from tlray.cluster.nodes import Node, ask_nodes, list_nodes
from tlray.config import DoctorConfig
from tlray.console import say
from tlray.doctor.findings import Finding, Level, find_all
from tlray.doctor.inspect_node import Location, find_targets, read_versions, report_node, tell_time, try_locations
from tlray.doctor.machines import ClusterReport, Machine, name_nodes
from tlray.errors import last_line
from tlray.model.bundle import MANIFEST
from tlray.sources import archives

_ANSWER_S = 60.0
_TIME_S = 15.0
_RETRY_FOR_S = 3.0  # it tells what is there now, and machines have 20 s to answer
_MAX_SAID = 200


@dataclass(frozen=True)
class DoctorSummary:
    """A cluster's machines and problems.

    Attributes:
        cluster: reports of its machines.
        findings: problems, the worst first.
    """

    cluster: ClusterReport
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """1 if a job would fail, else 0."""
        return int(any(finding.level is Level.ERROR for finding in self.findings))


def examine(config: DoctorConfig) -> DoctorSummary:
    """Ask every machine of a cluster for its resources, versions and access to the locations of a job.

    Raises:
        ConfigError: a value is not allowed.
        StoppedError: the cluster does not answer.
    """
    config.check()
    storage.configure(replace(config.s3_options, retry_for_s=min(config.retry_for, _RETRY_FOR_S)))
    with connect(config.address, config.max_cpus, verbose=config.verbose, check=False) as joined:
        locations = _list_locations(config)
        nodes = list_nodes()
        say(f"asking {len(nodes):,} machine{'s' * (len(nodes) != 1)}")
        context = ray.get_runtime_context()
        cluster = ClusterReport(
            address=context.gcs_address,
            is_own=joined.local,
            machines=_ask(nodes, locations, context.get_node_id()),
            locations=locations,
            versions=read_versions(),
            troubles=try_locations(locations),
            grows=not joined.local and is_growing(),
        )
    return DoctorSummary(cluster, tuple(find_all(cluster)))


def _ask(nodes: Sequence[Node], locations: Sequence[Location], driver_node: str) -> tuple[Machine, ...]:
    machines = []
    answers = ask_nodes(nodes, report_node, locations, timeout_s=_ANSWER_S)
    for name, node, answer in zip(name_nodes(nodes), nodes, answers, strict=True):
        machine = Machine(name, node, has_driver=node.node_id == driver_node)
        if isinstance(answer, Exception):
            machines.append(replace(machine, silence=storage.redact(last_line(answer))[:_MAX_SAID]))
        else:
            machines.append(replace(machine, report=answer))
    answering = [machine for machine in machines if machine.report is not None]
    asked = time.time()
    times = ask_nodes([machine.node for machine in answering], tell_time, timeout_s=_TIME_S)
    answered = time.time()
    offsets = {
        machine.name: _bound_offset(told, asked, answered)
        for machine, told in zip(answering, times, strict=True)
        if not isinstance(told, Exception)
    }
    return tuple(replace(machine, clock_offset_s=offsets.get(machine.name, 0.0)) for machine in machines)


def _bound_offset(told: float, asked: float, answered: float) -> float:
    """Return the least offset in seconds of a clock that was read some time between `asked` and `answered`."""
    return max(0.0, told - answered) + min(0.0, told - asked)


def _list_locations(config: DoctorConfig) -> tuple[Location, ...]:
    """List the locations that machines try; for a folder or prefix, a file that the driver found in it.

    A job does the same: the driver lists, the workers read by name and may lack the permission to list.
    """
    read = []
    for uri in config.input:
        parts = archives.split_member(uri)
        read.append(Location("--input", uri, storage.resolve(uri if parts is None else parts[0])))
    if config.model is not None:
        read.append(Location("--model", config.model, storage.join(storage.resolve(config.model), MANIFEST)))
    locations = list(find_targets(read))
    if config.output is not None:
        target = storage.resolve(config.output)
        if not storage.is_s3(target):
            while not os.path.exists(target):  # noqa: PTH110  (Path.exists raises where a folder may not be searched)
                target = str(Path(target).parent)
        locations.append(Location("--output", config.output, target, writes=True))
    return tuple(locations)
