"""Run a command as a job of a Ray cluster: check it here, send it along with this tlray, follow it to its end.

tlray submit predict --address http://127.0.0.1:8265 -- --model s3://models/first --input s3://archive --output s3://labels
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tlray.cluster.ray_private import bound_requests
from tlray.config import SubmitConfig, list_path_options
from tlray.console import say
from tlray.errors import ConfigError, StoppedError, UsageError, last_line
from tlray.storage.addresses import is_s3, redact
from tlray.version import __version__

_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
_NOT_SENT = ["__pycache__", "*.pyc"]
_NOT_READY = "No available agent"
_START_S = 60.0
_STOP_WAIT_S = 60  # a stopped job finishes what it has in hand; Ray would kill it after 3 s
_PAUSE_S = 1.0
_MAX_SILENCE_S = 120.0
_QUIET_S = 60.0
_ANSWER_S = 10.0
_REQUEST_S = 60.0
_INTERRUPTED = 130


@dataclass(frozen=True)
class SubmitSummary:
    """The outcome of a submitted job.

    Attributes:
        job_id: Ray's submission id.
        address: of the job server.
        status: Ray's job status; PENDING or RUNNING if the job was not followed to its end.
        exit_code: the job's own; 0 with --detach, 130 after Ctrl-C.
    """

    job_id: str
    address: str
    status: str
    exit_code: int

    @property
    def follow_command(self) -> str:
        """Shell command that prints the job's log from its beginning and follows it."""
        return f"ray job logs --address {self.address} --follow {self.job_id}"

    @property
    def stop_command(self) -> str:
        """Shell command that ends the job."""
        return f"ray job stop --address {self.address} {self.job_id}"


def submit(config: SubmitConfig, job: Any, options: Sequence[str]) -> SubmitSummary:
    """Start a job on a cluster, and follow it.

    Args:
        config: cluster and command.
        job: checked config of the command.
        options: flags that `job` was parsed from, with --config expanded.

    Raises:
        UsageError: the cluster cannot see a path, Ray's job client is not installed, or the token is missing or wrong.
        StoppedError: the job server does not answer, or refuses the job.
    """
    config.check()
    _check_paths(config, job)
    address = _find_address(config.address)
    client = _connect(address)
    job_id = f"tlray-{config.command}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    runtime_env: dict[str, Any] = {
        "py_modules": [str(Path(__file__).parent)],
        "excludes": _NOT_SENT,
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)},
    }
    if config.working_dir is not None:
        runtime_env["working_dir"] = str(Path(config.working_dir).expanduser().absolute())
    request = {
        "entrypoint": shlex.join(["python", "-u", "-m", "tlray", config.command, *options]),
        "submission_id": job_id,
        "runtime_env": runtime_env,
        "metadata": {"tlray": __version__, "command": config.command},
    }
    submitted = SubmitSummary(job_id, redact(address), "PENDING", 0)
    try:
        _start(client, submitted, request)
    except KeyboardInterrupt:
        if not _job_exists(client, job_id):
            raise
        return replace(submitted, exit_code=_INTERRUPTED)
    say(f"submitted {job_id} to {submitted.address}")
    if config.detach:
        return submitted
    try:
        status, exit_code = asyncio.run(_Follower(client, job_id, submitted).go())
    except KeyboardInterrupt:
        return replace(submitted, status="RUNNING", exit_code=_INTERRUPTED)
    return replace(submitted, status=status, exit_code=exit_code)


