"""Print the summaries of doctor and submit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tlray.cli.tables import make_table, print_facts
from tlray.console import console, say

if TYPE_CHECKING:
    from tlray.doctor import DoctorSummary
    from tlray.doctor.machines import ClusterReport, Machine
    from tlray.submission import SubmitSummary

_DONE = {"SUCCEEDED", "FAILED", "STOPPED"}

_MOST_WIDTH = 1000
_FOLD_FROM = 8
_FOLDS = ("", ", ", " ")
"""Separators after which long cells of a table that is too wide are folded: none, between facts, between words."""

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_UNKNOWN = "?"


def print_doctor(summary: DoctorSummary) -> None:
    """Print the cluster, its machines, and the findings."""
    cluster = summary.cluster
    console.print()
    print_facts(_describe_cluster(cluster))
    for fold in _FOLDS:
        table = _make_table(cluster, fold)
        if not console.is_terminal or _measure(table) <= console.width:
            break
    table.width = _measure(table)  # a narrow terminal would lose columns; a file takes rows of any width
    console.print(table)
    if not summary.findings:
        console.print(Text("No trouble found.", style="green"))
        return
    grid = Table.grid(padding=(0, 2))
    for finding in summary.findings:
        level = Text(str(finding.level), style=_STYLES[finding.level])
        if console.is_terminal:
            grid.add_row(level, Text(finding.sentence))
        else:
            console.print(Text(f"{finding.level:<9}{finding.sentence}"))
    if console.is_terminal:
        console.print(grid, soft_wrap=False)


def _describe_cluster(cluster: ClusterReport) -> list[tuple[str, str]]:
    nodes = [machine.node for machine in cluster.machines]
    counts = {"machine": len(nodes), "core": sum(node.cpus for node in nodes), "GPU": sum(node.gpus for node in nodes)}
    has = ", ".join(f"{count:,g} {noun}{'s' * (count != 1)}" for noun, count in counts.items())
    here = [f"{name} {version or 'missing'}" for name, version in cluster.versions.items()]
    joined = "this machine's own Ray" if cluster.is_own else cluster.address
    facts = [("cluster", f"{joined}: {has}"), ("here", ", ".join(here[:3])), ("", ", ".join(here[3:]))]
    if len(modes := _list_modes(cluster)) == 1:
        facts.append(("token", "required" if modes == {True} else "not required"))
    return facts


def _list_modes(cluster: ClusterReport) -> set[bool]:
    return {machine.report.token for machine in cluster.machines if machine.report is not None}


def _measure(table: Table) -> int:
    return Measurement.get(console, console.options.update_width(_MOST_WIDTH), table).maximum


def _make_table(cluster: ClusterReport, fold: str) -> Table:
    machines = cluster.machines
    table = make_table("machine", "cores>", "GPUs>", "memory>", "objects>", "disk>")
    table.collapse_padding = True
    with_tokens = len(_list_modes(cluster)) > 1
    if with_tokens:
        table.add_column("token")
    table.add_column("versions")
    with_clocks = any(_describe_clock(machine) for machine in machines)
    if with_clocks:
        table.add_column("clock", justify="right")
    if cluster.locations:
        table.add_column("reaches")
    for machine in machines:
        name = f"{machine.name} head" if machine.node.is_head else machine.name
        cells = [name, f"{machine.node.cpus:g}", _describe_gpus(machine), *_describe_space(machine)]
        if with_tokens:
            cells.append(_UNKNOWN if machine.report is None else "yes" if machine.report.token else "no")
        cells.append(_describe_versions(machine, cluster))
        if with_clocks:
            cells.append(_describe_clock(machine))
        if cluster.locations:
            cells.append(_describe_reach(machine, cluster))
        if fold:
            cells = [cell.replace(fold, f"{fold.rstrip()}\n") if len(cell) >= _FOLD_FROM else cell for cell in cells]
        table.add_row(*map(Text, cells))
    return table


def _describe_gpus(machine: Machine) -> str:
    counted = f"{machine.node.gpus:g}"
    if machine.report is None or machine.report.gpus == machine.node.gpus:
        return counted
    return f"{counted}, has {machine.report.gpus}"


def _describe_space(machine: Machine) -> list[str]:
    objects, report = _describe_bytes(machine.node.object_store_bytes), machine.report
    if report is None:
        return [_UNKNOWN, objects, _UNKNOWN]
    return [_describe_bytes(report.memory_bytes), objects, _describe_bytes(report.spill_free_bytes)]


def _describe_bytes(size: int) -> str:
    """Always in GB, so that a column is easy to compare."""
    return f"{size / 1e9:,.{0 if size >= 1e10 else 1}f} GB"


def _describe_versions(machine: Machine, cluster: ClusterReport) -> str:
    if machine.report is None:
        return _UNKNOWN
    there = machine.report.versions
    others = [
        f"{name} {there.get(name) or 'missing'}" for name, here in cluster.versions.items() if there.get(name) != here
    ]
    return ", ".join(others) or "as here"


def _describe_clock(machine: Machine) -> str:
    return f"{machine.clock_offset_s:+,.0f} s" if machine.clock_is_off else ""


def _describe_reach(machine: Machine, cluster: ClusterReport) -> str:
    if machine.report is None:
        return _UNKNOWN
    met = dict.fromkeys(
        f"{location.option.removeprefix('--')} {trouble.code.lower().replace('_', ' ')}"
        for location, trouble in zip(cluster.locations, machine.report.troubles, strict=True)
        if trouble is not None
    )
    return ", ".join(met) or "all"


def print_submit(summary: SubmitSummary) -> None:
    """Print the status of a finished job, or the commands that follow and stop it."""
    if summary.status in _DONE:
        say(f"{summary.job_id} {summary.status.lower()}")
        return
    say(f"{summary.job_id} runs on without this terminal")
    print_facts([("follow", summary.follow_command), ("stop", summary.stop_command)])
