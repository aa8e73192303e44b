"""What all workers do together: one training step, one evaluation step, sums and checks over the workers.

The step is our own: Keras's `fit` does not run under `MultiWorkerMirroredStrategy`. Each worker computes the gradient
of its share of the global batch, the optimizer sums them over the workers, and so every worker ends a step with the
same weights. The strategy sums once more where the step itself must know the whole gradient: to clip it, or to see
whether float16 has overflowed. XLA stays out of it: MobileNetV2's step took it six to ten times as long as TensorFlow's
own kernels (tests/benchmarks/steps.py), and compiled sums over the workers have hung or crashed for others.
"""

from __future__ import annotations

import zlib
from functools import cache
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tlray.errors import StoppedError
from tlray.images.augment import warp
from tlray.model.network import Network

_GRADIENT_PACK_BYTES = 32 * 2**20
# 2 workers, all of InceptionV3 at 75 px on 2 cores: 1.14 s a step in packs of 32 MiB, 1.35 s unpacked

_FIRST_LOSS_SCALE = 2.0**15
_LOSS_SCALE_GROWTH_STEPS = 2000
_SMALLEST_PROBABILITY = 1e-7  # Keras's epsilon


def make_strategy(collective_timeout_s: float) -> Any:
    """Connect to the other workers that TF_CONFIG names.

    Args:
        collective_timeout_s: how long a worker waits for the others inside one sum before it gives up.
    """
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    options = tf.distribute.experimental.CommunicationOptions(
        bytes_per_pack=_GRADIENT_PACK_BYTES, timeout_seconds=collective_timeout_s
    )
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


