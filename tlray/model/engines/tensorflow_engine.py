"""Run a bundle's SavedModel, a graph whose variables are constants.

TensorFlow then merges BatchNorm and activations into the convolutions and lays the weights out once. In bfloat16,
InceptionV3 ran at 59 to 64 images/s, a `tf.function` in float32 at 27 (2 cores with AVX512-BF16).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tlray.model.engines.interface import Engine, Form, Predictions
from tlray.model.tf_runtime import allow_bfloat16, limit_threads


class TensorFlowEngine(Engine):
    """A loaded SavedModel.

    Precision and XLA hold for every engine of the process, the number of threads only for the first.
    """

    FAILURES = (tf.errors.OpError,)

    def __init__(self, folder: Path, image_size_px: int, batch_size: int, form: Form) -> None:
        super().__init__(folder, image_size_px, batch_size, form)
        if form.threads is not None:
            limit_threads(form.threads)
        _set_form(form)
        self._serve = tf.saved_model.load(str(folder)).signatures["serving_default"]

    def predict_golden(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the probabilities `[N, C]` of a few images, on a CPU without padding them to a whole batch."""
        return (self.predict(pixels) if self.form.device == "GPU" else self._run(pixels)).probabilities

    def _run(self, pixels: npt.NDArray[np.uint8]) -> Predictions:
        arrays = {name: value.numpy() for name, value in self._serve(tf.constant(pixels)).items()}
        return Predictions(arrays["probabilities"], arrays.get("ood_score"), arrays.get("embedding"))


def _set_form(form: Form) -> None:
    if form.device == "CPU":
        allow_bfloat16(allowed=form.precision == "bfloat16")
        return
    tf.config.optimizer.set_experimental_options({"auto_mixed_precision": form.precision == "float16"})
    tf.config.optimizer.set_jit(form.xla)
    tf.config.experimental.enable_tensor_float_32_execution(form.precision != "float32")
