"""The task of a training worker; without TensorFlow, so that the driver can make it."""

from __future__ import annotations

import secrets
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import ray

from tlray.cluster.resources import WorkerResources
from tlray.config import Recipe, ScheduleName, SelectName, TrainConfig
from tlray.features.cache import Cache, Work
from tlray.images.augment import Augmentation, make_keys
from tlray.metrics.ood import MAX_HELD, draw_reference_rows
from tlray.model.manifest import PhaseName, hash_json
from tlray.model.precision import Precision
from tlray.sources.places import Places
from tlray.storage import S3Options
from tlray.training.dataset import Images, Roles
from tlray.training.loader import ImageSource
from tlray.training.schedule import draw_rows, weigh_classes

if TYPE_CHECKING:
    from tlray.model.network import Weights
    from tlray.training.predictions import RowPredictions

_GOLDEN_CANDIDATES = 16
_KEEP_BYTES = 8 * 2**30
_CALIBRATION_ROWS = 50_000
_CALIBRATION_NUMBERS = 100_000_000
"""Most probabilities of validation images: float32, 400 MB; with 10,000 classes 10,000 images are enough for T."""


@dataclass(frozen=True)
class PhasePlan:
    """One phase: at most `epochs`, a peak `learning_rate`, and inputs from the feature cache if `cached`.

    Attributes:
        nesterov: SGD's momentum is Nesterov's.
        mixup: parameter of the mixtures; 0 for none.
    """

    name: PhaseName
    epochs: int
    optimizer: str
    learning_rate: float
    schedule: ScheduleName
    warmup_epochs: float
    nesterov: bool
    mixup: float
    cached: bool


@dataclass(frozen=True)
class BuildTask:
    """Features that workers compute before they train.

    Attributes:
        indices: of `works`, see `features.build.list_indices`.
        num_builders: most workers that compute.
        places: Ray reference to the places of all images.
    """

    cache: Cache
    works: list[Work]
    indices: list[int]
    num_builders: int
    places: ray.ObjectRef[Places]


@dataclass(frozen=True)
class TrainingTask:
    """Everything a worker needs to know.

    Attributes:
        class_weights: float32 `[C]`, weight of a training row by label.
        batch_size: images of one worker in one step.
        num_views: number of views in the cache; epoch e trains on view e mod this.
        seed: of weights, order and dropout.
        labels: int32 by row id.
        keys: uint64 by row id, of `images.augment.make_keys`.
        train_rows, val_rows, test_rows: row ids by role.
        val_role: role of the validation rows in the cache.
        split: sha256 over the images of each role.
        plan: sha256 over the phases and the rest of the recipe.
        reference_rows: training rows that the out-of-distribution score is fitted to.
        calibration_rows: validation rows that the finished network is calibrated and measured on.
        held_rows: validation rows that set the scales of the out-of-distribution score.
        golden_rows: candidates for golden images.
        base_weights: Ray reference to the weights file; None for random weights.
        head_start: weights of the head before phase 1, by name; None for random ones.
        out_of_fold: predictions of training rows by heads that were solved without their fold; None without folds.
        trials: the same training without one fold each; the first tells whether phase 2 is worth it. None without
            phase 2 or folds.
        must_gain: of phase 2 the last epoch is kept, and only if it lowers the validation loss of phase 1.
        images: source of batches for phases that are not cached.
        cache: None if no phase is cached.
    """

    backbone: str
    image_size_px: int
    head_units: tuple[int, ...]
    finetune_from: str
    train_batchnorm: bool
    classes: tuple[str, ...]
    class_weights: npt.NDArray[np.float32]
    phases: tuple[PhasePlan, ...]
    batch_size: int
    augmentation: Augmentation
    num_views: int
    seed: int
    precision: Precision
    label_smoothing: float
    dropout: float
    clip_norm: float
    early_stopping: int | None
    checkpoint_every_s: float
    select: SelectName
    labels: npt.NDArray[np.int32]
    keys: npt.NDArray[np.uint64]
    train_rows: npt.NDArray[np.int64]
    val_rows: npt.NDArray[np.int64]
    val_role: str
    test_rows: npt.NDArray[np.int64]
    split: str
    plan: str
    reference_rows: npt.NDArray[np.int64]
    calibration_rows: npt.NDArray[np.int64]
    held_rows: npt.NDArray[np.int64]
    golden_rows: npt.NDArray[np.int64]
    base_weights: ray.ObjectRef[bytes] | None
    head_start: Weights | None
    out_of_fold: RowPredictions | None
    trials: tuple[TrainingTask, ...]
    must_gain: bool
    images: ImageSource
    cache: Cache | None


