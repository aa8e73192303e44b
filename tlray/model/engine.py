"""Fast inference: freeze a network's variables to constants of its graph, and open a bundle as an engine.

TensorFlow then merges BatchNorm and activations into the convolutions and lays the weights out once. In bfloat16,
InceptionV3 ran at 59 to 64 images/s, a `tf.function` in float32 at 27 (2 cores with AVX512-BF16).
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tlray.errors import StoppedError
from tlray.images.decode import decode
from tlray.model.bundle import Bundle, Golden
from tlray.model.precision import FloatName, PrecisionName, detect_fastest, list_precisions, read_gpu_memory

if TYPE_CHECKING:
    import keras

GOLDEN_TOLERANCES: dict[FloatName, float] = {"float32": 2e-3, "bfloat16": 0.02, "float16": 0.02}
"""Largest allowed change of a golden image's probability on any machine; its label may not change."""

_TIMED_RUNS = 5
_GPU_MEMORY_SHARE = 0.9
"""Share of a booked part of a GPU's memory for TensorFlow; CUDA and its libraries take the rest."""


@dataclass(frozen=True)
class Form:
    """The form in which an engine computes.

    Attributes:
        precision: input type of convolutions and products.
        threads: threads on a CPU; None lets TensorFlow choose.
        xla: True if XLA compiles the graph; tried on GPUs only, since it was no faster on CPUs.
        note: faults of the faster forms that were tried.
    """

    precision: FloatName
    device: Literal["CPU", "GPU"]
    threads: int | None = None
    xla: bool = False
    note: str = ""

    def __str__(self) -> str:
        threads = f" on {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else f" on a {self.device}"
        return f"{self.precision}{', XLA' * self.xla}{threads}{f' ({self.note})' if self.note else ''}"


class Predictions(NamedTuple):
    """Predictions of an engine for N images, all float32.

    Attributes:
        probabilities: `[N, C]`, calibrated.
        ood_score: `[N]`; None if the bundle has no reference features.
        embeddings: `[N, D]`, pooled features; None if the model gives none.
    """

    probabilities: npt.NDArray[np.float32]
    ood_score: npt.NDArray[np.float32] | None
    embeddings: npt.NDArray[np.float32] | None


