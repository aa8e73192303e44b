"""Problems that follow from the machines' reports: each with a level and one sentence that says what to do.

Pure functions over records; machines with the same problem share a sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from rich import filesize

from tlray import storage
from tlray.cluster.nodes import name_some
from tlray.doctor.inspect_node import Location, NodeReport, Trouble
from tlray.doctor.machines import ClusterReport, Machine
from tlray.errors import Code

_SIGNATURE_S = 300.0
_SPILL_BYTES = 10 * 10**9
_STORE_BYTES = 2**30
_MANY_NODES = 3
_DRIVER = "the driver"

T = TypeVar("T")


class Level(StrEnum):
    """Severity of a finding, the worst first."""

    ERROR = "error"
    """A job would fail."""

    WARNING = "warning"
    """A job would be slow, or unsafe."""

    NOTE = "note"
    """Worth knowing."""


@dataclass(frozen=True)
class Finding:
    """A problem as one sentence: what is wrong, on which machines, what to do."""

    level: Level
    sentence: str


def find_all(cluster: ClusterReport) -> list[Finding]:
    """Return all problems, the worst first."""
    found = [finding for look in _LOOKS for finding in look(cluster)]
    return sorted(found, key=lambda finding: list(Level).index(finding.level))


def find_no_workers(cluster: ClusterReport) -> Iterator[Finding]:
    """Report that no machine takes work."""
    if any(machine.node.takes_work for machine in cluster.machines):
        return
    if cluster.grows:
        yield Finding(Level.NOTE, "no machine takes work yet: jobs ask for some, and wait up to --wait-for-resources")
    else:
        yield Finding(
            Level.ERROR, "no machine takes work: start workers, or the head with more than --num-cpus=0, before a job"
        )


def find_unreported(cluster: ClusterReport) -> Iterator[Finding]:
    """Report machines without a report."""
    silent = [(machine.silence, machine) for machine in cluster.machines if machine.report is None and machine.matters]
    for why, names in _group(silent):
        if "No module named 'tlray" in why:
            install = f"install tlray {cluster.versions['tlray']}, the driver's, on every machine"
            yield Finding(Level.ERROR, f"tlray is missing, or another version, on {names}: {install}")
        else:
            what = "a job would hang or fail there; look at Ray's logs on it, or remove it from the cluster"
            yield Finding(Level.ERROR, f"no answer from {names} ({why}): {what}")


def find_gpus(cluster: ClusterReport) -> Iterator[Finding]:
    """Report GPUs that Ray counts but the machine lacks, and GPUs that Ray does not use."""
    missing, idle = [], []
    for machine, report in _list_reports(cluster):
        counted = machine.node.gpus
        told = f"Ray counts {counted:g}, the machine shows {report.gpus}"
        if counted > report.gpus:
            missing.append((told, machine))
        elif counted < report.gpus and machine.node.takes_work:
            idle.append((told, machine))
    for told, names in _group(missing):
        what = "check nvidia-smi there, and restart the node with the right --num-gpus"
        yield Finding(Level.ERROR, f"GPUs are missing on {names} ({told}): {what}")
    for told, names in _group(idle):
        what = "restart the node without a lower --num-gpus or CUDA_VISIBLE_DEVICES; a container needs --gpus all"
        yield Finding(Level.WARNING, f"GPUs stay idle on {names} ({told}): {what}")


def find_versions(cluster: ClusterReport) -> Iterator[Finding]:
    """Report packages that are missing, or differ from the driver's version."""
    for package, here in cluster.versions.items():
        others = [
            (there, machine)
            for machine, report in _list_reports(cluster)
            if machine.matters and ((there := report.versions.get(package)) != here or there is None)
        ]
        for version, names in _group(others):
            if version is None:
                install = package if here is None else f"{package} {here}, the driver's,"
                yield Finding(Level.ERROR, f"{package} is not installed on {names}: install {install} there")
                continue
            fatal = package in ("ray", "tlray") or (package == "python" and _cut_minor(version) != _cut_minor(here))
            yield Finding(
                Level.ERROR if fatal else Level.WARNING,
                f"{package} is {version} on {names} but {here or 'missing'} at the driver: "
                "install the same version everywhere",
            )


def find_out_of_reach(cluster: ClusterReport) -> Iterator[Finding]:
    """Report locations that machines, or the driver, cannot read or write."""
    several = len(cluster.machines) > 1
    for index, location in enumerate(cluster.locations):
        answers = [(machine, report.troubles[index]) for machine, report in _list_reports(cluster) if machine.matters]
        met: list[tuple[Trouble, Machine | None]] = []
        own = cluster.troubles[index]
        if own is not None and not any(machine.has_driver and _is_same(trouble, own) for machine, trouble in answers):
            met.append((own, None))
        met += [(trouble, machine) for machine, trouble in answers if trouble is not None]
        while met:
            first = met[0][0]
            alike = [machine for trouble, machine in met if _is_same(trouble, first)]
            met = [(trouble, machine) for trouble, machine in met if not _is_same(trouble, first)]
            yield _describe_reach(location, first, alike, several=several)


def _is_same(one: Trouble | None, two: Trouble) -> bool:
    """Return whether two troubles are the same; messages of timeouts vary from try to try."""
    return one == two or (one is not None and one.code == two.code == Code.TIMEOUT)


