"""What a training worker is told, and its entrance; without TensorFlow, so that the driver can make one."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from tlray.augment import Augmentation
from tlray.errors import TlrayError
from tlray.features import Cache
from tlray.lean import import_keras
from tlray.precision import Precision
from tlray.training.channel import Message
from tlray.training.inputs import ImageSource

_TASK_POLL_S = 0.2


@dataclass(frozen=True)
class PhasePlan:
    """One phase.

    Attributes:
        name: "head" or "finetune".
        epochs: at most.
        optimizer: "rmsprop", "sgd" or "adam".
        learning_rate: the highest.
        schedule: "constant" or "cosine".
        warmup_epochs: over which the rate rises.
        cached: whether its inputs come from the feature cache.
    """

    name: Any
    epochs: int
    optimizer: str
    learning_rate: float
    schedule: Any
    warmup_epochs: float
    cached: bool


@dataclass(frozen=True)
class Task:
    """All that a worker is told.

    Attributes:
        backbone, image_size_px, head_units, finetune_from, train_batchnorm: the network.
        classes: class names by label.
        class_weights: float32 `[C]`, what a training row of each class counts.
        phases: in order.
        batch_size: images of one worker in one step.
        augmentation: of training images.
        num_views: views that the cache holds; epoch e trains on view e mod this.
        seed: of weights, order and dropout.
        precision: of steps.
        label_smoothing, dropout, clip_norm, early_stopping: as in the config.
        labels: int32 by row id.
        train_rows, val_rows, test_rows: row ids by role.
        golden_rows: candidates for golden images.
        base_weights: Ray reference to the weights file; None for random ones.
        images: where batches of images come from.
        cache: the feature cache, where a phase uses it.
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
    clip_norm: float | None
    early_stopping: int | None
    labels: npt.NDArray[np.int32]
    train_rows: npt.NDArray[np.int64]
    val_rows: npt.NDArray[np.int64]
    test_rows: npt.NDArray[np.int64]
    golden_rows: npt.NDArray[np.int64]
    base_weights: ray.ObjectRef[bytes] | None
    images: ImageSource
    cache: Cache | None


@dataclass(frozen=True)
class Setting:
    """Where a worker works, known before its task is.

    Attributes:
        channel: the driver's ear, which also gives the task.
        checkpoints: folder of this run's states.
        num_threads: of one machine, shared by its workers.
        collective_timeout_s: how long a worker waits for the others.
    """

    channel: Any
    checkpoints: str
    num_threads: int
    collective_timeout_s: float


def run_worker(config: dict[str, Any]) -> None:
    """Train to the end; rank 0 hands the finished model to the driver.

    Raises:
        DivergedError: the loss is not finite.
        WeightsError: the weights are of another network.
        StoppedError: something that a second try would not mend.
    """
    setting: Setting = config["setting"]
    if ray.get(setting.channel.is_closed.remote()):
        return  # the driver has given up; Ray Train tried again only because it does not know
    import_keras()
    from tlray.training.loop import Worker  # TensorFlow, which a worker with nothing to do need not wait for

    worker = Worker(setting)
    task = _await_task(setting.channel)
    if task is None:
        return
    try:
        worker.run(task)
    except TlrayError as error:
        ray.get(setting.channel.send.remote(Message("failed", {"error": error}, time.time())))
        raise
    finally:
        shutil.rmtree(task.images.keep_in, ignore_errors=True)


def _await_task(channel: Any) -> Task | None:
    """The task, as soon as the driver knows it; None where the driver has given up."""
    while not ray.get(channel.is_closed.remote()):
        task: Task | None = ray.get(channel.get_task.remote())
        if task is not None:
            return task
        time.sleep(_TASK_POLL_S)
    return None
