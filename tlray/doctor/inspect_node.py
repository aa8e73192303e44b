"""The report of one machine: made on every machine of a cluster, where it should not fail."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import psutil

from tlray import storage
from tlray.cluster.ray_private import get_session_folder, is_token_required
from tlray.errors import Code, FetchError
from tlray.version import __version__

PATIENCE_S = 20.0
"""Seconds that a machine tries to reach a location."""

_NVIDIA_S = 10.0
_SHARED_MEMORY = Path("/dev/shm")
_DRIVER_GPUS = Path("/proc/driver/nvidia/gpus")
_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_TENSORFLOW = ("tensorflow", "tensorflow-cpu")

T = TypeVar("T")


@dataclass(frozen=True)
class Location:
    """An address that a job would use.

    Attributes:
        option: flag that names it.
        uri: address as typed.
        target: address to try: a file, folder or prefix to read from, or a folder or prefix to write to.
        writes: whether a job would write there.
        found: whether `target` is a file known to exist, which needs no listing.
    """

    option: str
    uri: str
    target: str
    writes: bool = False
    found: bool = False


@dataclass(frozen=True)
class Trouble:
    """Reason why a location cannot be read or written: a code and a message."""

    code: str
    said: str


@dataclass(frozen=True)
class NodeReport:
    """The report of one machine.

    Attributes:
        gpus: GPUs that NVIDIA's driver shows.
        memory_bytes: memory of the machine, or its container's limit.
        shm_bytes: size of /dev/shm; None where it does not exist.
        spill_free_bytes: free space on the disk that Ray spills objects to.
        versions: by package; None where it is not installed.
        token: whether its Ray processes require a token.
        troubles: one per location, in order; None where it is accessible.
    """

    gpus: int
    memory_bytes: int
    shm_bytes: int | None
    spill_free_bytes: int
    versions: dict[str, str | None]
    token: bool
    troubles: tuple[Trouble | None, ...]


def report_node(locations: Sequence[Location]) -> NodeReport:
    """Return the report of this machine; runs in a Ray worker process."""
    return NodeReport(
        gpus=_count_gpus(),
        memory_bytes=_measure_memory(),
        shm_bytes=shutil.disk_usage(_SHARED_MEMORY).total if _SHARED_MEMORY.is_dir() else None,
        spill_free_bytes=shutil.disk_usage(get_session_folder()).free,
        versions=read_versions(),
        token=is_token_required(),
        troubles=try_locations(locations),
    )


def tell_time() -> float:
    """Return this machine's clock, in seconds since the epoch."""
    return time.time()


def read_versions() -> dict[str, str | None]:
    """Return the versions of Python and the packages that a job needs, without importing them."""
    versions = {"python": platform.python_version(), "ray": _find_version("ray")}
    versions["tensorflow"] = next(filter(None, map(_find_version, _TENSORFLOW)), None)
    versions |= {name: _find_version(name) for name in ("keras", "openvino")}
    return {**versions, "tlray": __version__}


def find_targets(locations: Sequence[Location]) -> tuple[Location, ...]:
    """Replace each folder or prefix to read from by a file in it, if one is found."""
    return _call_all(_find_target, locations, list(locations))


def try_locations(locations: Sequence[Location]) -> tuple[Trouble | None, ...]:
    """Try to read or write each location; return the trouble with each, None for success."""
    late = Trouble(Code.TIMEOUT, f"no answer in {PATIENCE_S:g} s")
    return _call_all(_try, locations, [late] * len(locations))


def _call_all(function: Callable[[Location], T], locations: Sequence[Location], late: Sequence[T]) -> tuple[T, ...]:
    """Call a function for all locations at the same time; one that takes too long gets its entry in `late`."""
    told = list(late)

    def note(index: int) -> None:
        told[index] = function(locations[index])

    # daemon threads: one that hangs (a dead network disk, a lost packet) must not keep its process
    threads = [threading.Thread(target=note, args=(index,), daemon=True) for index in range(len(locations))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return tuple(told)


def _find_target(location: Location) -> Location:
    if not location.writes:
        with contextlib.suppress(FetchError):  # the machines report it themselves
            entry = storage.find_any(location.target)
            return replace(location, target=entry.uri, found=entry.size > 0)
    return location


def _try(location: Location) -> Trouble | None:
    try:
        if location.writes:
            storage.try_writing(location.target)
        elif location.found and storage.is_s3(location.target):
            _read_byte(location.target)
        else:
            entry = storage.find_any(location.target)
            if entry.size:
                _read_byte(entry.uri)
    except FetchError as error:
        return Trouble(error.code, storage.redact(str(error)))
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        return Trouble(type(error).__name__, storage.redact(first))
    return None


def _read_byte(uri: str) -> None:
    for data in storage.get_ranges([(uri, 0, 1)]):
        if isinstance(data, FetchError):
            raise data


def _find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _count_gpus() -> int:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_NVIDIA_S, check=True)
        return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return len(os.listdir(_DRIVER_GPUS)) if _DRIVER_GPUS.is_dir() else 0  # noqa: PTH208


def _measure_memory() -> int:
    """Return the bytes of memory of the machine, or its container's limit if that is lower."""
    limits = [int(psutil.virtual_memory().total)]
    for path in map(Path, _MEMORY_LIMITS):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(path.read_text()))
    return min(limits)