def _describe_reach(
    location: Location, trouble: Trouble, machines: Sequence[Machine | None], *, several: bool
) -> Finding:
    on = f" from {_name(machines)}" if several else ""
    why = f"{trouble.code}: {trouble.said.rstrip('.')}"
    verb = "written" if location.writes else "read"
    told = f"{location.option} {storage.redact(location.uri)} cannot be {verb}{on} ({why}): "
    is_local = not storage.is_s3(location.uri)
    drives = any(machine is None or machine.has_driver or machine.node.is_head for machine in machines)
    if location.option != "--input" and not drives:
        if location.writes:
            level = Level.NOTE if is_local else Level.WARNING
            return Finding(
                level,
                told + "prediction writes from the driver only; training needs a location that every machine reaches",
            )
        return Finding(
            Level.NOTE, told + "only the driver reads it, and sends it along; run the command where it can be read"
        )
    if is_local and several:
        what = "give an s3:// address, or a folder that every machine has at the same path"
    elif is_local:
        what = "check the path and its permissions"
    elif trouble.code == Code.DENIED:
        what = "give the role or credentials there access to it, or name another bucket"
    elif trouble.code == Code.NOT_FOUND:
        what = "check the address, and that the region and endpoint are those of its store"
    else:
        what = "check the network, AWS_ENDPOINT_URL and the region there"
    return Finding(Level.ERROR, told + what)


def find_open(cluster: ClusterReport) -> Iterator[Finding]:
    """Report a cluster that other machines can reach without a token."""
    open_nodes = [(True, machine) for machine, report in _list_reports(cluster) if not report.token]
    if cluster.is_reachable and open_nodes:
        yield Finding(
            Level.WARNING,
            f"ANYONE WHO REACHES {cluster.address} CAN RUN CODE on this cluster, with its credentials: make a token "
            "with `ray get-auth-token --generate`, copy it to every machine, and start every node and driver with "
            "RAY_AUTH_MODE=token in its environment",
        )


def find_little_disk(cluster: ClusterReport) -> Iterator[Finding]:
    """Report machines with too little disk space to spill objects to."""
    little = []
    for machine, report in _list_reports(cluster):
        if report.spill_free_bytes < max(_SPILL_BYTES, machine.node.object_store_bytes):
            little.append((report.spill_free_bytes, machine))
    if little:
        names = _name([machine for _, machine in little])
        yield Finding(
            Level.WARNING,
            f"the disk that Ray spills objects to has little room on {names} (as little as "
            f"{filesize.decimal(min(little, key=lambda item: item[0])[0])}): free some, or start the node with "
            "--temp-dir on a larger disk",
        )


def find_little_memory(cluster: ClusterReport) -> Iterator[Finding]:
    """Report object stores that are small, or larger than shared memory."""
    small, slow = [], []
    for machine, report in _list_reports(cluster):
        size = machine.node.object_store_bytes
        if size < _STORE_BYTES and machine.node.takes_work:
            small.append((filesize.decimal(size), machine))
        if report.shm_bytes is not None and report.shm_bytes < size:
            slow.append((f"{filesize.decimal(report.shm_bytes)} for {filesize.decimal(size)}", machine))
    for told, names in _group(small):
        what = "images in flight would be spilled; start the node with --object-store-memory of 2 GB or more"
        yield Finding(Level.WARNING, f"the object store is small on {names} ({told}): {what}")
    for told, names in _group(slow):
        what = "Ray keeps objects on disk there; give the container a larger --shm-size, or Ray a smaller object store"
        yield Finding(Level.WARNING, f"/dev/shm is smaller than the object store on {names} ({told}): {what}")


def find_busy_head(cluster: ClusterReport) -> Iterator[Finding]:
    """Report a head that takes work in a cluster of several machines."""
    heads = [machine for machine in cluster.machines if machine.node.is_head]
    if len(cluster.machines) >= _MANY_NODES and any(head.node.takes_work for head in heads):
        yield Finding(
            Level.NOTE,
            f"the head {_name(heads)} takes work, and the cluster dies with its head: start it with --num-cpus=0, so "
            "that no job can use up its memory",
        )


def find_wrong_clocks(cluster: ClusterReport) -> Iterator[Finding]:
    """Report clocks that are off."""
    off = [machine for machine in cluster.machines if machine.clock_is_off]
    bad = [machine for machine in off if abs(machine.clock_offset_s) > _SIGNATURE_S]
    for level, machines, effect in (
        (Level.ERROR, bad, "S3 refuses requests whose time is off by minutes"),
        (Level.WARNING, [machine for machine in off if machine not in bad], "times in logs and of files mislead"),
    ):
        if machines:
            most = max((machine.clock_offset_s for machine in machines), key=abs)
            told = f"the clock is {abs(most):,.0f} s {'ahead of' if most > 0 else 'behind'} the driver's"
            yield Finding(level, f"{told} on {_name(machines)}: {effect}; enable NTP on every machine")


_LOOKS = (
    find_no_workers,
    find_unreported,
    find_open,
    find_out_of_reach,
    find_gpus,
    find_versions,
    find_wrong_clocks,
    find_little_disk,
    find_little_memory,
    find_busy_head,
)


def _list_reports(cluster: ClusterReport) -> Iterator[tuple[Machine, NodeReport]]:
    for machine in cluster.machines:
        if machine.report is not None:
            yield machine, machine.report


def _group(items: Iterable[tuple[T, Machine]]) -> list[tuple[T, str]]:
    """Group machines by key, and name those of each group."""
    groups: dict[T, list[Machine]] = {}
    for key, machine in items:
        groups.setdefault(key, []).append(machine)
    return [(key, _name(machines)) for key, machines in groups.items()]


def _name(machines: Sequence[Machine | None]) -> str:
    """Return the names of some machines, and the number of the others; None is the driver."""
    return name_some([_DRIVER if machine is None else machine.name for machine in machines])


def _cut_minor(version: str | None) -> str:
    return ".".join((version or "").split(".")[:2])
