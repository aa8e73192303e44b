"""`tlray evaluate`, `import`, `show` and `demo`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from tlray.config.shared import Faults, LimitsConfig, RunConfig, S3Config, arrange_help, check_limits, check_run
from tlray.model.precision import PrecisionName


@arrange_help
@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RunConfig, LimitsConfig, S3Config):
    """Measure a bundle on labelled images: accuracy, each class, calibration, and which labels look wrong."""

    model: str
    """Bundle to measure: a folder or s3:// prefix."""

    data: str
    """Labelled images: class folders, DIR/CLASS/image, in a folder or s3:// prefix; or a manifest (.csv .jsonl
    .parquet) with the columns uri and label."""

    output: str | None = None
    """Where evaluation.json, report.html and more go: a new folder or s3:// prefix. Default: printed only."""

    target_precision: float = 0.95
    """Share of labels that are to be right: it tells from which probability on they are."""

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
        faults.check_range("target_precision", self.target_precision, 0.01, 0.999)
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
class ImportConfig(LimitsConfig, S3Config):
    """Make a bundle of a Keras image classifier that was trained elsewhere."""

    model: Annotated[str, tyro.conf.Positional]
    """The model, MODEL.keras: images [N, S, S, 3] in, probabilities or logits [N, C] out."""

    classes: str
    """File of class names in the order of its outputs: one a line, or a JSON list."""

    output: str
    """Where the bundle goes: a new folder or s3:// prefix."""

    scale: float = 1.0
    """What its input wants of a pixel in [0, 255]: pixel * SCALE + OFFSET. 0.00784313725 and -1 give [-1, 1]."""

    offset: float = 0.0
    """See --scale."""

    image_size: int | None = None
    """Side of the square input in pixels; default the model's own."""

    val_data: str | None = None
    """Labelled images to calibrate it on, take thresholds from, and measure it."""

    target_precision: float = 0.95
    """Share of labels that are to be right: the bundle tells from which probability on they are, on --val-data."""

    verbose: bool = False
    """Show what TensorFlow prints, and tracebacks."""

    def check(self) -> None:
        """Raise one `ConfigError` naming every value that is not allowed."""
        faults = Faults()
        for name in ("model", "classes", "output", "val_data"):
            faults.check_uri(name, getattr(self, name))
        if not self.model.endswith(".keras"):
            faults.add(f"the model is a .keras file; got {self.model!r}")
        if self.scale == 0:
            faults.add("--scale takes a number other than 0; got 0.0")
        if self.image_size is not None:
            faults.check_range("image_size", self.image_size, 8, 2048)
        faults.check_range("target_precision", self.target_precision, 0.01, 0.999)
        check_limits(faults, self)
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
