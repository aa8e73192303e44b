"""Options of `tlray train`."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from tlray.config.recipes import OptimizerName, Recipe, RecipeName, TuneName, get_recipe
from tlray.config.shared import (
    Faults,
    LimitsConfig,
    RunConfig,
    S3Config,
    arrange_help,
    check_limits,
    check_run,
    check_store,
    describe,
)
from tlray.model.backbones import BACKBONES, INPUT
from tlray.model.precision import PrecisionName

SelectName = Literal["loss", "accuracy", "macro_f1"]

_DEFAULT_VIEWS = 5
_SETTINGS = 30
_VAL_FRACTION = 0.15
_FOLDS = 5
_MAX_FOLDED = 10_000
"""Images from which on a held-out share costs little accuracy, and a trial of phase 2 much time."""

_FOLDS_NEED = (
    "a solved linear head that phase 1 leaves nearly as it is, and phases that are compared at their ends: --recipe "
    "tuned, --select loss and --schedule cosine, without --head-units, --lr-head, --early-stopping, --tune off and "
    "--cache off"
)
_RECIPE_OPTIONS = (
    "head_epochs", "lr_head", "finetune_epochs", "lr_finetune", "schedule", "warmup_epochs", "dropout", "mixup",
    "clip_norm",
)  # fmt: skip
_SHARING = {"num_workers", "batch_size", "gpus_per_worker"}
_AFTERWARDS = {"target_precision", "confidence", "trials"}


@arrange_help
@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig, LimitsConfig, S3Config):
    """Train an image classifier: a new head (phase 1), then also the top of the convolutional base (phase 2)."""

    data: str | tuple[str, ...]
    """Training images, one or several of: a folder or s3:// prefix of class folders (DIR/CLASS/image), a manifest
    (.csv .jsonl .parquet) with the columns uri and label, an archive (.tar .zip), a table of images (.parquet), a
    folder of archives or tables."""

    output: str
    """New folder or s3:// prefix for the bundle."""

    label_column: str = "label"
    """Column of labels in manifests and tables of images, and key in the JSON sidecars of archives."""

    val_data: str | None = None
    """Validation images, in any form of --data; default folds, or a share of --data."""

    folds: int | None = None
    """Folds of a cross-validation, which holds out no image: each is predicted by a head that was solved without its
    fold, phase 2 is tried without one fold, and the model is trained on all images; 0 for none.
    Default 5 for up to 10,000 images, if the head is solved, --lr-head is its own, phase 2 can be cached, and neither
    --val-data nor --val-fraction is given."""

    trials: int = 1
    """Trials of phase 2, each without another fold, up to one a fold. The first decides whether phase 2 is trained; the
    others give more images to calibrate and to choose thresholds on, and take as long as the first."""

    val_fraction: float | None = None
    """Share of --data held out for validation, chosen by content hash; 0 for none; default 0.15, without folds."""

    group_column: str | None = None
    """Column of a --data manifest, such as patient or video: images of one value stay on one side of the split."""

    group_by_regex: str | None = None
    """The same by a regular expression on addresses: images with one first group, or whole match, stay together."""

    test_data: str | None = None
    """Test images, in any form of --data; measured once, after training."""

    backbone: Literal["inception_v3", "mobilenet_v2", "efficientnet_v2_b0", "resnet50_v2"] = "inception_v3"
    """Convolutional base."""

    weights: str = "imagenet"
    """Initial weights of the base: imagenet, none, or a weights file without the top."""

    image_size: int | None = None
    """Side of the square input in pixels; default 299 for inception_v3, 224 for the others."""

    recipe: RecipeName = "tuned"
    """Defaults of the options on learning.
    tuned: a linear head, solved with cross-validated settings, then a regularized phase 2 that is kept if it gains;
    seed: 5 epochs each of RMSprop into 1,024 units and of SGD, at constant rates."""

    tune: TuneName = "auto"
    """auto: by --recipe tuned, solve a linear head on cached features before phase 1, with the best of 30 settings;
    a number: of so many; off: start at random."""

    head_units: tuple[int, ...] = ()
    """Units of each dense layer between pooling and softmax; default none, but 1024 for --recipe seed."""

    head_epochs: int | None = None
    """Epochs of phase 1; default 5, by --recipe tuned 3 from a solved head and 20 for dense layers."""

    finetune_epochs: int | None = None
    """Epochs of phase 2; default 12 for --recipe tuned, 5 for seed."""

    finetune_from: str | None = None
    """Last layer of the base that phase 2 keeps frozen; input trains all of it.
    Default: train the top blocks, 12% to 30% of the multiply-adds."""

    batchnorm: Literal["frozen", "train"] = "frozen"
    """Keep the base's BatchNorm layers frozen in phase 2, or train them (for training from scratch)."""

    head_optimizer: OptimizerName = "rmsprop"
    """Optimizer of phase 1."""

    finetune_optimizer: OptimizerName = "sgd"
    """Optimizer of phase 2; sgd has momentum 0.9, Nesterov's by --recipe tuned."""

    lr_head: float | None = None
    """Learning rate of phase 1; default 1e-3, by --recipe tuned 1e-5 from a solved head and 1e-4 for dense layers;
    for sgd 10 times that."""

    lr_finetune: float | None = None
    """Learning rate of phase 2; default 1e-2 for sgd by --recipe tuned, 1e-3 by seed, else 1e-5."""

    batch_size: int = 32
    """Images per worker and step."""

    num_workers: int = 1
    """Data-parallel workers."""

    gpus_per_worker: Literal[0, 1] | None = None
    """GPUs per worker; default 1 if the cluster has enough, else 0."""

    allow_cpu: bool = False
    """Go on where Ray counts a GPU that TensorFlow does not see, and compute on that machine's cores."""

    shear: float = 10.0
    """Shear training images by up to this many degrees in either direction."""

    zoom: float = 0.2
    """Zoom training images by a factor from 1 - ZOOM to 1 + ZOOM, each axis separately."""

    horizontal_flip: bool = True
    """Mirror half of the training images."""

    seed: int = 0
    """Seed of the head's initial weights, the order of images, augmentation and dropout."""

    schedule: Literal["auto", "constant", "cosine"] = "auto"
    """Learning rate schedule of each phase after its warm-up; auto: cosine for --recipe tuned, constant for seed."""

    warmup_epochs: float | None = None
    """Epochs of linear warm-up at the start of each phase;
    default 1, at most a third of the phase, for --recipe tuned, 0 for seed."""

    select: SelectName = "loss"
    """Validation figure that chooses the best epoch; loss counts images as --class-weights does,
    and by --recipe tuned compares phase 1 with the end of phase 2."""

    early_stopping: int | None = None
    """End a phase after this many epochs without a better validation figure of --select."""

    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weight the loss so that every class counts the same, however many images it has."""

    label_smoothing: float = 0.0
    """Share of each target to spread over all classes."""

    dropout: float | None = None
    """Dropout rate of the dense layers' outputs; where there are none, of the pooled features in phase 2;
    default 0.3 for --recipe tuned, 0 for seed."""

    mixup: float | None = None
    """Mix neighbouring images and their targets in phase 2, by shares from Beta(MIXUP, MIXUP), 0 for no mixing;
    default 0.2 for --recipe tuned, 0 for seed."""

    clip_norm: float | None = None
    """Clip the gradient to this global norm, 0 for no clipping; default 1 for --recipe tuned, 0 for seed."""

    precision: PrecisionName = "auto"
    """Input type of convolutions and matrix products; weights, sums and softmax stay float32."""

    cache: Literal["auto", "on", "off"] = "auto"
    """Compute the frozen base once and train on cached features; off: in every epoch; auto: the cheaper."""

    views: int | None = None
    """Augmented views of each training image in the cache, used in turn; default 5, at most one per epoch."""

    cache_dir: str | None = None
    """Folder or s3:// prefix for the cache; default ~/.cache/tlray for a local run, else no cache."""

    storage_path: str | None = None
    """Folder or s3:// prefix for checkpoints until the bundle is saved; default OUTPUT-checkpoints."""

    checkpoint_every: float = 600.0
    """Seconds between checkpoints within an epoch; 0 writes one after each epoch only."""

    target_precision: float = 0.95
    """Share of labels that must be right above the bundle's probability thresholds, which validation sets."""

    confidence: float = 0.9
    """Probability with which --target-precision is reached; the surer, the fewer labels are kept."""

    max_failures: int = 3
    """Most restarts after workers are lost, each from the last checkpoint; -1 for no limit."""

    max_failed: float = 1.0
    """Most images that may be unusable: a share up to 1, or a count above 1."""

    collective_timeout: float = 300.0
    """Seconds that a worker waits for the others within a step before it fails."""

    allow_leakage: bool = False
    """Keep validation and test images that are training images too; what is measured on them says nothing."""

    unsafe_lock: bool = False
    """Use an object store without conditional writes, where a second training of the output may not be kept out."""

    mlflow_uri: str | None = None
    """MLflow tracking server for parameters and metrics of each epoch (pip install 'tlray[mlflow]')."""

    def __post_init__(self) -> None:
        """Make several `data` of which there is one, as the command line gives them, one."""
        if not isinstance(self.data, str) and len(self.data) == 1:
            object.__setattr__(self, "data", self.data[0])

    @property
    def data_roots(self) -> tuple[str, ...]:
        """`data` as a tuple."""
        return (self.data,) if isinstance(self.data, str) else tuple(self.data)

    @property
    def resolved_image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.image_size or BACKBONES[self.backbone].image_size_px

    @property
    def resolved_finetune_from(self) -> str:
        """Name of the last layer of the base that phase 2 leaves frozen."""
        return self.finetune_from or BACKBONES[self.backbone].default_boundary

    def choose_recipe(self, *, solvable: bool = True) -> Recipe:
        """Return the recipe's values, replaced by those that were given.

        Args:
            solvable: features are cached, and few enough to solve a linear head on them.
        """
        solved = solvable and self.tune != "off" and self.cache != "off"
        chosen = get_recipe(self.recipe, self.head_units, self.head_optimizer, self.finetune_optimizer, solved=solved)
        given = {name: value for name in _RECIPE_OPTIONS if (value := getattr(self, name)) not in (None, "auto")}
        return replace(chosen, **given)

    def count_views(self, recipe: Recipe) -> int:
        """Return the augmented views of each training image in the cache."""
        return min(self.views or _DEFAULT_VIEWS, recipe.head_epochs + recipe.finetune_epochs)

    @property
    def held_out_fraction(self) -> float:
        """Share of --data that is held out for validation where there are no folds."""
        return _VAL_FRACTION if self.val_fraction is None else self.val_fraction

    def compares_ends(self, recipe: Recipe) -> bool:
        """Return whether phase 2's last epoch is compared with phase 1, not the best epoch of all taken."""
        return (
            recipe.must_gain and self.select == "loss" and recipe.schedule == "cosine" and self.early_stopping is None
        )

    @property
    def num_settings(self) -> int:
        """Number of settings of a solved head that are tried."""
        return self.tune if isinstance(self.tune, int) else _SETTINGS

    def choose_folds(self, num_images: int, recipe: Recipe) -> int:
        """Return the number of folds for a number of training images; 0 for none."""
        if self.folds is not None:
            return self.folds
        held_out = self.val_data is not None or self.val_fraction is not None
        cached = self.resolved_finetune_from != INPUT or not recipe.finetune_epochs
        fits = self._may_fold(recipe) and cached and num_images <= _MAX_FOLDED
        return _FOLDS if fits and not held_out else 0

    def _may_fold(self, recipe: Recipe) -> bool:
        return recipe.solved and self.compares_ends(recipe) and self.lr_head is None

    @property
    def work_folder(self) -> str:
        """Folder or s3:// prefix beside the output: its lock and, by default, its checkpoints while it is trained."""
        return f"{self.output.rstrip('/')}-checkpoints"

    @property
    def resolved_storage_path(self) -> str:
        """Folder or s3:// prefix for checkpoints."""
        return self.storage_path or self.work_folder

    def check(self) -> None:
        """Raise one `ConfigError` naming every value that is not allowed."""
        backbone, recipe = BACKBONES[self.backbone], self.choose_recipe()
        faults = Faults()
        for name in ("output", "val_data", "test_data", "cache_dir", "storage_path"):
            faults.check_uri(name, getattr(self, name))
        for root in self.data_roots:
            faults.check_uri("data", root)
        if not self.data_roots:
            faults.add("--data needs at least one folder, manifest, archive or table")
        if self.val_fraction is not None:
            faults.check_range("val_fraction", self.val_fraction, 0, 0.9)
        if self.folds:
            faults.check_range("folds", self.folds, 2, 100)
            if self.val_data is not None or self.val_fraction is not None:
                faults.add("--folds, --val-data and --val-fraction: give one of them, or --folds 0")
            if not self._may_fold(recipe):
                faults.add(f"--folds needs {_FOLDS_NEED}")
            if self.resolved_finetune_from == INPUT and recipe.head_epochs == 0:
                faults.add("--folds needs a frozen part of the base; got --finetune-from input and --head-epochs 0")
        faults.check_range("trials", self.trials, 1, 100)
        if self.trials > 1 and self.folds == 0:
            faults.add(f"--trials above 1 needs folds; got {self.trials} and --folds 0")
        if self.group_column is not None and self.group_by_regex is not None:
            faults.add("--group-column and --group-by-regex: give one of them")
        if self.group_by_regex is not None:
            try:
                re.compile(self.group_by_regex)
            except re.error as error:
                faults.add(f"--group-by-regex {self.group_by_regex!r} is no regular expression: {error}")
        if self.weights not in ("imagenet", "none"):
            faults.check_uri("weights", self.weights)
        faults.check_range("image_size", self.resolved_image_size, backbone.min_image_size_px, 2048)
        if isinstance(self.tune, int):
            faults.check_range("tune", self.tune, 6, 300)
        for units in recipe.head_units:
            faults.check_range("head_units", units, 1, 65536)
        faults.check_range("head_epochs", recipe.head_epochs, 0, 10_000)
        faults.check_range("finetune_epochs", recipe.finetune_epochs, 0, 10_000)
        if recipe.head_epochs == 0 and recipe.finetune_epochs == 0:
            faults.add("--head-epochs and --finetune-epochs: at least one of them must be above 0")
        if self.resolved_finetune_from not in backbone.boundaries:
            allowed = ", ".join(backbone.boundaries)
            faults.add(f"--finetune-from takes {allowed} for {self.backbone}; got {self.finetune_from!r}")
        for name in ("lr_head", "lr_finetune"):
            faults.check_positive(name, getattr(recipe, name))
        faults.check_range("batch_size", self.batch_size, 1, 65536)
        faults.check_range("num_workers", self.num_workers, 1, 4096)
        faults.check_range("shear", self.shear, 0, 89)
        faults.check_range("zoom", self.zoom, 0, 0.99)
        faults.check_range("seed", self.seed, 0, 2**32 - 1)
        faults.check_range("warmup_epochs", recipe.warmup_epochs, 0, 10_000)
        if self.early_stopping is not None:
            faults.check_range("early_stopping", self.early_stopping, 1, 10_000)
            if self.held_out_fraction == 0 and self.val_data is None:
                faults.add("--early-stopping needs validation images; give --val-data, or a --val-fraction above 0")
        faults.check_range("label_smoothing", self.label_smoothing, 0, 0.99)
        faults.check_range("dropout", recipe.dropout, 0, 0.99)
        faults.check_range("mixup", recipe.mixup, 0, 100)
        faults.check_range("clip_norm", recipe.clip_norm, 0, 1e9)
        if self.cache == "on":
            if self.resolved_finetune_from == INPUT and recipe.head_epochs == 0:
                faults.add("--cache on needs a frozen part of the base; got --finetune-from input and --head-epochs 0")
            if self.address not in (None, "local") and self.cache_dir is None:
                faults.add("--cache on needs a --cache-dir that all machines of the cluster reach")
        if self.views is not None:
            faults.check_range("views", self.views, 1, 1000)
        faults.check_range("target_precision", self.target_precision, 0.01, 0.999)
        faults.check_range("confidence", self.confidence, 0.5, 0.999)
        faults.check_range("max_failures", self.max_failures, -1, 1_000_000)
        faults.check_range("max_failed", self.max_failed, 0, 10**12)
        faults.check_positive("collective_timeout", self.collective_timeout)
        faults.check_range("checkpoint_every", self.checkpoint_every, 0, 1e6)
        if self.mlflow_uri is not None and importlib.util.find_spec("mlflow") is None:
            faults.add("--mlflow-uri needs MLflow, which is not installed; pip install 'tlray[mlflow]'")
        check_run(faults, self)
        check_store(faults, self)
        check_limits(faults, self)
        faults.report()


def resolve(config: TrainConfig, recipe: Recipe, folds: int = 0) -> dict[str, Any]:
    """Return the options whose defaults depend on other options or on the images, by name."""
    return {
        "folds": folds,
        "val_fraction": None if folds or config.val_data is not None else config.held_out_fraction,
        "image_size": config.resolved_image_size,
        "finetune_from": config.resolved_finetune_from,
        "tune": config.tune if recipe.solved else "off",
        "head_units": recipe.head_units,
        **{name: getattr(recipe, name) for name in _RECIPE_OPTIONS},
        "views": config.count_views(recipe),
    }


def describe_run(config: TrainConfig) -> dict[str, Any]:
    """Return the options that must match for a run to resume from a checkpoint.

    Options that only divide the work, or only apply to the trained network, are left out.
    """
    return {name: value for name, value in describe(config).items() if name not in _SHARING | _AFTERWARDS}
