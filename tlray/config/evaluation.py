"""`tlray evaluate`, `show` and `demo`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from tlray.config.checks import Faults
from tlray.config.shared import LimitsConfig, RunConfig, S3Config, arrange_help, check_limits, check_run
from tlray.precision import PrecisionName


@arrange_help
@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RunConfig, LimitsConfig, S3Config):
    """Measure a bundle on labelled images: accuracy, precision, recall, F1 and the confusion matrix."""

    model: str
    """Bundle to measure: a folder or s3:// prefix."""

    data: str
    """Labelled images: class folders, DIR/CLASS/image, in a folder or s3:// prefix; or a manifest (.csv .jsonl
    .parquet) with the columns uri and label."""

    output: str | None = None
    """Where evaluation.json and confusion.png go: a new folder or s3:// prefix. Default: printed only."""

    batch_size: int | None = None
    """Images an engine takes at once; default 16 on a CPU, 128 on a GPU."""

    precision: PrecisionName = "auto"
    """What engines compute in, as in `predict`."""

    def check(self) -> None:
        """Raise one `ConfigError` naming every value that is not allowed."""
        faults = Faults()
        for name in ("model", "data", "output"):
            faults.check_uri(name, getattr(self, name))
        if self.batch_size is not None:
            faults.check_range("batch_size", self.batch_size, 1, 4096)
        check_run(faults, self)
        check_limits(faults, self)
        faults.report()


@arrange_help
@dataclass(frozen=True, kw_only=True)
class ShowConfig(S3Config):
    """Print what a bundle is, after verifying it."""

    bundle: Annotated[str, tyro.conf.Positional]
    """The bundle: a folder or s3:// prefix."""

    verbose: bool = False
    """Show tracebacks."""

    def check(self) -> None:
        """Raise a `ConfigError` where the bundle's address is not one."""
        faults = Faults()
        faults.check_uri("bundle", self.bundle)
        faults.report()


@arrange_help
@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole job with nothing to set up: train on scikit-learn's handwritten digits, label the held-out ones."""

    output: str = "tlray-demo"
    """Local folder for the images, the bundle and the labels."""

    weights: str = "imagenet"
    """The base's start: imagenet where it can be fetched (else from scratch), none, or a weights file."""

    max_cpus: int | None = None
    """Most cores it takes; default all."""

    verbose: bool = False
    """Show what Ray and TensorFlow print, and tracebacks."""

    def check(self) -> None:
        """Raise one `ConfigError` naming every value that is not allowed."""
        faults = Faults()
        if "://" in self.output:
            faults.add(f"--output takes a local folder; got {self.output!r}")
        if self.weights not in ("imagenet", "none"):
            faults.check_uri("weights", self.weights)
        if self.max_cpus is not None:
            faults.check_range("max_cpus", self.max_cpus, 1, 4096)
        faults.report()