@dataclass(frozen=True)
class WorkerSettings:
    """Settings of a worker, known before its task.

    Attributes:
        channel: handle of the `Channel` actor.
        num_threads: of TensorFlow, at most those of its machine's share.
        collective_timeout_s: maximum wait for other workers in one sum.
        options: of requests to S3.
        allow_cpu: compute on cores where TensorFlow does not see a booked GPU.
    """

    channel: Any
    checkpoints: str
    num_threads: int
    collective_timeout_s: float
    options: S3Options
    allow_cpu: bool


def make_training_task(
    config: TrainConfig,
    recipe: Recipe,
    resources: WorkerResources,
    images: Images,
    roles: Roles,
    *,
    precision: Precision,
    augmentation: Augmentation,
    cache: Cache | None,
    places: ray.ObjectRef[Places],
    base_weights: ray.ObjectRef[bytes] | None,
) -> TrainingTask:
    """Make the task of all workers; arguments as the attributes of `TrainingTask` and `ImageSource`."""
    train_rows, val_rows = roles.rows["train"], roles.rows["val"]
    num_classes = len(images.classes)
    class_weights = np.ones(num_classes, np.float32)
    if config.class_weights == "balanced":
        class_weights = weigh_classes(images.labels[train_rows], num_classes)
    return TrainingTask(
        backbone=config.backbone,
        image_size_px=config.resolved_image_size,
        head_units=recipe.head_units,
        finetune_from=config.resolved_finetune_from,
        train_batchnorm=config.batchnorm == "train",
        classes=images.classes,
        class_weights=class_weights,
        phases=_plan_phases(config, recipe, cache),
        batch_size=config.batch_size,
        augmentation=augmentation,
        num_views=config.count_views(recipe),
        seed=config.seed,
        precision=precision,
        label_smoothing=config.label_smoothing,
        dropout=recipe.dropout,
        clip_norm=recipe.clip_norm,
        early_stopping=config.early_stopping,
        checkpoint_every_s=config.checkpoint_every,
        select=config.select,
        labels=images.labels,
        keys=make_keys(roles.digests),
        train_rows=train_rows,
        val_rows=val_rows,
        val_role="val",
        test_rows=roles.rows["test"],
        split=hash_json([[roles.digests[row] for row in rows] for rows in roles.rows.values()]),
        plan=hash_json(asdict(recipe)),
        reference_rows=draw_reference_rows(train_rows, images.labels, num_classes, config.seed),
        calibration_rows=draw_rows(val_rows, min(_CALIBRATION_ROWS, _CALIBRATION_NUMBERS // num_classes), config.seed),
        held_rows=draw_rows(val_rows, MAX_HELD, config.seed),
        golden_rows=_choose_golden_rows(val_rows if len(val_rows) else train_rows, images.labels),
        base_weights=base_weights,
        head_start=None,
        out_of_fold=None,
        trials=(),
        must_gain=config.compares_ends(recipe),
        images=ImageSource(
            places,
            config.resolved_image_size,
            config.limits,
            resources.num_readers,
            resources.reader_cpus,
            keep_in=str(Path(tempfile.gettempdir(), f"tlray-images-{secrets.token_hex(4)}")),
            keep_bytes=_KEEP_BYTES,
        ),
        cache=cache,
    )


def _plan_phases(config: TrainConfig, recipe: Recipe, cache: Cache | None) -> tuple[PhasePlan, ...]:
    kinds = cache.frozen.kinds if cache is not None else ()

    def warm_up(epochs: int) -> float:
        """Return the epochs of warm-up: by default few enough that a short phase does not end at its highest rate."""
        return recipe.warmup_epochs if config.warmup_epochs is not None else min(recipe.warmup_epochs, epochs / 3)

    head = PhasePlan(
        "head",
        recipe.head_epochs,
        config.head_optimizer,
        recipe.lr_head,
        recipe.schedule,
        warm_up(recipe.head_epochs),
        recipe.nesterov,
        0.0,
        cached="pooled" in kinds,
    )
    finetune = PhasePlan(
        "finetune",
        recipe.finetune_epochs,
        config.finetune_optimizer,
        recipe.lr_finetune,
        recipe.schedule,
        warm_up(recipe.finetune_epochs),
        recipe.nesterov,
        recipe.mixup,
        cached="activations" in kinds,
    )
    return tuple(phase for phase in (head, finetune) if phase.epochs)


def _choose_golden_rows(rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Return up to 16 rows, taken from the classes in turn."""
    turns = np.zeros(len(rows), np.int64)
    for label in np.unique(labels[rows]):
        members = labels[rows] == label
        turns[members] = np.arange(members.sum())
    return rows[np.lexsort((labels[rows], turns))][:_GOLDEN_CANDIDATES]
