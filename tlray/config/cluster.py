"""Options of `tlray submit` and `tlray doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from tlray.config.shared import Faults, RunConfig, S3Config, arrange_help, check_run, check_store

Submittable = Literal["train", "predict", "plan", "verify", "evaluate", "doctor"]


@arrange_help
@dataclass(frozen=True, kw_only=True)
class SubmitConfig:
    """Run a command as a job of a Ray cluster: tlray submit predict --address http://127.0.0.1:8265 -- --model ...

    The command's own options follow -- and are checked here first; this version of tlray is sent along. The job's log
    is shown, and its exit code is returned. Ctrl-C leaves the job running.
    """

    command: Annotated[Submittable, tyro.conf.Positional]
    """Command to run."""

    options: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="-- OPTIONS", help_behavior_hint="")
    ] = ()
    """Options of the command, as for a local run; --config is read here.
    Paths must be s3:// addresses, or absolute and the same on every machine."""

    address: str | None = None
    """Job server of the cluster, as http://HOST:8265; default RAY_API_SERVER_ADDRESS.
    Ray's token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token) is sent with each request."""

    working_dir: str | None = None
    """Folder to send with the job (manifests, weights; up to 100 MiB); relative paths in OPTIONS refer to it."""

    detach: bool = False
    """Do not follow the job; print the command that does."""

    verbose: bool = False
    """Show tracebacks."""

    def check(self) -> None:
        """Raise one `ConfigError` naming every value that is not allowed."""
        faults = Faults()
        if self.address is not None:
            check_job_server(faults, self.address)
        faults.report()


@arrange_help
@dataclass(frozen=True, kw_only=True)
class DoctorConfig(RunConfig, S3Config):
    """Examine every machine of a cluster, and report what would fail or be slow before a job does.

    The exit code is 1 if a job would fail, else 0.
    """

    input: tuple[str, ...] = ()
    """Images to predict or train on; every machine tries to read from them."""

    model: str | None = None
    """Bundle to predict with; every machine tries to read it."""

    output: str | None = None
    """Output of a job; every machine tries to write there, and leaves nothing behind."""

    def check(self) -> None:
        """Raise one `ConfigError` naming every value that is not allowed."""
        faults = Faults()
        for uri in self.input:
            faults.check_uri("input", uri)
        for name in ("model", "output"):
            faults.check_uri(name, getattr(self, name))
        check_run(faults, self)
        check_store(faults, self)
        faults.report()


def check_job_server(faults: Faults, address: str) -> None:
    """Allow http:// or https:// with a host."""
    scheme, separator, rest = address.partition("://")
    if scheme not in ("http", "https") or not separator or not rest.strip("/"):
        faults.add(f"--address takes the job server of a cluster, such as http://127.0.0.1:8265; got {address!r}")