class Engine:
    """A loaded SavedModel that predicts batches of decoded images; its first prediction takes longer.

    Smaller batches are padded to the batch size, so that TensorFlow traces and tunes once. Precision and XLA hold for
    every engine of the process, the number of threads only for the first.
    """

    def __init__(
        self, saved_model: Path, image_size_px: int, batch_size: int, form: Form = Form("float32", "CPU")
    ) -> None:
        self.form = form
        self._batch_size = batch_size
        if form.threads is not None:
            limit_threads(form.threads)
        _set_form(form)
        self._run = tf.saved_model.load(str(saved_model)).signatures["serving_default"]
        self._pixels = np.zeros((batch_size, image_size_px, image_size_px, 3), np.uint8)

    def predict(self, pixels: npt.NDArray[np.uint8]) -> Predictions:
        """Predict uint8 images `[N, S, S, 3]`; N is 1 or more."""
        parts = [
            _take(self._run_padded(pixels[start : start + self._batch_size]), len(pixels) - start)
            for start in range(0, len(pixels), self._batch_size)
        ]
        return parts[0] if len(parts) == 1 else _join(parts)

    def predict_golden(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the probabilities `[N, C]` of a few images, on a CPU without padding them to a whole batch."""
        return (self.predict(pixels) if self.form.device == "GPU" else self._run_all(pixels)).probabilities

    def time_batch(self) -> float:
        """Return the seconds of a batch, the least of a few runs."""
        seconds = []
        for _ in range(_TIMED_RUNS):
            began = time.perf_counter()
            self._run_padded(self._pixels)
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    def _run_padded(self, pixels: npt.NDArray[np.uint8]) -> Predictions:
        if len(pixels) < self._batch_size:
            self._pixels[: len(pixels)] = pixels
            pixels = self._pixels
        return self._run_all(pixels)

    def _run_all(self, pixels: npt.NDArray[np.uint8]) -> Predictions:
        result = self._run(tf.constant(pixels))
        arrays = {name: value.numpy() for name, value in result.items()}
        return Predictions(arrays["probabilities"], arrays.get("ood_score"), arrays.get("embedding"))


def _take(predictions: Predictions, count: int) -> Predictions:
    probabilities, *others = predictions
    return Predictions(probabilities[:count], *(None if values is None else values[:count] for values in others))


def _join(parts: Sequence[Predictions]) -> Predictions:
    ood_score = [part.ood_score for part in parts if part.ood_score is not None]
    embeddings = [part.embeddings for part in parts if part.embeddings is not None]
    return Predictions(
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate(ood_score) if ood_score else None,
        np.concatenate(embeddings) if embeddings else None,
    )


def open_engine(
    bundle: Bundle, batch_size: int, *, num_threads: int | None = None, precision: PrecisionName = "auto"
) -> Engine:
    """Return the fastest warm engine of this process's device that keeps the golden predictions.

    With `auto` precision it falls back to float32 if a faster type moves the golden probabilities by more than
    `GOLDEN_TOLERANCES`. `num_threads` are TensorFlow's on a CPU; None lets it choose.

    Raises:
        StoppedError: the given precision, or float32, moves them too far.
    """
    device: Literal["CPU", "GPU"] = "GPU" if count_gpus() else "CPU"
    golden = bundle.load_golden()
    pixels = np.stack([decode(image.data, bundle.image_size_px).pixels for image in golden])
    notes: list[str] = []

    def make(form: Form) -> Engine | None:
        try:
            engine = Engine(bundle.path / "saved_model", bundle.image_size_px, batch_size, form)
            fault = find_golden_fault(golden, engine.predict_golden(pixels), GOLDEN_TOLERANCES[form.precision])
        except tf.errors.OpError as error:
            fault = f"TensorFlow fails with {type(error).__name__}"
        if fault is None:
            return engine
        notes.append(f"{form.precision}{' with XLA' * form.xla}: {fault}")
        return None

    for name in list_precisions(precision, detect_fastest(gpus=device == "GPU"), gpus=device == "GPU"):
        form = Form(name, device, num_threads if device == "CPU" else None)
        chosen = make(form)
        if chosen is not None and device == "GPU":
            plain_s = chosen.time_batch()
            compiled = make(replace(form, xla=True))
            # if the plain form wins it is made anew: TensorFlow's options hold for all graphs of the process
            chosen = compiled if compiled is not None and compiled.time_batch() < plain_s else make(form)
        if chosen is not None:
            chosen.form = replace(chosen.form, note="; ".join(notes))
            return chosen
    raise _refuse("; ".join(notes), "give another --precision, or use another machine")


def open_plain_engine(bundle: Bundle) -> Engine:
    """Return a float32 engine for single images, without XLA.

    Raises:
        StoppedError: it moves the golden probabilities by more than `GOLDEN_TOLERANCES`.
    """
    prepare_gpus()
    golden = bundle.load_golden()
    pixels = np.stack([decode(image.data, bundle.image_size_px).pixels for image in golden])
    form = Form("float32", "GPU" if count_gpus() else "CPU")
    engine = Engine(bundle.path / "saved_model", bundle.image_size_px, 1, form)
    if fault := find_golden_fault(golden, engine.predict_golden(pixels), GOLDEN_TOLERANCES["float32"]):
        raise _refuse(fault, "copy or train it again, or use another machine")
    return engine


def _refuse(faults: str, remedy: str) -> StoppedError:
    return StoppedError(f"the model does not repeat its golden predictions here ({faults}); {remedy}")


def count_gpus() -> int:
    """Return the number of GPUs that TensorFlow sees."""
    return len(tf.config.list_physical_devices("GPU"))


def find_golden_fault(golden: Sequence[Golden], predicted: npt.NDArray[np.float32], tolerance: float) -> str | None:
    """Return the fault of an engine's probabilities `[N, C]` of the golden images; None if they agree."""
    expected = np.stack([image.probabilities for image in golden])
    moved = float(np.abs(predicted - expected).max())
    if not moved <= tolerance:  # NaN is a fault too
        return f"a golden probability moves by {moved:.2g}, {tolerance:g} are allowed"
    if (predicted.argmax(axis=1) != expected.argmax(axis=1)).any():
        return "a golden label changes"
    return None


def freeze(
    call: Callable[..., tf.Tensor], variables: Iterable[keras.Variable], *specs: tf.TensorSpec
) -> tf.types.experimental.ConcreteFunction:
    """Trace `call` on tensors of these specs, with the variables as constants of the graph.

    Freezing a traced graph afterwards would do the same, but takes longer than tracing it.
    """
    import keras  # a process that only predicts does without it, see `tf_imports`

    values = [(variable, variable.numpy()) for variable in variables]

    @tf.function(input_signature=specs, autograph=False)
    def traced(*inputs: tf.Tensor) -> tf.Tensor:
        constants = [(variable, tf.constant(value)) for variable, value in values]
        with keras.StatelessScope(state_mapping=constants):
            return call(*inputs)

    return traced.get_concrete_function()


def allow_bfloat16(*, allowed: bool = True) -> None:
    """Let oneDNN compute convolutions and products in bfloat16; sums stay float32."""
    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": allowed})


def prepare_gpus(booked: float = 0.0, *, allow_cpu: bool = True) -> bool:
    """Prepare TensorFlow for the GPUs of this process, before it has used one; return whether it sees any.

    It takes their memory as it needs it, of a shared GPU at most the booked share, and float32 is computed as such, not
    in TF32, whose 10 bits of mantissa would move predictions from those of a CPU.

    Args:
        booked: GPUs that Ray booked for this process.
        allow_cpu: go on if one is booked and TensorFlow sees none.

    Raises:
        StoppedError: one is booked, and TensorFlow sees none.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if booked and not gpus and not allow_cpu:
        raise StoppedError(
            f"Ray booked a GPU of {socket.gethostname()}, and TensorFlow sees none there; install tlray[gpu] and "
            "NVIDIA's driver on that machine, book no GPU with --gpus-per-worker 0 or --gpus-per-engine 0, or compute "
            "on its cores with --allow-cpu"
        )
    tf.config.experimental.enable_tensor_float_32_execution(False)
    limit_mb = choose_gpu_memory(booked, read_gpu_memory()) if gpus and 0 < booked < 1 else None
    with contextlib.suppress(RuntimeError):  # TensorFlow has used it already
        for gpu in gpus:
            if limit_mb is None:
                tf.config.experimental.set_memory_growth(gpu, True)
            else:
                limited = tf.config.LogicalDeviceConfiguration(memory_limit=limit_mb)
                tf.config.set_logical_device_configuration(gpu, [limited])
    return bool(gpus)


def choose_gpu_memory(booked: float, total_mb: int | None) -> int | None:
    """Return the MiB that a process may take of a GPU that it shares; None for no limit.

    Args:
        booked: its share of the GPU.
        total_mb: the GPU's MiB; None if unknown.
    """
    if total_mb is None or not 0 < booked < 1:
        return None
    return int(total_mb * booked * _GPU_MEMORY_SHARE)


def limit_threads(num_threads: int) -> None:
    """Set TensorFlow's number of threads; no effect once it has run anything."""
    try:
        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:  # TensorFlow is running already
        return


def _set_form(form: Form) -> None:
    if form.device == "CPU":
        allow_bfloat16(allowed=form.precision == "bfloat16")
        return
    tf.config.optimizer.set_experimental_options({"auto_mixed_precision": form.precision == "float16"})
    tf.config.optimizer.set_jit(form.xla)
    tf.config.experimental.enable_tensor_float_32_execution(form.precision != "float32")
