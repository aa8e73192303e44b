"""Steps that all workers take together: training, evaluation, and sums and checks over the workers.

Keras's `fit` does not run under `MultiWorkerMirroredStrategy`, hence this training step. Each worker computes the
gradient of its share of the global batch, and the optimizer sums the gradients, so that all workers end a step with the
same weights. Another sum is needed to clip the gradient or to detect a float16 overflow. XLA is not used: with it,
MobileNetV2's step took six to ten times as long (tests/benchmarks/steps.py).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, TypeAlias

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tlray.errors import StoppedError
from tlray.images.augment import warp
from tlray.model.network import Network
from tlray.model.tf_runtime import count_gpus

Batch: TypeAlias = dict[str, npt.NDArray[np.generic]]
Tensors: TypeAlias = dict[str, tf.Tensor]
Function: TypeAlias = tf.types.experimental.PolymorphicFunction
CommunicationName: TypeAlias = Literal["NCCL", "RING"]

_GRADIENT_PACK_BYTES = 32 * 2**20
# 2 workers, all of InceptionV3 at 75 px on 2 cores: 1.14 s a step in packs of 32 MiB, 1.35 s unpacked

_FIRST_LOSS_SCALE = 2.0**15
_LOSS_SCALE_GROWTH_STEPS = 2000


def make_strategy(collective_timeout_s: float) -> tf.distribute.Strategy:
    """Connect to the workers in TF_CONFIG; a sum fails after waiting `collective_timeout_s` for them."""
    options = tf.distribute.experimental.CommunicationOptions(
        bytes_per_pack=_GRADIENT_PACK_BYTES,
        timeout_seconds=collective_timeout_s,
        implementation=tf.distribute.experimental.CommunicationImplementation[choose_communication(count_gpus())],
    )
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


def choose_communication(num_gpus: int) -> CommunicationName:
    """Return how gradients are summed: left to itself TensorFlow sends those of GPUs through host memory."""
    return "NCCL" if num_gpus else "RING"


class RateTable(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """Learning rates from a table, float32 `[steps]`; the last one holds for all later steps."""

    def __init__(self, rates: npt.NDArray[np.float32]) -> None:
        self._rates = np.asarray(rates, np.float32)

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Return the rate of a step."""
        return tf.gather(self._rates, tf.minimum(tf.cast(step, tf.int32), len(self._rates) - 1))


