"""Check the machines of a joined cluster before a job starts: same tlray, a token, paths that all of them see."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import ray

from tlray.cluster.nodes import Node, ask_nodes, is_loopback, list_nodes, name_some
from tlray.cluster.ray_private import is_token_required
from tlray.console import say
from tlray.errors import DataError, OutputError, StoppedError, last_line
from tlray.storage.addresses import is_s3
from tlray.version import __version__

_NOT_THERE = "No module named 'tlray'"


class Process(NamedTuple):
    """The report of a process on a machine.

    Attributes:
        version: installed version of tlray.
        has_token: whether the machine's Ray processes require Ray's token.
    """

    version: str
    has_token: bool


def describe_process() -> Process:
    """Return the report of this process."""
    return Process(__version__, is_token_required())


def check_nodes() -> None:
    """Check that every machine runs this tlray; warn about machines that do not answer and about a missing token.

    Raises:
        StoppedError: a machine has another version of tlray, or none.
    """
    nodes = list_nodes()
    answers = ask_nodes(nodes, describe_process)
    others: dict[str, list[Node]] = {}
    for node, answer in zip(nodes, answers, strict=True):
        if isinstance(answer, Process):
            if answer.version != __version__:
                others.setdefault(f"tlray {answer.version}", []).append(node)
        elif _NOT_THERE in str(answer):
            others.setdefault("no tlray", []).append(node)
        else:
            say(f"WARNING: {node.address} does not answer ({last_line(answer)}); continuing without checking it")
    for version, where in others.items():
        raise StoppedError(
            f"this is tlray {__version__}, and {_name(where)} has {version}; install the same version everywhere, or "
            "use tlray submit, which sends it along"
        )
    open_nodes = [
        node
        for node, answer in zip(nodes, answers, strict=True)
        if isinstance(answer, Process) and not answer.has_token
    ]
    if open_nodes and not is_loopback(ray.get_runtime_context().gcs_address):
        say(
            "WARNING: this cluster asks for no token: anyone who reaches its ports can run code on it. Start every "
            "node with RAY_AUTH_MODE=token and the same token (ray get-auth-token --generate)"
        )


def check_seen(option: str, files: Iterable[tuple[str, int | None]]) -> None:
    """Check that every worker sees the local files that this machine sees.

    Args:
        option: option that names them.
        files: local and s3:// addresses, with sizes in bytes where known.

    Raises:
        DataError: a worker lacks a file, or its size differs there.
    """
    # a file that is missing or changed here too becomes a failed row instead
    local = [file for file in files if not is_s3(file[0]) and _find_unseen([file]) is None]
    if not local:
        return
    nodes = [node for node in list_nodes() if node.takes_work]
    answers = ask_nodes(nodes, _find_unseen, local)
    blind = [(node, answer) for node, answer in zip(nodes, answers, strict=True) if isinstance(answer, str)]
    if blind:
        raise DataError(
            f"{option}: {blind[0][1]} is not there on {_name([node for node, _ in blind])}, or another file; "
            "give s3:// addresses, or a folder that all machines of the cluster share"
        )


def check_shared(option: str, uri: str) -> None:
    """Check that a local output folder is the same one on every worker.

    Args:
        option: option that names it.
        uri: local folder, which need not exist yet, or s3:// address, which is not checked.

    Raises:
        OutputError: a worker does not see a file written here.
    """
    if is_s3(uri):
        return
    nodes = [node for node in list_nodes() if node.takes_work]
    folder = next(parent for parent in (Path(uri), *Path(uri).parents) if parent.is_dir())
    mark = folder / f".tlray-{secrets.token_hex(8)}"
    mark.touch()
    try:
        answers = ask_nodes(nodes, _find_unseen, [(str(mark), 0)])
    finally:
        mark.unlink()
    blind = [node for node, answer in zip(nodes, answers, strict=True) if isinstance(answer, str)]
    if blind:
        raise OutputError(
            f"{option} {uri} is not the same folder on {_name(blind)}; give s3://, or a folder that all "
            "machines of the cluster share"
        )


def _find_unseen(files: Sequence[tuple[str, int | None]]) -> str | None:
    """Return the first local file that is missing here or has another size, None if all match."""
    for path, size in files:
        try:
            found = Path(path).stat().st_size
        except OSError:
            return path
        if size is not None and found != size:
            return path
    return None


def _name(nodes: Sequence[Node]) -> str:
    return name_some([node.address for node in nodes])
