"""`tlray submit` and `tlray doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from tlray.config.shared import Faults, RunConfig, S3Config, arrange_help, check_run

Submittable = Literal["train", "predict", "plan", "verify", "evaluate", "doctor"]


@arrange_help
@dataclass(frozen=True, kw_only=True)
class SubmitConfig:
    """Run a command as a job of a Ray cluster: tlray submit predict --address http://127.0.0.1:8265 -- --model ...

    The command's own options stand behind --, and are checked here first; this tlray itself travels with the job. The
    job's log is followed, and its exit code is this command's. Ctrl-C leaves the job running.
    """

    command: Annotated[Submittable, tyro.conf.Positional]
    """What to run."""

    options: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="-- OPTIONS", help_behavior_hint="")
    ] = ()
    """Its options, as on a laptop; --config is read here. Paths must be s3:// addresses, or absolute and the same on
    every machine of the cluster."""

    address: str | None = None
    """The cluster's job server, as http://HOST:8265; else RAY_API_SERVER_ADDRESS. A token of Ray's (RAY_AUTH_TOKEN,
    RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token) is sent along."""

    working_dir: str | None = None
    """Folder that travels with the job (lists, weights; at most 100 MiB): relative paths in OPTIONS are looked up
    in it."""

    detach: bool = False
    """Don't follow the job; print how to."""

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
    """Say what a cluster has and what would go wrong on it, before a job does: every machine is asked.

    Exit code 1 where a job would fail, else 0.
    """

    input: tuple[str, ...] = ()
    """What is to be labelled or trained on; every machine tries to read of it."""

    model: str | None = None
    """Bundle to label with; every machine tries to read of it."""

    output: str | None = None
    """Where a job would write; every machine tries to, and leaves nothing there."""

    def check(self) -> None:
        """Raise one `ConfigError` naming every value that is not allowed."""
        faults = Faults()
        for uri in self.input:
            faults.check_uri("input", uri)
        for name in ("model", "output"):
            faults.check_uri(name, getattr(self, name))
        check_run(faults, self)
        faults.report()


def check_job_server(faults: Faults, address: str) -> None:
    """Take http(s)://HOST."""
    scheme, separator, rest = address.partition("://")
    if scheme not in ("http", "https") or not separator or not rest.strip("/"):
        faults.add(f"--address takes a cluster's job server, such as http://127.0.0.1:8265; got {address!r}")