class TrainStep:
    """Training steps of one phase.

    Attributes:
        optimizer: as given.
        loss_scale: factor of a float16 loss, so that small gradients do not vanish; 1 otherwise.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        network: Network,
        optimizer: keras.optimizers.Optimizer,
        *,
        label_smoothing: float,
        clip_norm: float | None,
    ) -> None:
        """Make the step, without tracing it.

        Args:
            network, optimizer: opened for the phase; built on the network's trainable variables.
            label_smoothing: share of the target that is spread over all classes (Szegedy et al., 2016, section 7).
            clip_norm: maximum global norm of the gradient; None does not clip.
        """
        scaled = keras.config.dtype_policy().name == "mixed_float16"
        self.loss_scale = _FIRST_LOSS_SCALE if scaled else 1.0
        self._scaled = scaled
        self._guarded = scaled or clip_norm is not None
        self._finite_steps = 0
        self._strategy, self._network, self.optimizer = strategy, network, optimizer
        self._label_smoothing, self._clip_norm = label_smoothing, clip_norm
        self._variables = network.trainable_variables
        self._step = self._distribute(self._step_replica)
        self._differentiate_step = self._distribute(self._differentiate_replica)
        self._apply_step = self._distribute(self._apply_replica)

    def step(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Take one step on this worker's share; every worker must call it.

        Args:
            batch: `inputs` `[B, ...]`, `labels` int32 `[B]`, `weights` float32 `[B]` (0 for padding), `counts` float32
                `[B]` (1 or 0), `total` (number of rows of the whole step that count), and optionally `transforms`
                `[B, 8]`, `masks` `[B, units]`, and for mixtures `partners` int32 `[B]`, `shares` float32 `[B]` of the
                row itself, and `partner_weights` float32 `[B]`.

        Returns:
            this worker's `[weighted loss sum, number correct]`.
        """
        scale = np.float32(self.loss_scale)
        if self._guarded:
            gradients, result, finite = self._differentiate_step(batch, scale)
            # zero gradients would still move the weights by the optimizer's momentum
            if finite:
                self._apply_step(gradients)
            else:
                self.optimizer.iterations.assign_add(1)  # the learning rate goes on
            if self._scaled:
                self._adapt_scale(bool(finite))
        else:
            result = self._step(batch, scale)
        sums: npt.NDArray[np.float32] = result.numpy()
        return sums

    def _distribute(self, replica: Callable[..., Any]) -> Function:
        return tf.function(lambda *args: self._strategy.run(replica, args=args), autograph=False)

    def _adapt_scale(self, finite: bool) -> None:
        """Halve after an overflow, double after 2,000 steps without one (Micikevicius et al., 2018, section 3.2)."""
        self._finite_steps = self._finite_steps + 1 if finite else 0
        if not finite:
            self.loss_scale = max(1.0, self.loss_scale / 2)
        elif self._finite_steps == _LOSS_SCALE_GROWTH_STEPS:
            self.loss_scale, self._finite_steps = self.loss_scale * 2, 0

    def _step_replica(self, batch: Tensors, scale: tf.Tensor) -> tf.Tensor:
        gradients, sums = self._differentiate(batch, scale)
        self.optimizer.apply(gradients, self._variables)
        return sums

    def _differentiate_replica(self, batch: Tensors, scale: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        gradients, sums = self._differentiate(batch, scale)
        gradients, finite = self._limit(gradients, scale)
        return gradients, sums, finite

    def _apply_replica(self, gradients: list[tf.Tensor]) -> None:
        # identity places them on the replica's device: the optimizer's sum rejects bare arguments, which have none
        self.optimizer.apply([tf.identity(gradient) for gradient in gradients], self._variables)

    def _differentiate(self, batch: Tensors, scale: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        inputs = tf.cast(batch["inputs"], tf.float32)
        if self._network.entrance == "pixels":
            inputs = warp(inputs, batch["transforms"])
        labels, weights = batch["labels"], batch["weights"]
        shares = batch.get("shares")
        if shares is not None:
            own = tf.reshape(shares, [-1, *[1] * (len(inputs.shape) - 1)])
            inputs = own * inputs + (1 - own) * tf.gather(inputs, batch["partners"])
        with tf.GradientTape() as tape:
            logits = self._network.call(inputs, training=True, masks=batch.get("masks"))
            losses = _cross_entropy(labels, logits, self._label_smoothing) * weights
            if shares is not None:
                others = _cross_entropy(tf.gather(labels, batch["partners"]), logits, self._label_smoothing)
                losses = shares * losses + (1 - shares) * others * batch["partner_weights"]
            # the optimizer sums over the workers, so each divides by the rows of the whole step
            loss = tf.reduce_sum(losses) / batch["total"] * scale
        gradients = tape.gradient(loss, self._variables)
        hits = tf.cast(tf.argmax(logits, axis=1, output_type=labels.dtype) == labels, tf.float32)
        return gradients, tf.stack([tf.reduce_sum(losses), tf.reduce_sum(hits * batch["counts"])])

    def _limit(self, gradients: list[tf.Tensor], scale: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Unscale the gradients and clip them by their global norm over all workers; say if it is finite."""
        whole = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        norm = tf.linalg.global_norm(whole) / scale
        finite = tf.math.is_finite(norm)
        factor = (1.0 if self._clip_norm is None else tf.minimum(1.0, self._clip_norm / norm)) / scale
        return [gradient * factor for gradient in gradients], finite


def _cross_entropy(labels: tf.Tensor, logits: tf.Tensor, label_smoothing: float) -> tf.Tensor:
    logs = tf.nn.log_softmax(logits)  # of probabilities a row that is surely wrong would have no gradient
    own = -tf.gather(logs, labels, axis=1, batch_dims=1)
    if not label_smoothing:
        return own
    return (1 - label_smoothing) * own - label_smoothing * tf.reduce_mean(logs, axis=1)


def make_evaluate_step(strategy: tf.distribute.Strategy, network: Network) -> Function:
    """Make a function of inputs `[B, ...]`: float32 log probabilities `[B, C]` and pooled features `[B, D]`."""

    def evaluate_replica(inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        features = network.embed(tf.cast(inputs, tf.float32), training=False)
        return tf.nn.log_softmax(network.classify(features)), tf.cast(features, tf.float32)

    @tf.function(autograph=False)
    def step(inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        logs, features = strategy.run(evaluate_replica, args=(inputs,))
        return logs, features

    return step


def sum_over_workers(strategy: tf.distribute.Strategy, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sum a small vector over all workers; every worker must call it."""
    result: npt.NDArray[np.float64] = _make_sum(strategy)(tf.constant(values, tf.float64)).numpy()
    return result


@cache
def _make_sum(strategy: tf.distribute.Strategy) -> Function:
    def sum_replica(vector: tf.Tensor) -> tf.Tensor:
        # identity places the vector on the replica's device; all_reduce rejects a bare argument, which has none
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(vector))

    @tf.function(autograph=False)
    def run(vector: tf.Tensor) -> tf.Tensor:
        return strategy.run(sum_replica, args=(vector,))

    return run


def average_statistics(strategy: tf.distribute.Strategy, network: Network) -> None:
    """Average BatchNorm's moving statistics, which each worker updates on its own share; every worker must call it."""
    variables = network.list_statistics()
    if not variables:
        return
    arrays = [np.asarray(variable.numpy(), np.float64) for variable in variables]
    means = sum_over_workers(strategy, np.concatenate(arrays)) / strategy.num_replicas_in_sync
    ends = np.cumsum([len(array) for array in arrays])[:-1]
    for variable, mean in zip(variables, np.split(means, ends), strict=True):
        variable.assign(mean.astype(np.float32))


def check_replicas(strategy: tf.distribute.Strategy, network: Network) -> None:
    """Check that all workers hold the same weights; every worker must call it.

    Raises:
        StoppedError: they have drifted apart.
    """
    checksum = 0
    for array in network.read_weights(opened_only=True).values():
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    ours = np.array([checksum, checksum**2 % 2**32], np.float64)
    if not np.array_equal(sum_over_workers(strategy, ours), ours * strategy.num_replicas_in_sync):
        raise StoppedError("the workers' weights have drifted apart; start again from the beginning")
