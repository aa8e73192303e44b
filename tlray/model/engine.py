"""The fast inference path: a network's graph with its variables folded to constants, and a bundle made ready to answer.

TensorFlow then merges BatchNorm and activations into the convolutions and lays the weights out once. In bfloat16, which
oneDNN takes up by itself where the chip has it, InceptionV3 ran at 59 to 64 images/s where a `tf.function` in float32
reached 27 (2 cores with AVX512-BF16).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tlray.errors import StoppedError
from tlray.images.decode import decode
from tlray.model.bundle import Bundle, Golden
from tlray.model.precision import FloatName, PrecisionName, detect_fastest, list_precisions

GOLDEN_TOLERANCES: dict[FloatName, float] = {"float32": 2e-3, "bfloat16": 0.02, "float16": 0.02}
"""How far a probability of a golden image may move, on whatever machine; its label may not."""

_TIMED_RUNS = 5


@dataclass(frozen=True)
class Form:
    """The form in which an engine computes.

    Attributes:
        precision: type that convolutions and products take their inputs in.
        device: "CPU" or "GPU".
        threads: on a CPU; None where TensorFlow chooses.
        xla: whether XLA compiles what it can; tried on GPUs alone, since it was no faster on CPUs.
        note: why it isn't a faster form, where one was tried.
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
        ood_score: `[N]`; None from a bundle that has nothing to compare with.
        embeddings: `[N, D]`, pooled features; None from a bundle that was made before there were any.
    """

    probabilities: npt.NDArray[np.float32]
    ood_score: npt.NDArray[np.float32] | None
    embeddings: npt.NDArray[np.float32] | None


class Engine:
    """Predictions for batches of decoded images.

    The ragged end of the work is padded to the batch shape, so that TensorFlow traces and tunes once.

    Attributes:
        form: how it computes.
    """

    def __init__(
        self,
        saved_model: Path,
        image_size_px: int,
        batch_size: int,
        form: Form = Form("float32", "CPU"),
    ) -> None:
        """Load; the first answer takes TensorFlow longer.

        Args:
            saved_model: a bundle's `saved_model` directory.
            image_size_px: side S of the square input.
            batch_size: images in one step.
            form: precision and XLA count for every engine of the process, threads for its first alone.
        """
        self.form = form
        self._batch_size = batch_size
        if form.threads is not None:
            limit_threads(form.threads)
        _set_form(form)
        self._run = tf.saved_model.load(str(saved_model)).signatures["serving_default"]
        self._pixels = np.zeros((batch_size, image_size_px, image_size_px, 3), np.uint8)

    def predict(self, pixels: npt.NDArray[np.uint8]) -> Predictions:
        """Predictions to uint8 images `[N, S, S, 3]`; N is 1 or more."""
        parts = [
            _take(self._run_padded(pixels[start : start + self._batch_size]), len(pixels) - start)
            for start in range(0, len(pixels), self._batch_size)
        ]
        return parts[0] if len(parts) == 1 else _join(parts)

    def predict_golden(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Probabilities `[N, C]` of few images: where no shape is compiled they aren't padded, which costs a batch."""
        return (self.predict(pixels) if self.form.device == "GPU" else self._run_all(pixels)).probabilities

    def time_batch(self) -> float:
        """Seconds that a batch takes, the best of a few runs."""
        return min(_time(self._run_padded, self._pixels) for _ in range(_TIMED_RUNS))

    def _run_padded(self, pixels: npt.NDArray[np.uint8]) -> Predictions:
        if len(pixels) < self._batch_size:
            self._pixels[: len(pixels)] = pixels
            pixels = self._pixels
        return self._run_all(pixels)

    def _run_all(self, pixels: npt.NDArray[np.uint8]) -> Predictions:
        result = self._run(tf.constant(pixels))
        ood_score, embeddings = (
            result[name].numpy() if name in result else None for name in ("ood_score", "embedding")
        )
        return Predictions(result["probabilities"].numpy(), ood_score, embeddings)


