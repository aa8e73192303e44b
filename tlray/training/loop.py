"""What every training worker runs: two phases of one network under `MultiWorkerMirroredStrategy`.

The step is our own: Keras's `fit` does not run under this strategy. Each worker computes the gradient of its share of
the global batch, the optimizer sums them over the workers, and so every worker ends a step with the same weights.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.train

from tlray.augment import Augmentation, warp
from tlray.backbones import BASE
from tlray.errors import DivergedError, StoppedError
from tlray.limits import Limits
from tlray.training.channel import Message
from tlray.training.inputs import stream_batches
from tlray.training.schedule import Steps, cut_steps, permute

_PROGRESS_INTERVAL_S = 0.5
_GRADIENT_PACK_BYTES = 32 * 2**20
# 2 workers, all of InceptionV3 at 75 px on 2 cores: 1.14 s a step in packs of 32 MiB, 1.35 s unpacked


@dataclass(frozen=True)
class PhasePlan:
    """One phase.

    Attributes:
        name: "head" or "finetune".
        epochs: how many.
        optimizer: "rmsprop", "sgd" or "adam".
        learning_rate: of that optimizer.
    """

    name: Any
    epochs: int
    optimizer: str
    learning_rate: float


@dataclass(frozen=True)
class Task:
    """All that a worker is told.

    Attributes:
        backbone, image_size_px, head_units, finetune_from, train_batchnorm: the network.
        classes: class names by label.
        phases: in order.
        batch_size: images of one worker in one step.
        augmentation: of training images.
        seed: of weights and order.
        limits: of decoding.
        num_threads: cores of this machine that its workers share.
        num_readers, reader_cpus: processes that read images for one worker, and what Ray books for each.
        uris, labels: every image's address and label, by row id.
        train_rows, val_rows, test_rows: int64 row ids of each role, in order.
        golden_rows: row ids to choose golden images from.
        base_weights: an HDF5 file, or None.
        channel: the driver's `Channel`.
    """

    backbone: str
    image_size_px: int
    head_units: tuple[int, ...]
    finetune_from: str
    train_batchnorm: bool
    classes: tuple[str, ...]
    phases: tuple[PhasePlan, ...]
    batch_size: int
    augmentation: Augmentation
    seed: int
    limits: Limits
    num_threads: int
    num_readers: int
    reader_cpus: float
    uris: ray.ObjectRef[Any]
    labels: npt.NDArray[np.int32]
    train_rows: npt.NDArray[np.int64]
    val_rows: npt.NDArray[np.int64]
    test_rows: npt.NDArray[np.int64]
    golden_rows: npt.NDArray[np.int64]
    base_weights: ray.ObjectRef[bytes] | None
    channel: Any


@dataclass
class _Best:
    """The epoch that validation likes best so far: highest accuracy, then lowest loss."""

    score: tuple[float, float] | None = None
    weights: list[npt.NDArray[np.float32]] | None = None
    record: dict[str, Any] | None = None


def run_worker(config: dict[str, Any]) -> None:
    """Train; rank 0 hands the finished model to the driver.

    Raises:
        DivergedError: the loss is not finite.
        WeightsError: the weights are of another network.
    """
    task: Task = config["task"]
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    import keras
    import tensorflow as tf

    from tlray.engine import limit_threads
    from tlray.model import build_model, make_optimizer, open_phase

    limit_threads(max(1, task.num_threads // context.get_local_world_size()))
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    keras.utils.set_random_seed(task.seed)
    options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=_GRADIENT_PACK_BYTES)
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    with strategy.scope():
        model = build_model(
            task.backbone,
            task.image_size_px,
            task.head_units,
            len(task.classes),
            base_weights=ray.get(task.base_weights) if task.base_weights is not None else None,
            train_batchnorm=task.train_batchnorm,
        )
    speaker = _Speaker(task.channel, rank)
    images = _open_images(task, rank, num_workers)
    validation = cut_steps(task.val_rows, rank, num_workers, task.batch_size)
    evaluate = _make_evaluate_step(strategy, model)
    best = _Best()
    epoch = 0
    for phase in task.phases:
        open_phase(model, phase.name, task.backbone, task.finetune_from, train_batchnorm=task.train_batchnorm)
        with strategy.scope():
            optimizer = make_optimizer(phase.optimizer, phase.learning_rate)
            optimizer.build(model.trainable_variables)
        train = _make_train_step(strategy, model, optimizer)
        for _ in range(phase.epochs):
            started = time.monotonic()
            steps = cut_steps(permute(task.train_rows, task.seed, epoch), rank, num_workers, task.batch_size)
            sums = np.zeros(2)
            for index in range(len(steps.rows)):
                rows = steps.rows[index]
                transforms = task.augmentation.draw(rows, epoch, task.image_size_px)
                result = train(
                    next(images), task.labels[rows], steps.weights[index], transforms, steps.totals[index]
                ).numpy()
                if not np.isfinite(result).all():
                    raise DivergedError(
                        f"the loss is not finite in phase {phase.name}, epoch {epoch + 1}, step {index + 1}; "
                        "lower the learning rate"
                    )
                sums += result
                speaker.count(int(steps.totals[index]))
            loss, accuracy = _sum_over_workers(strategy, sums) / len(task.train_rows)
            if task.train_batchnorm:
                average_statistics(strategy, model)
            check_replicas(strategy, model)
            val_loss, val_accuracy = _validate(strategy, evaluate, images, task, validation, speaker)
            record = {
                "phase": phase.name,
                "epoch": epoch + 1,
                "loss": float(loss),
                "accuracy": float(accuracy),
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "images": len(task.train_rows),
                "steps": len(steps.rows),
                "seconds": round(time.monotonic() - started, 3),
                "learning_rate": phase.learning_rate,
            }
            _keep_best(best, record, model)
            speaker.say("epoch", record)
            ray.train.report(record)
            epoch += 1
    assert best.weights is not None  # a config without any epoch is refused
    assert best.record is not None
    model.set_weights(best.weights)
    _test(evaluate, images, task, rank, num_workers, speaker)
    if rank == 0:
        from tlray.training.export import export_model

        files, architecture = export_model(task, best.weights)
        speaker.say("model", {"files": files, "architecture": architecture, "kept": best.record})


class _Speaker:
    """Rank 0's voice; the other ranks only send what is theirs alone."""

    def __init__(self, channel: Any, rank: int) -> None:
        self._channel = channel
        self._rank = rank
        self._count = 0
        self._last = time.monotonic()

    def count(self, images: int) -> None:
        self._count += images
        if time.monotonic() - self._last >= _PROGRESS_INTERVAL_S:
            self.say("images", {"count": self._count})
            self._count = 0
            self._last = time.monotonic()

    def say(self, kind: str, body: dict[str, Any]) -> None:
        if self._rank == 0:
            self.send(kind, body)

    def send(self, kind: str, body: dict[str, Any]) -> None:
        ray.get(self._channel.send.remote(Message(kind, body)))


