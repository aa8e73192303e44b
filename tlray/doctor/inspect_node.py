"""What a machine tells of itself: runs on every machine of a cluster, so it imports little and raises nothing."""

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

from tlray import storage
from tlray.cluster.ray_private import get_session_folder, is_token_required
from tlray.errors import Code, FetchError
from tlray.version import __version__

PATIENCE_S = 20.0
"""How long a machine tries to reach something."""

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
        option: the flag that names it.
        uri: what was named.
        target: what is tried: for reading, a file or whatever lies below an address; for writing, a prefix or folder.
        writes: whether a job would write there.
        found: whether `target` is a file known to be there, which needs no listing.
    """

    option: str
    uri: str
    target: str
    writes: bool = False
    found: bool = False


@dataclass(frozen=True)
class Trouble:
    """Why a location is out of reach: a code, and what was said."""

    code: str
    said: str


@dataclass(frozen=True)
class NodeReport:
    """What a machine tells.

    Attributes:
        gpus: those that NVIDIA's driver shows.
        memory_bytes: of the machine, or what its container may take.
        shm_bytes: size of /dev/shm; None where there is none.
        spill_free_bytes: free space of the disk that Ray spills objects to.
        versions: by package; None where it isn't installed.
        token: whether its Ray processes want a token.
        troubles: one for each location, in order; None where it is in reach.
    """

    gpus: int
    memory_bytes: int
    shm_bytes: int | None
    spill_free_bytes: int
    versions: dict[str, str | None]
    token: bool
    troubles: tuple[Trouble | None, ...]


def report_node(locations: Sequence[Location]) -> NodeReport:
    """Tell of the machine that this process runs on, a worker of Ray."""
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
    """Seconds since the epoch by this machine's clock."""
    return time.time()


def read_versions() -> dict[str, str | None]:
    """Versions of what a job runs on, without importing it."""
    versions = {"python": platform.python_version(), "ray": _find_version("ray")}
    versions["tensorflow"] = next(filter(None, map(_find_version, _TENSORFLOW)), None)
    return {**versions, "keras": _find_version("keras"), "tlray": __version__}


def find_targets(locations: Sequence[Location]) -> tuple[Location, ...]:
    """Put a file that is there in the location of what it lies below, where there is one."""
    return _call_all(_find_target, locations, list(locations))


def try_locations(locations: Sequence[Location]) -> tuple[Trouble | None, ...]:
    """What keeps this machine from each location."""
    late = Trouble(Code.TIMEOUT, f"no answer in {PATIENCE_S:g} s")
    return _call_all(_try, locations, [late] * len(locations))


def _call_all(function: Callable[[Location], T], locations: Sequence[Location], late: Sequence[T]) -> tuple[T, ...]:
    """Call it for all locations at the same time; for one that doesn't answer, what is said of late ones."""
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
        with contextlib.suppress(FetchError):  # the machines try for themselves
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
    """Of the machine, or what its container may take, where that is limited."""
    import psutil

    limits = [int(psutil.virtual_memory().total)]
    for path in map(Path, _MEMORY_LIMITS):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(path.read_text()))
    return min(limits)
