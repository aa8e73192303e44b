"""`tlray doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from tlray.config.checks import Faults
from tlray.config.shared import RunConfig, S3Config, arrange_help, check_run


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