def _open_images(task: Task, rank: int, num_workers: int) -> Iterator[npt.NDArray[np.uint8]]:
    """This worker's batches from the first epoch to the test data, in the order in which the loop takes them."""
    val = cut_steps(task.val_rows, rank, num_workers, task.batch_size).rows
    test = cut_steps(task.test_rows, rank, num_workers, task.batch_size).rows
    parts = []
    for epoch in range(sum(phase.epochs for phase in task.phases)):
        order = permute(task.train_rows, task.seed, epoch)
        parts += [cut_steps(order, rank, num_workers, task.batch_size).rows, val]
    return stream_batches(
        task.uris, np.concatenate([*parts, test]), task.image_size_px, task.limits, task.num_readers, task.reader_cpus
    )


def _make_train_step(strategy: Any, model: Any, optimizer: Any) -> Any:
    """One step on this worker's share: `(images, labels, weights, transforms, total) -> [loss sum, correct sum]`."""
    import keras
    import tensorflow as tf

    variables = model.trainable_variables

    def step_replica(images: Any, labels: Any, weights: Any, transforms: Any, total: Any) -> Any:
        pixels = warp(images, transforms)
        with tf.GradientTape() as tape:
            probabilities = model(pixels, training=True)
            losses = keras.losses.sparse_categorical_crossentropy(labels, probabilities) * weights
            # the optimizer sums gradients over the workers, so each divides by the rows of the whole step
            loss = tf.reduce_sum(losses) / total
        optimizer.apply(tape.gradient(loss, variables), variables)
        hits = tf.cast(tf.argmax(probabilities, axis=1, output_type=labels.dtype) == labels, tf.float32)
        return tf.stack([tf.reduce_sum(losses), tf.reduce_sum(hits * weights)])

    @tf.function
    def step(images: Any, labels: Any, weights: Any, transforms: Any, total: Any) -> Any:
        return strategy.run(step_replica, args=(images, labels, weights, transforms, total))

    return step


