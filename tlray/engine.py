"""The fast inference path: a network's graph with its variables folded to constants, and a bundle made ready to answer.

TensorFlow then merges BatchNorm and activations into the convolutions and lays the weights out once. In bfloat16, which
oneDNN takes up by itself where the chip has it, InceptionV3 ran at 59 to 64 images/s where a `tf.function` in float32
reached 27 (2 cores with AVX512-BF16).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow reads it while it is imported

import numpy as np
import numpy.typing as npt
import tensorflow as tf


class Engine:
    """Probabilities for batches of decoded images, in float32.

    The ragged end of the work is padded to the batch shape, so that TensorFlow traces and tunes once.
    """

    def __init__(
        self, saved_model: Path, image_size_px: int, batch_size: int, *, num_threads: int | None = None
    ) -> None:
        """Load and warm up.

        Args:
            saved_model: a bundle's `saved_model` directory.
            image_size_px: side S of the square input.
            batch_size: images in one step.
            num_threads: TensorFlow's threads on a CPU; None leaves them alone. Counts for a process's first engine.
        """
        if num_threads is not None:
            limit_threads(num_threads)
        self._batch_size = batch_size
        self._run = tf.saved_model.load(str(saved_model)).signatures["serving_default"]
        self._pixels = np.zeros((batch_size, image_size_px, image_size_px, 3), np.uint8)
        self.num_classes = int(self._run_padded(self._pixels[:0]).shape[1])

    def predict(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Probabilities, float32 `[N, C]`, of uint8 images `[N, S, S, 3]`; N is any number."""
        parts = [
            self._run_padded(pixels[start : start + self._batch_size])[: len(pixels) - start]
            for start in range(0, len(pixels), self._batch_size)
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.num_classes), np.float32)

    def _run_padded(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        if len(pixels) < self._batch_size:
            self._pixels[: len(pixels)] = pixels
            pixels = self._pixels
        result: npt.NDArray[np.float32] = self._run(tf.constant(pixels))["probabilities"].numpy()
        return result


def freeze(call: Callable[..., Any], variables: Iterable[Any], *specs: tf.TensorSpec) -> Any:
    """Trace `call` on tensors of these specs, with every one of the Keras variables as a constant in the graph.

    Freezing a traced graph afterwards would do the same, but takes longer than tracing it.

    Returns:
        a function of the same arguments and results.
    """
    import keras  # not above: a process that only answers, see lean.py, does without it

    values = [(variable, variable.numpy()) for variable in variables]

    @tf.function(input_signature=specs, autograph=False)
    def traced(*inputs: Any) -> Any:
        constants = [(variable, tf.constant(value)) for variable, value in values]
        with keras.StatelessScope(state_mapping=constants):
            return call(*inputs)

    return traced.get_concrete_function()


def allow_bfloat16() -> None:
    """Let oneDNN compute convolutions and products of graphs traced from now on in bfloat16; its sums stay float32."""
    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": True})


def limit_threads(num_threads: int) -> None:
    """Give TensorFlow a number of threads; without effect once it has run anything."""
    try:
        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:  # TensorFlow is already running with what it has
        return