def _take(predictions: Predictions, count: int) -> Predictions:
    probabilities, ood_score, embeddings = predictions
    return Predictions(
        probabilities[:count],
        None if ood_score is None else ood_score[:count],
        None if embeddings is None else embeddings[:count],
    )


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
    """The fastest engine that this process's device has and that answers the golden images right; it is warm.

    Args:
        bundle: what to answer with.
        batch_size: images in one step.
        num_threads: TensorFlow's on a CPU; None leaves them alone.
        precision: of convolutions and products; `auto` falls back to float32 where a faster type moves the golden
            answers by more than `GOLDEN_TOLERANCES`.

    Raises:
        StoppedError: the precision asked for, or float32, moves them too far.
    """
    device: Literal["CPU", "GPU"] = "GPU" if count_gpus() else "CPU"
    golden = bundle.load_golden()
    pixels = np.stack([decode(image.data, bundle.image_size_px).pixels for image in golden])
    notes: list[str] = []

    def make(form: Form) -> Engine | None:
        """An engine of this form, None where its golden answers are wrong."""
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
            # made anew where it wins: TensorFlow computes every graph as it was told last
            chosen = compiled if compiled is not None and compiled.time_batch() < plain_s else make(form)
        if chosen is not None:
            chosen.form = replace(chosen.form, note="; ".join(notes))
            return chosen
    raise StoppedError(
        f"the model doesn't give its golden answers here ({'; '.join(notes)}); give another --precision, "
        "or use another machine"
    )


def count_gpus() -> int:
    """GPUs that TensorFlow sees."""
    return len(tf.config.list_physical_devices("GPU"))


def find_golden_fault(golden: Sequence[Golden], answers: npt.NDArray[np.float32], tolerance: float) -> str | None:
    """Return how predictions `[N, C]` of the golden images differ from the recorded ones; None where they agree."""
    expected = np.stack([image.probabilities for image in golden])
    moved = float(np.abs(answers - expected).max())
    if not moved <= tolerance:  # nor where it is NaN
        return f"a golden answer moves by {moved:.2g}, {tolerance:g} are allowed"
    if (answers.argmax(axis=1) != expected.argmax(axis=1)).any():
        return "a golden label changes"
    return None


def freeze(call: Callable[..., Any], variables: Iterable[Any], *specs: tf.TensorSpec) -> Any:
    """Trace `call` on tensors of these specs, with every one of the Keras variables as a constant in the graph.

    Freezing a traced graph afterwards would do the same, but takes longer than tracing it.

    Returns:
        a function of the same arguments and results.
    """
    import keras  # not above: a process that only predicts does without it, see tf_imports.py

    values = [(variable, variable.numpy()) for variable in variables]

    @tf.function(input_signature=specs, autograph=False)
    def traced(*inputs: Any) -> Any:
        constants = [(variable, tf.constant(value)) for variable, value in values]
        with keras.StatelessScope(state_mapping=constants):
            return call(*inputs)

    return traced.get_concrete_function()


def allow_bfloat16(*, allowed: bool = True) -> None:
    """Let oneDNN compute convolutions and products in bfloat16; its sums stay float32."""
    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": allowed})


def limit_threads(num_threads: int) -> None:
    """Give TensorFlow a number of threads; without effect once it has run anything."""
    try:
        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:  # TensorFlow is already running with what it has
        return


def _set_form(form: Form) -> None:
    """Have all graphs of this process computed so from now on."""
    if form.device == "CPU":
        allow_bfloat16(allowed=form.precision == "bfloat16")
        return
    tf.config.optimizer.set_experimental_options({"auto_mixed_precision": form.precision == "float16"})
    tf.config.optimizer.set_jit(form.xla)
    tf.config.experimental.enable_tensor_float_32_execution(form.precision != "float32")


def _time(call: Callable[..., Any], *arguments: Any) -> float:
    began = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - began