def _make_evaluate_step(strategy: Any, model: Any) -> Any:
    """Probabilities of this worker's share: uint8 `[B, S, S, 3]` -> float32 `[B, C]`."""
    import tensorflow as tf

    @tf.function
    def step(images: Any) -> Any:
        return strategy.run(lambda pixels: model(tf.cast(pixels, tf.float32), training=False), args=(images,))

    return step


def _validate(
    strategy: Any, evaluate: Any, images: Iterator[npt.NDArray[np.uint8]], task: Task, steps: Steps, speaker: _Speaker
) -> tuple[float | None, float | None]:
    """Mean loss and accuracy over all validation rows of all workers; None where there are none."""
    if len(task.val_rows) == 0:
        return None, None
    sums = np.zeros(2)
    for index, rows in enumerate(steps.rows):
        probabilities = evaluate(next(images)).numpy()
        labels, weights = task.labels[rows], steps.weights[index]
        chances = probabilities[np.arange(len(rows)), labels].astype(np.float64)
        sums += [
            -(np.log(np.maximum(chances, 1e-7)) * weights).sum(),
            ((probabilities.argmax(1) == labels) * weights).sum(),
        ]
        speaker.count(int(steps.totals[index]))
    loss, accuracy = _sum_over_workers(strategy, sums) / len(task.val_rows)
    return float(loss), float(accuracy)


def _test(
    evaluate: Any, images: Iterator[npt.NDArray[np.uint8]], task: Task, rank: int, num_workers: int, speaker: _Speaker
) -> None:
    """Send this worker's share of the test predictions to the driver."""
    steps = cut_steps(task.test_rows, rank, num_workers, task.batch_size)
    for index, rows in enumerate(steps.rows):
        counts = steps.weights[index] > 0
        probabilities = evaluate(next(images)).numpy()
        speaker.send("predictions", {"rows": rows[counts], "probabilities": probabilities[counts]})


def _sum_over_workers(strategy: Any, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Add up a small vector over all workers; every worker must call it."""
    import tensorflow as tf

    def sum_replica(vector: Any) -> Any:
        # identity places the vector on the replica's device; a bare argument has none and is refused
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(vector))

    @tf.function
    def run(vector: Any) -> Any:
        return strategy.run(sum_replica, args=(vector,))

    result: npt.NDArray[np.float64] = run(tf.constant(values, tf.float64)).numpy()
    return result


def average_statistics(strategy: Any, model: Any) -> None:
    """Give every worker the mean of BatchNorm's moving statistics, which each has followed over its own share alone.

    Every worker must call it.
    """
    from tlray.model import list_batchnorm

    layers = list_batchnorm(model.get_layer(BASE))
    variables = [variable for layer in layers for variable in (layer.moving_mean, layer.moving_variance)]
    arrays = [np.asarray(variable.numpy(), np.float64) for variable in variables]
    means = _sum_over_workers(strategy, np.concatenate(arrays)) / strategy.num_replicas_in_sync
    ends = np.cumsum([len(array) for array in arrays])[:-1]
    for variable, mean in zip(variables, np.split(means, ends), strict=True):
        variable.assign(mean.astype(np.float32))


def check_replicas(strategy: Any, model: Any) -> None:
    """Make sure that every worker holds the same weights; every worker must call it.

    Raises:
        StoppedError: they have drifted apart, so the model would depend on which worker saves it.
    """
    checksum = 0
    for array in model.get_weights():
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    ours = np.array([checksum, checksum**2 % 2**32], np.float64)
    if not np.array_equal(_sum_over_workers(strategy, ours), ours * strategy.num_replicas_in_sync):
        raise StoppedError("the workers' weights have drifted apart; start again from the beginning")


def _keep_best(best: _Best, record: dict[str, Any], model: Any) -> None:
    """Keep the weights of the best epoch; without validation, of the last. Every worker decides the same."""
    score = None
    if record["val_accuracy"] is not None:
        score = (record["val_accuracy"], -record["val_loss"])
    if best.score is None or score is None or score > best.score:
        best.score, best.weights, best.record = score, model.get_weights(), record
