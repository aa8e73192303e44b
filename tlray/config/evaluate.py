"""Options of `tlray evaluate`, `import`, `show` and `demo`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from tlray.config.shared import (
    Faults,
    LimitsConfig,
    RunConfig,
    S3Config,
    arrange_help,
    check_limits,
    check_run,
    check_store,
)
from tlray.model.precision import PrecisionName


@arrange_help
@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RunConfig, LimitsConfig, S3Config):
    """Measure a bundle on labelled images: accuracy, metrics of each class, calibration, likely label errors."""

    model: str
    """Bundle to measure: a folder or s3:// prefix."""

    data: str
    """Labelled images: class folders, a manifest, archives or tables, as in `train --data`."""

    label_column: str = "label"
    """Column of labels in manifests and tables of images, and key in the JSON sidecars of archives."""

    output: str | None = None
    """New folder or s3:// prefix for evaluation.json, report.html and more; without it, results are only printed."""

    target_precision: float = 0.95
    """Share of labels that must be right above the probability thresholds."""

    confidence: float = 0.9
    """Probability with which --target-precision is reached; the surer, the fewer labels are kept."""

    batch_size: int | None = None
    """Images per step of an engine; default 16 on a CPU, 128 on a GPU."""

    allow_cpu: bool = False
    """Go on where Ray counts a GPU that TensorFlow does not see, and compute on that machine's cores."""

    precision: PrecisionName = "auto"
    """Compute type of the engines, as in `predict`."""

    def check(self) -> None:
        """Raise one `ConfigError` naming every value that is not allowed."""
        faults = Faults()
        for name in ("model", "data", "output"):
            faults.check_uri(name, getattr(self, name))
        if self.batch_size is not None:
            faults.check_range("batch_size", self.batch_size, 1, 4096)
        faults.check_range("target_precision", self.target_precision, 0.01, 0.999)
        faults.check_range("confidence", self.confidence, 0.5, 0.999)
        check_run(faults, self)
        check_store(faults, self)
        check_limits(faults, self)
        faults.report()


@arrange_help
@dataclass(frozen=True, kw_only=True)
class ShowConfig(S3Config):
    """Verify a bundle and print a summary of it."""

    bundle: Annotated[str, tyro.conf.Positional]
    """Bundle: a folder or s3:// prefix."""

    verbose: bool = False
    """Show tracebacks."""

    def check(self) -> None:
        """Raise a `ConfigError` if the bundle's address is not allowed."""
        faults = Faults()
        faults.check_uri("bundle", self.bundle)
        check_store(faults, self)
        faults.report()


@arrange_help
@dataclass(frozen=True, kw_only=True)
class ImportConfig(LimitsConfig, S3Config):
    """Make a bundle from a Keras image classifier that was trained elsewhere."""

    model: Annotated[str, tyro.conf.Positional]
    """Keras model (.keras): images [N, S, S, 3] in, probabilities or logits [N, C] out."""

    classes: str
    """File of class names in the order of the model's outputs: one per line, or a JSON list."""

    output: str
    """New folder or s3:// prefix for the bundle."""

    scale: float = 1.0
    """The model gets pixel * SCALE + OFFSET, pixel in [0, 255]; 0.00784313725 and -1 give [-1, 1]."""

    offset: float = 0.0
    """See --scale."""

    preprocessing: Literal["none", "caffe", "torch", "tf"] = "none"
    """keras.applications' preprocessing of that name, where the model lacks it: caffe for VGG and ResNet50, torch for
    DenseNet, tf for MobileNet, Xception and Inception."""

    image_size: int | None = None
    """Side of the square input in pixels; default the model's own."""

    val_data: str | None = None
    """Labelled images to calibrate, set thresholds and measure on, as in `evaluate --data`."""

    label_column: str = "label"
    """Column of labels in manifests and tables of images, and key in the JSON sidecars of archives."""

    target_precision: float = 0.95
    """Share of labels that must be right above the bundle's probability thresholds, which --val-data sets."""

    confidence: float = 0.9
    """Probability with which --target-precision is reached; the surer, the fewer labels are kept."""

    verbose: bool = False
    """Show TensorFlow's output, and tracebacks."""

    def check(self) -> None:
        """Raise one `ConfigError` naming every value that is not allowed."""
        faults = Faults()
        for name in ("model", "classes", "output", "val_data"):
            faults.check_uri(name, getattr(self, name))
        check_store(faults, self)
        if self.scale == 0:
            faults.add("--scale takes a number other than 0; got 0.0")
        if self.preprocessing != "none" and (self.scale, self.offset) != (1.0, 0.0):
            faults.add(f"--preprocessing {self.preprocessing} takes no --scale and --offset, since it has its own")
        if self.image_size is not None:
            faults.check_range("image_size", self.image_size, 8, 2048)
        faults.check_range("target_precision", self.target_precision, 0.01, 0.999)
        faults.check_range("confidence", self.confidence, 0.5, 0.999)
        check_limits(faults, self)
        faults.report()


@arrange_help
@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Run the whole job without any setup: train on scikit-learn's handwritten digits, label the held-out ones."""

    output: str = "tlray-demo"
    """Local folder for the images, the bundle and the labels."""

    weights: str = "imagenet"
    """Initial weights of the base: imagenet if they can be downloaded (else none), none, or a weights file."""

    max_cpus: int | None = None
    """Most cores to use; default all."""

    verbose: bool = False
    """Show the output of Ray and TensorFlow, and tracebacks."""

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
