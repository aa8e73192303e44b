"""`tlray train`."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

from tlray.config.shared import (
    Faults,
    LimitsConfig,
    RunConfig,
    S3Config,
    arrange_help,
    check_limits,
    check_run,
    describe,
)
from tlray.model.backbones import BACKBONES, INPUT
from tlray.model.precision import PrecisionName

OptimizerName = Literal["rmsprop", "sgd", "adam"]

DEFAULT_RATES: dict[str, dict[str, float]] = {
    "head": {"rmsprop": 1e-3, "sgd": 1e-2, "adam": 1e-3},
    "finetune": {"rmsprop": 1e-5, "sgd": 1e-3, "adam": 1e-5},
}
"""Learning rate of a phase by its optimizer, where none is given."""

_DEFAULT_VIEWS = 5


_SHARING = {"num_workers", "batch_size", "gpus_per_worker"}
_AFTERWARDS = {"target_precision"}


@arrange_help
@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig, LimitsConfig, S3Config):
    """Train a classifier on labelled images: phase 1 the new head, phase 2 the top of the base too."""

    data: str
    """Training images: class folders, DIR/CLASS/image, in a folder or s3:// prefix; or a manifest (.csv .jsonl
    .parquet) with the columns uri and label."""

    output: str
    """Where the bundle goes: a new folder or s3:// prefix."""

    val_data: str | None = None
    """Class folders or a manifest to validate on, instead of a share of --data."""

    val_fraction: float = 0.15
    """Share of --data kept for validation, chosen by content hash; 0 for none."""

    test_data: str | None = None
    """Class folders or a manifest, read once, after training, and only reported."""

    backbone: Literal["inception_v3", "mobilenet_v2"] = "inception_v3"
    """Convolutional base."""

    weights: str = "imagenet"
    """The base's start: imagenet, none, or the path of a weights file without the top."""

    image_size: int | None = None
    """Side of the square input in pixels; default the backbone's own (299, 224)."""

    head_units: tuple[int, ...] = (1024,)
    """Width of each dense layer between pooling and softmax."""

    head_epochs: int = 5
    """Epochs of phase 1."""

    finetune_epochs: int = 5
    """Epochs of phase 2."""

    finetune_from: str | None = None
    """Layer after which the base is trained in phase 2; 'input' for all of it. Default: the top two blocks."""

    batchnorm: Literal["frozen", "train"] = "frozen"
    """Whether phase 2 keeps the base's BatchNorm as it is or trains it (for training from scratch)."""

    head_optimizer: OptimizerName = "rmsprop"
    """Optimizer of phase 1."""

    finetune_optimizer: OptimizerName = "sgd"
    """Optimizer of phase 2; sgd has momentum 0.9."""

    lr_head: float | None = None
    """Learning rate of phase 1; default 1e-3 (sgd 1e-2)."""

    lr_finetune: float | None = None
    """Learning rate of phase 2; default 1e-3 for sgd, else 1e-5."""

    batch_size: int = 32
    """Images a worker takes in one step."""

    num_workers: int = 1
    """Data-parallel workers, one a GPU."""

    gpus_per_worker: Literal[0, 1] | None = None
    """GPUs a worker takes; default 1 where the cluster has that many, else 0."""

    shear: float = 10.0
    """Training images are sheared by up to this many degrees either way."""

    zoom: float = 0.2
    """Training images are zoomed by 1 - zoom to 1 + zoom, each axis on its own."""

    horizontal_flip: bool = True
    """Half of the training images are mirrored."""

    seed: int = 0
    """Seeds the head's weights, the order of images, their augmentation and dropout."""

    schedule: Literal["constant", "cosine"] = "constant"
    """How each phase's learning rate goes on after its warm-up."""

    warmup_epochs: float = 0.0
    """Epochs of each phase over which its learning rate rises from 0."""

    early_stopping: int | None = None
    """End a phase that validation has not found better for this many epochs."""

    class_weights: Literal["none", "balanced"] = "none"
    """'balanced' lets every class count the same in the loss, however many images it has."""

    label_smoothing: float = 0.0
    """Share of each target that is spread over all classes."""

    dropout: float = 0.0
    """Share of each dense layer's outputs that is dropped in training."""

    clip_norm: float | None = None
    """Largest global norm of the gradient; default none."""

    precision: PrecisionName = "auto"
    """What convolutions and products take their inputs in; weights, sums and softmax stay float32."""

    cache: Literal["auto", "on", "off"] = "auto"
    """Compute the frozen base once and train on what it gives; 'off' computes it every epoch."""

    views: int | None = None
    """Augmented views of each training image in the cache, taken in turn; default 5, at most one an epoch."""

    cache_dir: str | None = None
    """Where the cache goes, a folder or s3:// prefix; default ~/.cache/tlray for a local run."""

    storage_path: str | None = None
    """Where checkpoints go, a folder or s3:// prefix, until the bundle is saved; default OUTPUT-checkpoints."""

    target_precision: float = 0.95
    """Share of labels that are to be right: the bundle tells from which probability on they are, on validation."""

    max_failures: int = 3
    """How often lost workers are started again, from the last finished epoch; -1 for without end."""

    max_failed: float = 1.0
    """Most images that may be unusable: a share up to 1, or a count above 1."""

    collective_timeout: float = 300.0
    """Seconds that a worker waits for the others inside one step before it gives up."""

    mlflow_uri: str | None = None
    """MLflow tracking server to log parameters and epochs to (pip install 'tlray[mlflow]')."""

    @property
    def resolved_image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.image_size or BACKBONES[self.backbone].image_size_px

    @property
    def resolved_finetune_from(self) -> str:
        """Name of the last layer of the base that phase 2 leaves frozen."""
        return self.finetune_from or BACKBONES[self.backbone].default_boundary

    @property
    def resolved_lr_head(self) -> float:
        """Learning rate of phase 1."""
        return self.lr_head if self.lr_head is not None else DEFAULT_RATES["head"][self.head_optimizer]

    @property
    def resolved_lr_finetune(self) -> float:
        """Learning rate of phase 2."""
        return self.lr_finetune if self.lr_finetune is not None else DEFAULT_RATES["finetune"][self.finetune_optimizer]

    @property
    def resolved_views(self) -> int:
        """Views of each training image in the cache."""
        epochs = self.head_epochs + self.finetune_epochs
        return min(self.views or _DEFAULT_VIEWS, epochs)

    @property
    def resolved_storage_path(self) -> str:
        """Where checkpoints go."""
        return self.storage_path or f"{self.output.rstrip('/')}-checkpoints"

    def check(self) -> None:
        """Raise one `ConfigError` naming every value that is not allowed."""
        backbone = BACKBONES[self.backbone]
        faults = Faults()
        for name in ("data", "output", "val_data", "test_data", "cache_dir", "storage_path"):
            faults.check_uri(name, getattr(self, name))
        faults.check_range("val_fraction", self.val_fraction, 0, 0.9)
        if self.weights not in ("imagenet", "none"):
            faults.check_uri("weights", self.weights)
        faults.check_range("image_size", self.resolved_image_size, backbone.min_image_size_px, 2048)
        for units in self.head_units:
            faults.check_range("head_units", units, 1, 65536)
        faults.check_range("head_epochs", self.head_epochs, 0, 10_000)
        faults.check_range("finetune_epochs", self.finetune_epochs, 0, 10_000)
        if self.head_epochs == 0 and self.finetune_epochs == 0:
            faults.add("--head-epochs and --finetune-epochs: at least one of them must be above 0")
        if self.resolved_finetune_from not in backbone.boundaries:
            allowed = ", ".join(backbone.boundaries)
            faults.add(f"--finetune-from takes {allowed} for {self.backbone}; got {self.finetune_from!r}")
        for name in ("lr_head", "lr_finetune"):
            faults.check_positive(name, getattr(self, f"resolved_{name}"))
        faults.check_range("batch_size", self.batch_size, 1, 65536)
        faults.check_range("num_workers", self.num_workers, 1, 4096)
        faults.check_range("shear", self.shear, 0, 89)
        faults.check_range("zoom", self.zoom, 0, 0.99)
        faults.check_range("seed", self.seed, 0, 2**32 - 1)
        faults.check_range("warmup_epochs", self.warmup_epochs, 0, 10_000)
        if self.early_stopping is not None:
            faults.check_range("early_stopping", self.early_stopping, 1, 10_000)
            if self.val_fraction == 0 and self.val_data is None:
                faults.add("--early-stopping needs validation images; give --val-data, or a --val-fraction above 0")
        faults.check_range("label_smoothing", self.label_smoothing, 0, 0.99)
        faults.check_range("dropout", self.dropout, 0, 0.99)
        if self.clip_norm is not None:
            faults.check_positive("clip_norm", self.clip_norm)
        if self.cache == "on":
            if self.resolved_finetune_from == INPUT and self.head_epochs == 0:
                faults.add("--cache on needs a part of the base that stays frozen; got --finetune-from input alone")
            if self.address not in (None, "local") and self.cache_dir is None:
                faults.add("--cache on needs a --cache-dir that all machines of the cluster reach")
        if self.views is not None:
            faults.check_range("views", self.views, 1, 1000)
        faults.check_range("target_precision", self.target_precision, 0.01, 0.999)
        faults.check_range("max_failures", self.max_failures, -1, 1_000_000)
        faults.check_range("max_failed", self.max_failed, 0, 10**12)
        faults.check_positive("collective_timeout", self.collective_timeout)
        if self.mlflow_uri is not None and importlib.util.find_spec("mlflow") is None:
            faults.add("--mlflow-uri needs MLflow, which is not installed; pip install 'tlray[mlflow]'")
        check_run(faults, self)
        check_limits(faults, self)
        faults.report()


def resolve(config: TrainConfig) -> dict[str, Any]:
    """Values that a config leaves to defaults which depend on others."""
    return {
        "image_size": config.resolved_image_size,
        "finetune_from": config.resolved_finetune_from,
        "lr_head": config.resolved_lr_head,
        "lr_finetune": config.resolved_lr_finetune,
        "views": config.resolved_views,
    }


def describe_run(config: TrainConfig) -> dict[str, Any]:
    """What a checkpoint must have in common with a config to go on under it: all but how the work is shared out.

    What is only asked of the finished network doesn't count either.
    """
    return {name: value for name, value in describe(config).items() if name not in _SHARING | _AFTERWARDS}