def _check_paths(config: SubmitConfig, job: Any) -> None:
    """Check that the cluster can use every option, and that none would expose a password.

    Raises:
        ConfigError: all options that fail.
    """
    sent = None if config.working_dir is None else Path(config.working_dir).expanduser()
    faults = []
    if sent is not None and not sent.is_dir():
        faults.append(f"--working-dir takes a folder; got {config.working_dir}")
    for path in list_path_options(job):
        if is_s3(path.uri) or Path(path.uri).is_absolute():
            continue
        if path.is_output:
            faults.append(
                f"{path.option} takes s3://, or an absolute path that the cluster's machines share; got {path.uri}, "
                "which would be lost with its machine"
            )
        elif sent is None:
            faults.append(
                f"{path.option} {path.uri} is on this machine, which the cluster cannot see; give s3://, an "
                "absolute path that all its machines share, or send its folder with --working-dir"
            )
        elif not (sent / path.uri.partition("#")[0]).exists() and not (sent / path.uri).exists():
            faults.append(f"{path.option} {path.uri} is not in --working-dir {config.working_dir}")
    if (uri := getattr(job, "mlflow_uri", None)) is not None and (urlsplit(uri).username or redact(uri) != uri):
        faults.append(
            "--mlflow-uri: its user, password or token would be visible in the job's record; instead set "
            "MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, on the cluster's machines"
        )
    if getattr(job, "address", None) is not None:
        faults.append("--address goes before --; the job itself joins the cluster that it runs in")
    if getattr(job, "max_cpus", None) is not None:
        faults.append("--max-cpus limits a local run; on a cluster use --max-engines or --num-workers")
    if config.command == "predict" and job.output is None:
        faults.append("--output is needed in a job; only a local run can print the prediction for a single file")
    if config.command == "plan" and job.probe is not None:
        faults.append(
            "--probe measures the machine that it runs on, here the cluster's head; run it on a machine like a worker"
        )
    if faults:
        raise ConfigError(faults)


def _find_address(address: str | None) -> str:
    found = address or os.environ.get(_ADDRESS_VARIABLE)
    if found is None:
        raise ConfigError(
            [f"--address is needed, or {_ADDRESS_VARIABLE}: the cluster's job server, such as http://127.0.0.1:8265"]
        )
    return found.rstrip("/")


def _connect(address: str) -> Any:
    """Return Ray's job client after a first successful request.

    Raises:
        UsageError: the client is not installed, or the server requires another token.
        StoppedError: the server does not answer.
    """
    if "RAY_AUTH_MODE" not in os.environ and _has_token():
        os.environ["RAY_AUTH_MODE"] = "token"  # read when Ray is imported
    try:
        import aiohttp  # noqa: F401  # Ray's client would silently go without it
        import requests
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise UsageError(
            f"tlray submit needs Ray's job client, and {error.name} is not installed; pip install 'tlray[cluster]'"
        ) from None
    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ["RAY_RUNTIME_ENV_IGNORE_GITIGNORE"] = "1"  # weights and bundles are often named there
    os.environ[_ADDRESS_VARIABLE] = address  # the client prefers it to its argument
    local = "localhost,127.0.0.1,::1"  # a proxy would ask its own machine
    os.environ["no_proxy"] = ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), local)))
    try:
        client: Any = JobSubmissionClient(address)
        bound_requests(client, _REQUEST_S)
        client.list_jobs()  # the first request that needs the token
    except AuthenticationError:
        raise UsageError(
            f"the job server at {redact(address)} asks for a token, and the one here is missing or wrong; put the "
            "cluster's token into RAY_AUTH_TOKEN or ~/.ray/auth_token, and set RAY_AUTH_MODE=token"
        ) from None
    except (OSError, RuntimeError) as error:
        proxy = requests.utils.select_proxy(address, requests.utils.get_environ_proxies(address))
        named = proxy if proxy is None or "://" in proxy else f"http://{proxy}"
        through = f" (asked through the proxy {redact(named)} of the environment)" if named else ""
        raise StoppedError(f"no job server answers at {redact(address)}{through}: {_last_line(error)}") from None
    if _is_open(address, requests):
        say(
            f"WARNING: the job server at {redact(address)} accepts jobs from anyone who reaches it; start the cluster "
            "with RAY_AUTH_MODE=token and a token"
        )
    return client


