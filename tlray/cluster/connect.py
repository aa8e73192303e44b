"""Join the Ray cluster that the user names, or start a local one; turn its failures into tlray's errors."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import socket
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tlray.cluster.ray_private import silence_messages, spare_data_helpers, spare_helpers
from tlray.cluster.resources import Cluster, count_cores
from tlray.console import say, silence_stderr
from tlray.errors import (
    BundleError,
    DataError,
    DivergedError,
    OutputError,
    StoppedError,
    TlrayError,
    UsageError,
    WeightsError,
    last_line,
)
from tlray.storage import redact
from tlray.storage.s3_client import OPTIONS_VARIABLE

_QUIET_ENV = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONWARNINGS": "ignore",
}


def import_ahead(*, verbose: bool) -> None:
    """Start importing Ray on another thread: it takes a second, which the caller can use."""
    _set_environment(verbose)
    _silence_widgets()
    threading.Thread(target=importlib.import_module, args=("ray.data",), name="import ray").start()


def _set_environment(verbose: bool) -> None:
    """Set the variables that Ray reads while it is imported."""
    if not verbose:
        for name, value in _QUIET_ENV.items():
            os.environ.setdefault(name, value)


_CONNECT_TIMEOUT_S = 10.0
_NAMED_USERS = 4
_MEMORY = re.compile(
    r"running low on memory.*?\(IP: ([^,]+), ID: \w+\) was ([\d.]+)GB used / ([\d.]+)GB limit", re.DOTALL
)
_MEMORY_USER = re.compile(r"^\d+\t([\d.]+)\t(\S.*)$", re.MULTILINE)
_OUR_ERROR = re.compile(r"^\s*tlray\.errors\.(\w+): (.+)", re.MULTILINE)
_ERRORS_OF_ONE_TEXT: dict[str, type[TlrayError]] = {
    kind.__name__: kind for kind in (BundleError, DataError, DivergedError, OutputError, WeightsError)
}


def is_local(address: str | None) -> bool:
    """Return whether `connect` would start a local cluster."""
    return (address or os.environ.get("RAY_ADDRESS") or "local") == "local"


@contextlib.contextmanager
def connect(address: str | None, max_cpus: int | None, *, verbose: bool, check: bool = True) -> Iterator[Cluster]:
    """Join the cluster at `address` or RAY_ADDRESS, else start a local one; disconnect at the end.

    A connection that the calling program has made itself is used, and stays open.

    Args:
        address, max_cpus, verbose: as in `config.RunConfig`.
        check: run `checks.check_nodes` on a joined cluster.

    Raises:
        StoppedError: the cluster does not answer, or cannot be used.
    """
    _set_environment(verbose)
    _silence_widgets()
    import ray

    target = address or os.environ.get("RAY_ADDRESS")
    local = is_local(address)
    ours = not ray.is_initialized()
    if ours:
        if not verbose:
            _silence()
        cores, installed = count_cores(), os.cpu_count() or 1
        if not local:
            say(f"joining the Ray cluster at {target}")
        elif cores < installed:
            say(f"starting Ray on {cores} of {installed} cores, as many as this process may use")
        else:
            say("starting Ray")
        if target is not None and not local:
            _check_address(target)
        try:
            with contextlib.ExitStack() as stack:
                if not verbose:
                    stack.enter_context(silence_stderr())
                    stack.enter_context(silence_messages())
                if local:
                    with spare_helpers(verbose=verbose):
                        ray.init(
                            address="local",
                            num_cpus=min(max_cpus or cores, cores),
                            include_dashboard=False,
                            **_log_options(verbose),
                        )
                else:
                    variables = {} if verbose else dict(_QUIET_ENV)
                    variables |= {name: os.environ[name] for name in (OPTIONS_VARIABLE,) if name in os.environ}
                    ray.init(address=target, runtime_env={"env_vars": variables}, **_log_options(verbose))
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise StoppedError(f"no Ray cluster answers at {target or 'this machine'}: {error}") from None
    _configure_data(verbose)
    with spare_data_helpers() if ours and local else contextlib.nullcontext():
        try:
            from tlray.cluster.capacity import is_growing, measure
            from tlray.cluster.checks import check_nodes

            if local and not ours:  # the calling program may have joined a cluster
                local = len(ray.nodes()) == 1 and not is_growing()
            if check and ours and not local:
                check_nodes()
            yield measure(local=local)
        finally:
            if ours:
                ray.shutdown()


def _check_address(address: str) -> None:
    """Refuse the address of something else, and one at which nothing listens: Ray itself would retry for minutes.

    Raises:
        UsageError: it is the address of Ray Client or of a job server.
        StoppedError: nothing listens at HOST:PORT.
    """
    scheme = address.partition("://")[0]
    if "://" in address and scheme in ("ray", "http", "https"):
        what = "Ray Client's" if scheme == "ray" else "a job server's"
        raise UsageError(
            f"--address takes HOST:PORT of the cluster's head, mostly port 6379; got {what} address {redact(address)}; "
            "from outside the cluster, use tlray submit --address http://HOST:8265"
        )
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        return  # "auto" and the like, which Ray resolves
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        why = error.strerror or str(error)
        raise StoppedError(
            f"no Ray cluster answers at {address}: {why}; check the address, the network, and whether the head runs"
        ) from None


def _log_options(verbose: bool) -> dict[str, Any]:
    return {"log_to_driver": verbose, "logging_level": logging.INFO if verbose else logging.ERROR}


def _configure_data(verbose: bool) -> None:
    """Turn off Ray Data's progress bars and logs unless verbose."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = verbose
    if not verbose:  # importing ray.data has just set its loggers to INFO
        for name in ("ray.data", "ray.train", "ray.tune"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _silence() -> None:
    """Silence Ray's logs and warnings; errors still reach the user as exceptions."""
    warnings.filterwarnings("ignore", module=r"ray\..*")
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    logging.getLogger("ray").propagate = False


def _silence_widgets() -> None:
    """Silence what importing Ray says in a notebook without ipywidgets, which tlray does not use."""
    warnings.filterwarnings("ignore", message="IProgress not found")
    logging.getLogger("ray.widgets").setLevel(logging.CRITICAL)


def explain_failure(error: BaseException, doing: str) -> TlrayError:
    """Return the tlray error inside an error of Ray's, else a `StoppedError` that says what Ray does.

    That is the machine whose memory was full and what held it, or the last line of the message.
    """
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, TlrayError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__ or cause.__context__
    if (memory := describe_lack_of_memory(str(error))) is not None:
        return StoppedError(f"{doing} stopped: {memory}")
    ours = _OUR_ERROR.search(str(error))  # Ray Data passes on errors of its stages as text
    if ours is not None:
        return _ERRORS_OF_ONE_TEXT.get(ours[1], StoppedError)(ours[2])
    return StoppedError(f"{doing} stopped: {last_line(error)}")


def describe_lack_of_memory(text: str) -> str | None:
    """Return what the message of Ray's memory monitor says, and what to do; None for any other message."""
    found = _MEMORY.search(text)
    if found is None:
        return None
    users = [f"{Path(command.split()[0]).name} {size} GB" for size, command in _MEMORY_USER.findall(text)]
    held = f" (most of it: {', '.join(users[:_NAMED_USERS])})" if users else ""
    return (
        f"the memory of {found[1]} was full, {found[2]} of {found[3]} GB{held}, and Ray killed a process there; lower "
        "--batch-size, --num-workers or --max-cpus, or use machines with more memory; the same command resumes"
    )
