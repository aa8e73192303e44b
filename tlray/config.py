"""What each command can be told: frozen dataclasses whose attribute docstrings are the command line's help.

`check()` looks at values only (no file, no network, no Ray) and reports every fault at once as one `ConfigError`.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, TypeVar

import tyro

from tlray.backbones import BACKBONES, INPUT
from tlray.checks import SCHEMES, Faults
from tlray.limits import MAX_BYTES, MAX_PIXELS, PILLOW_MAX_PIXELS

OptimizerName = Literal["rmsprop", "sgd", "adam"]

DEFAULT_RATES: dict[str, dict[str, float]] = {
    "head": {"rmsprop": 1e-3, "sgd": 1e-2, "adam": 1e-3},
    "finetune": {"rmsprop": 1e-5, "sgd": 1e-3, "adam": 1e-5},
}
"""Learning rate of a phase by its optimizer, where none is given."""

_DEFAULT_VIEWS = 5

_PLACES = {
    "config", "address", "max_cpus", "verbose", "cache", "cache_dir", "storage_path", "max_failures", "max_failed",
    "collective_timeout", "mlflow_uri",
}  # fmt: skip
_SHARING = {"num_workers", "batch_size", "gpus_per_worker"}

T = TypeVar("T")


def _order_own_fields_first(cls: type[T]) -> type[T]:
    """List a command's own options before the shared ones in its help; all are keyword-only, so nothing else moves."""
    fields: dict[str, Any] = cls.__dataclass_fields__  # type: ignore[attr-defined]
    own = [name for name in fields if name in cls.__annotations__]
    shared = [name for name in fields if name not in cls.__annotations__]
    cls.__dataclass_fields__ = {name: fields[name] for name in own + shared}  # type: ignore[attr-defined]
    return cls


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every command on Ray takes."""

    config: str | None = None
    """YAML file of these options; flags win over it."""

    address: str | None = None
    """Ray cluster to join; else RAY_ADDRESS, else a local one of its own."""

    max_cpus: int | None = None
    """Most cores a local run takes; default all."""

    verbose: bool = False
    """Show what Ray and TensorFlow print, and tracebacks."""


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """Limits that hold before an image is decoded."""

    max_bytes: int = MAX_BYTES
    """Largest encoded image in bytes; a larger one is TOO_LARGE."""

    max_pixels: int = MAX_PIXELS
    """Most pixels that a header may tell of; more is BOMB."""


@_order_own_fields_first
@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig, LimitsConfig):
    """Train a classifier on class folders: phase 1 the new head, phase 2 the top of the base too."""

    data: str
    """Training images, DIR/CLASS/image: a folder or s3:// prefix."""

    output: str
    """Where the bundle goes: a new folder or s3:// prefix."""

    val_data: str | None = None
    """Class folders to validate on, instead of a share of --data."""

    val_fraction: float = 0.15
    """Share of --data kept for validation, chosen by content hash; 0 for none."""

    test_data: str | None = None
    """Class folders read once, after training, and only reported."""

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

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What convolutions and products take their inputs in; weights, sums and softmax stay float32."""

    cache: Literal["auto", "on", "off"] = "auto"
    """Compute the frozen part of the base once and train on what it gives; 'off' computes it every epoch."""

    views: int | None = None
    """Augmented views of each training image in the cache, taken in turn; default 5, at most one an epoch."""

    cache_dir: str | None = None
    """Where the cache goes, a folder or s3:// prefix; default ~/.cache/tlray for a local run."""

    storage_path: str | None = None
    """Where checkpoints go, a folder or s3:// prefix, until the bundle is saved; default OUTPUT-checkpoints."""

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
        faults.check_range("max_failures", self.max_failures, -1, 1_000_000)
        faults.check_range("max_failed", self.max_failed, 0, 10**12)
        faults.check_positive("collective_timeout", self.collective_timeout)
        if self.mlflow_uri is not None and importlib.util.find_spec("mlflow") is None:
            faults.add("--mlflow-uri needs MLflow, which is not installed; pip install 'tlray[mlflow]'")
        _check_run(faults, self)
        _check_limits(faults, self)
        faults.report()


@_order_own_fields_first
@dataclass(frozen=True, kw_only=True)
class PredictConfig(RunConfig, LimitsConfig):
    """Label images with a bundle: one Parquet row for every input, or the answer for a single file."""

    model: str
    """Bundle to label with: a folder or s3:// prefix."""

    input: tuple[str, ...]
    """What to label: folders, files, s3:// prefixes or objects."""

    output: str | None = None
    """Where labels go: a new folder or s3:// prefix. A single file may do without: its answer is printed."""

    top_k: int = 0
    """Also write the K most probable classes of each image; 0 for none."""

    batch_size: int = 32
    """Images the engine takes at once."""

    rows_per_part: int = 8192
    """Most rows in one Parquet part."""

    def check(self) -> None:
        """Raise one `ConfigError` naming every value that is not allowed."""
        faults = Faults()
        for name in ("model", "output"):
            faults.check_uri(name, getattr(self, name))
        if not self.input:
            faults.add(f"--input takes one or more of: {SCHEMES}; got nothing")
        for uri in self.input:
            faults.check_uri("input", uri)
        faults.check_range("top_k", self.top_k, 0, 1000)
        faults.check_range("batch_size", self.batch_size, 1, 4096)
        faults.check_range("rows_per_part", self.rows_per_part, 1, 1_000_000)
        _check_run(faults, self)
        _check_limits(faults, self)
        faults.report()


@_order_own_fields_first
@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RunConfig, LimitsConfig):
    """Measure a bundle on class folders: accuracy, precision, recall, F1 and the confusion matrix."""

    model: str
    """Bundle to measure: a folder or s3:// prefix."""

    data: str
    """Labelled images, DIR/CLASS/image: a folder or s3:// prefix."""

    output: str | None = None
    """Where evaluation.json and confusion.png go: a new folder or s3:// prefix. Default: printed only."""

    batch_size: int = 32
    """Images the engine takes at once."""

    def check(self) -> None:
        """Raise one `ConfigError` naming every value that is not allowed."""
        faults = Faults()
        for name in ("model", "data", "output"):
            faults.check_uri(name, getattr(self, name))
        faults.check_range("batch_size", self.batch_size, 1, 4096)
        _check_run(faults, self)
        _check_limits(faults, self)
        faults.report()


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
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


def describe(config: TrainConfig | PredictConfig | EvaluateConfig) -> dict[str, Any]:
    """What of a config decides the result, as plain JSON values; where and how loudly it runs is left out."""
    return {name: value for name, value in asdict(config).items() if name not in _PLACES}


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
    """What a checkpoint must have in common with a config to go on under it: all but how the work is shared out."""
    return {name: value for name, value in describe(config).items() if name not in _SHARING}


def _check_run(faults: Faults, config: RunConfig) -> None:
    if config.max_cpus is not None:
        faults.check_range("max_cpus", config.max_cpus, 1, 4096)
        if config.address is not None:
            faults.add("--max-cpus bounds a local run; it cannot be given with --address")


def _check_limits(faults: Faults, config: LimitsConfig) -> None:
    faults.check_range("max_bytes", config.max_bytes, 1, 2**31)
    faults.check_range("max_pixels", config.max_pixels, 1, PILLOW_MAX_PIXELS)