def _start(client: Any, submitted: SubmitSummary, request: dict[str, Any]) -> None:
    """Submit a job; a server that has just started refuses for a while and is retried.

    Raises:
        StoppedError: the server refuses the job, or is lost before it is known whether it took it.
    """
    deadline = time.monotonic() + _START_S
    while True:
        try:
            client.submit_job(**request)
            return
        except (RuntimeError, ValueError, OSError) as error:
            reason = _last_line(error)
            try:
                if _job_exists(client, submitted.job_id):  # only the response was lost
                    return
            except OSError:
                raise StoppedError(
                    f"the job server at {submitted.address} was lost while it took the job ({reason}); to see whether "
                    f"it did, run: {submitted.follow_command}"
                ) from None
            if _NOT_READY not in str(error) or time.monotonic() > deadline:
                raise StoppedError(f"the job server at {submitted.address} did not take the job: {reason}") from None
        time.sleep(_PAUSE_S)


def _job_exists(client: Any, job_id: str) -> bool:
    """Return whether the server knows a job.

    Raises:
        OSError: the server does not answer.
    """
    try:
        client.get_job_info(job_id)
    except RuntimeError:
        return False
    return True


def _has_token() -> bool:
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or Path("~/.ray/auth_token").expanduser().is_file()


def _is_open(address: str, requests: Any) -> bool:
    """Return whether the server answers without a token."""
    try:
        return bool(requests.get(f"{address}/api/jobs/", timeout=_ANSWER_S).ok)
    except requests.RequestException:
        return False


class _Follower:
    """Prints a job's log until the job has ended, across broken connections."""

    def __init__(self, client: Any, job_id: str, submitted: SubmitSummary) -> None:
        self._client = client
        self._job_id = job_id
        self._submitted = submitted
        self._shown = 0

    async def go(self) -> tuple[str, int]:
        """Follow the job; return its status and exit code.

        Raises:
            StoppedError: the server has stopped answering.
        """
        from aiohttp import ClientError

        silent_since: float | None = None
        while True:
            # the status counts even if the log is unavailable
            with contextlib.suppress(OSError, RuntimeError, ClientError, TimeoutError):
                await self._show_log()
            try:
                info = await asyncio.to_thread(self._client.get_job_info, self._job_id)
            except (OSError, RuntimeError) as error:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > _MAX_SILENCE_S:
                    raise StoppedError(
                        f"the job server at {self._submitted.address} no longer answers ({_last_line(error)}); "
                        f"{self._job_id} may still be running; to follow it, run: {self._submitted.follow_command}"
                    ) from None
            else:
                silent_since = None
                if info.status.is_terminal():
                    return str(info.status.value), self._judge(info)
            await asyncio.sleep(_PAUSE_S)

    async def _show_log(self) -> None:
        """Print the new part of the log; each connection starts at the log's beginning.

        Raises:
            TimeoutError: nothing came for a while: the job prints nothing, or the connection is dead.
        """
        seen = 0
        async with aclosing(self._client.tail_job_logs(self._job_id)) as chunks:
            while True:
                try:
                    chunk = await asyncio.wait_for(anext(chunks), _QUIET_S)
                except StopAsyncIteration:
                    return
                new = chunk[max(0, self._shown - seen) :]
                seen += len(chunk)
                self._shown = max(self._shown, seen)
                sys.stdout.write(new)
                sys.stdout.flush()

    def _judge(self, info: Any) -> int:
        """Return the job's exit code, 1 if it failed without one."""
        status, code = str(info.status.value), info.driver_exit_code
        if status == "SUCCEEDED":
            return 0
        if not code or code < 0:
            print(
                f"tlray: {self._job_id} {status.lower()}: {_last_line(info.message or 'no message')}", file=sys.stderr
            )
            return 1
        return int(code)


def _last_line(error: object) -> str:
    return redact(last_line(error))