class RateTable(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """The learning rate of every step, from a table."""

    def __init__(self, rates: npt.NDArray[np.float32]) -> None:
        self._rates = np.asarray(rates, np.float32)

    def __call__(self, step: Any) -> Any:
        """The rate of a step; past the end, the last one."""
        return tf.gather(self._rates, tf.minimum(tf.cast(step, tf.int32), len(self._rates) - 1))


class TrainStep:
    """Training steps of one phase.

    Attributes:
        loss_scale: what a float16 loss is multiplied by, so that small gradients survive; 1 otherwise.
    """

    def __init__(
        self,
        strategy: Any,
        network: Network,
        optimizer: Any,
        *,
        label_smoothing: float,
        clip_norm: float | None,
    ) -> None:
        """Trace nothing yet.

        Args:
            strategy: of all workers.
            network: opened for its phase.
            optimizer: built on its trainable variables.
            label_smoothing: share of the target that is spread over all classes (Szegedy et al., 2016, section 7).
            clip_norm: largest global norm of the gradient; None leaves it as it is.
        """
        scaled = keras.config.dtype_policy().name == "mixed_float16"
        self.loss_scale = _FIRST_LOSS_SCALE if scaled else 1.0
        self._scaled = scaled
        self._finite_steps = 0
        self._step = _make_train_step(
            strategy,
            network,
            optimizer,
            label_smoothing,
            clip_norm,
            watched=scaled or clip_norm is not None,
        )

    def step(self, batch: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """Take one step on this worker's share; every worker must call it.

        Args:
            batch: `inputs` `[B, ...]`, `labels` int32 `[B]`, `weights` float32 `[B]` (0 for padding), `counts` float32
                `[B]` (1 or 0), `total` (rows of the whole step that count), and where they apply `transforms` `[B, 8]`
                and `masks` `[B, units]`.

        Returns:
            `[weighted loss sum, correct sum]` of this worker.
        """
        result, finite = self._step(batch, np.float32(self.loss_scale))
        if self._scaled:
            self._adapt_scale(bool(finite))
        answer: npt.NDArray[np.float32] = result.numpy()
        return answer

    def _adapt_scale(self, finite: bool) -> None:
        """Halve after an overflow, double after 2,000 steps without one (Micikevicius et al., 2018, section 3.2)."""
        self._finite_steps = self._finite_steps + 1 if finite else 0
        if not finite:
            self.loss_scale = max(1.0, self.loss_scale / 2)
        elif self._finite_steps == _LOSS_SCALE_GROWTH_STEPS:
            self.loss_scale, self._finite_steps = self.loss_scale * 2, 0


def _make_train_step(
    strategy: Any,
    network: Network,
    optimizer: Any,
    label_smoothing: float,
    clip_norm: float | None,
    *,
    watched: bool,
) -> Any:
    variables = network.trainable_variables

    def limit(gradients: Any, scale: Any) -> Any:
        """Unscale, clip by the whole gradient's norm; nothing at all where it is not finite."""
        whole = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        norm = tf.linalg.global_norm(whole) / scale
        finite = tf.math.is_finite(norm)
        factor = tf.minimum(1.0, clip_norm / norm) / scale if clip_norm is not None else 1 / scale
        return [tf.where(finite, gradient * factor, tf.zeros_like(gradient)) for gradient in gradients], finite

    def differentiate(batch: dict[str, Any], scale: Any) -> Any:
        inputs = tf.cast(batch["inputs"], tf.float32)
        if network.entrance == "pixels":
            inputs = warp(inputs, batch["transforms"])
        labels, weights = batch["labels"], batch["weights"]
        with tf.GradientTape() as tape:
            probabilities = network.call(inputs, training=True, masks=batch.get("masks"))
            losses = _cross_entropy(labels, probabilities, label_smoothing) * weights
            # the optimizer sums gradients over the workers, so each divides by the rows of the whole step
            loss = tf.reduce_sum(losses) / batch["total"] * scale
        gradients = tape.gradient(loss, variables)
        hits = tf.cast(tf.argmax(probabilities, axis=1, output_type=labels.dtype) == labels, tf.float32)
        return gradients, tf.stack([tf.reduce_sum(losses), tf.reduce_sum(hits * batch["counts"])])

    def step_replica(batch: dict[str, Any], scale: Any) -> Any:
        gradients, sums = differentiate(batch, scale)
        finite = tf.constant(True)
        if watched:
            gradients, finite = limit(gradients, scale)
        optimizer.apply(gradients, variables)
        return sums, finite

    @tf.function
    def step(batch: dict[str, Any], scale: Any) -> Any:
        return strategy.run(step_replica, args=(batch, scale))

    return step


def _cross_entropy(labels: Any, probabilities: Any, label_smoothing: float) -> Any:
    """Of float32 probabilities `[B, C]`, one a row."""
    logs = tf.math.log(tf.clip_by_value(probabilities, _SMALLEST_PROBABILITY, 1.0))
    own = -tf.gather(logs, labels, axis=1, batch_dims=1)
    if not label_smoothing:
        return own
    return (1 - label_smoothing) * own - label_smoothing * tf.reduce_mean(logs, axis=1)


def make_evaluate_step(strategy: Any, network: Network) -> Any:
    """This worker's share of answers: inputs `[B, ...]` -> float32 probabilities `[B, C]`, pooled features `[B, D]`."""

    def evaluate_replica(inputs: Any) -> Any:
        features = network.embed(tf.cast(inputs, tf.float32), training=False)
        return network.classify(features), tf.cast(features, tf.float32)

    @tf.function
    def step(inputs: Any) -> Any:
        return strategy.run(evaluate_replica, args=(inputs,))

    return step


def sum_over_workers(strategy: Any, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Add up a small vector over all workers; every worker must call it."""
    result: npt.NDArray[np.float64] = _make_sum(strategy)(tf.constant(values, tf.float64)).numpy()
    return result


@cache
def _make_sum(strategy: Any) -> Any:
    def sum_replica(vector: Any) -> Any:
        # identity places the vector on the replica's device; a bare argument has none and is refused
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(vector))

    @tf.function
    def run(vector: Any) -> Any:
        return strategy.run(sum_replica, args=(vector,))

    return run


def average_statistics(strategy: Any, network: Network) -> None:
    """Give every worker the mean of BatchNorm's moving statistics, which each has followed over its own share alone.

    Every worker must call it.
    """
    variables = network.list_statistics()
    if not variables:
        return
    arrays = [np.asarray(variable.numpy(), np.float64) for variable in variables]
    means = sum_over_workers(strategy, np.concatenate(arrays)) / strategy.num_replicas_in_sync
    ends = np.cumsum([len(array) for array in arrays])[:-1]
    for variable, mean in zip(variables, np.split(means, ends), strict=True):
        variable.assign(mean.astype(np.float32))


def check_replicas(strategy: Any, network: Network) -> None:
    """Make sure that every worker holds the same weights; every worker must call it.

    Raises:
        StoppedError: they have drifted apart, so the model would depend on which worker saves it.
    """
    checksum = 0
    for array in network.read_weights(opened_only=True).values():
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    ours = np.array([checksum, checksum**2 % 2**32], np.float64)
    if not np.array_equal(sum_over_workers(strategy, ours), ours * strategy.num_replicas_in_sync):
        raise StoppedError("the workers' weights have drifted apart; start again from the beginning")
