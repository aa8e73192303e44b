"""Turn a Keras model into a frozen graph, a SavedModel and golden images."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tlray.errors import FetchError, ImageError
from tlray.images.decode import decode
from tlray.images.formats import EXTENSIONS
from tlray.images.limits import Limits
from tlray.metrics.ood import OodScore
from tlray.model.bundle import GOLDEN
from tlray.model.manifest import GoldenImage, GoldenRecord
from tlray.storage.records import dump_record

GOLDEN_IMAGES = 8
GOLDEN_MARGIN = 0.1
"""Least difference between the two highest probabilities, so that rounding cannot change a golden image's label."""
_GOLDEN_MAX_BYTES = 4 * 2**20

GoldenCandidate: TypeAlias = tuple[str, bytes, npt.NDArray[np.uint8]]
"""Address, file and pixels `[S, S, 3]` of an image."""


def freeze(
    call: Callable[..., tf.Tensor], variables: Iterable[keras.Variable], *specs: tf.TensorSpec
) -> tf.types.experimental.ConcreteFunction:
    """Trace `call` on tensors of these specs, with the variables as constants of the graph.

    Freezing a traced graph afterwards would do the same, but takes longer than tracing it.
    """
    values = [(variable, variable.numpy()) for variable in variables]

    @tf.function(input_signature=specs, autograph=False)
    def traced(*inputs: tf.Tensor) -> tf.Tensor:
        constants = [(variable, tf.constant(value)) for variable, value in values]
        with keras.StatelessScope(state_mapping=constants):
            return call(*inputs)

    return traced.get_concrete_function()


def freeze_classifier(
    model: keras.Model, pooled: keras.KerasTensor | None, image_size_px: int, ood_score: OodScore | None
) -> tf.types.experimental.ConcreteFunction:
    """Freeze a network to one graph of constants.

    Args:
        model: float32 pixels in [0, 255], `[N, S, S, 3]` -> probabilities `[N, C]`.
        pooled: its pooled features, `[N, D]`; None if it has none.

    Returns:
        a function of uint8 `[N, S, S, 3]` that gives float32 `probabilities` `[N, C]`, `embedding` `[N, D]` if the
        model has pooled features, and `ood_score` `[N]` if it has references.
    """
    outputs = {"probabilities": model.outputs[0]}
    if pooled is not None:
        outputs["embedding"] = pooled
    whole = keras.Model(model.inputs, outputs)
    spec = tf.TensorSpec((None, image_size_px, image_size_px, 3), tf.uint8, name="image")

    def call(image: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs: dict[str, tf.Tensor] = whole(tf.cast(image, tf.float32), training=False)
        if ood_score is not None:
            outputs = {**outputs, "ood_score": _score_ood(outputs["embedding"], ood_score)}
        return outputs

    return freeze(call, model.variables, spec)


def _score_ood(embedding: tf.Tensor, ood_score: OodScore) -> tf.Tensor:
    """Compute `OodScore.measure` in the graph."""
    # float64, which no engine reduces to bfloat16: that has steps of 0.004 near a cosine of 1
    unit = tf.math.l2_normalize(tf.cast(embedding, tf.float64), axis=1)
    num_classes, most, size = ood_score.references.shape
    references = tf.constant(ood_score.references.reshape(num_classes * most, size), tf.float64)
    cosines = tf.reshape(tf.linalg.matmul(unit, references, transpose_b=True), (-1, num_classes, most))
    nearest = tf.math.top_k(cosines + ood_score.penalties.astype(np.float64), ood_score.neighbours).values
    distances = 1 - tf.reduce_sum(nearest * ood_score.shares.astype(np.float64), axis=2)
    return tf.cast(tf.reduce_min(distances / ood_score.scales.astype(np.float64), axis=1), tf.float32)


def save_for_serving(frozen: tf.types.experimental.ConcreteFunction, path: Path) -> None:
    """Write a SavedModel without variables; it loads four times faster than Keras's own export."""
    module = tf.Module()
    signature = [tf.TensorSpec(frozen.inputs[0].shape, tf.uint8, name="image")]

    @tf.function(input_signature=signature, autograph=False)
    def serve(image: tf.Tensor) -> tf.Tensor:
        return frozen(image)["probabilities"]

    @tf.function(input_signature=signature, autograph=False)
    def serving_default(image: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs: dict[str, tf.Tensor] = frozen(image)
        return outputs

    module.serve = serve
    tf.saved_model.save(module, str(path), signatures={"serving_default": serving_default})


def save_for_openvino(folder: Path, ood_score: OodScore | None) -> str | None:
    """Write the `openvino/` of a bundle's folder from its `saved_model/`.

    Returns:
        the reason why there is none, if OpenVINO cannot convert the network.
    """
    from tlray.model.engines.openvino_engine import convert

    try:
        convert(folder / "saved_model", folder / "openvino", ood_score)
    except RuntimeError as error:
        shutil.rmtree(folder / "openvino", ignore_errors=True)
        return " ".join(str(error).split())[:300]
    return None


def read_images(
    names: Sequence[str], fetched: Iterable[bytes | FetchError], image_size_px: int, limits: Limits
) -> list[GoldenCandidate]:
    """Read those fetched images that can be decoded and are small enough for a bundle."""
    read: list[GoldenCandidate] = []
    for uri, data in zip(names, fetched, strict=True):
        if not isinstance(data, FetchError) and len(data) <= _GOLDEN_MAX_BYTES:
            with contextlib.suppress(ImageError):
                read.append((uri, data, decode(data, image_size_px, limits).pixels))
    return read


def make_golden(
    frozen: tf.types.experimental.ConcreteFunction, read: Sequence[GoldenCandidate], classes: Sequence[str]
) -> dict[str, bytes]:
    """Return the files of up to 8 golden images with a clear label, of at least one candidate, and their record."""
    probabilities = np.empty((0, len(classes)), np.float32)
    margins = np.empty(0, np.float32)
    while len(probabilities) < len(read) and (margins >= GOLDEN_MARGIN).sum() < GOLDEN_IMAGES:
        pixels = np.stack([pixels for _, _, pixels in read[len(probabilities) : len(probabilities) + GOLDEN_IMAGES]])
        with tf.device("/CPU:0"):  # devices are set by thread, and this is a pool's thread
            probabilities = np.concatenate([probabilities, frozen(tf.constant(pixels))["probabilities"].numpy()])
        ordered = np.sort(probabilities, axis=1)
        margins = ordered[:, -1] - ordered[:, -2]
    # a model without any clear label still gets one golden image
    chosen = np.flatnonzero(margins >= GOLDEN_MARGIN)[:GOLDEN_IMAGES]
    if len(chosen) == 0:
        chosen = margins.argsort()[-1:]
    files: dict[str, bytes] = {}
    records = []
    for index, position in enumerate(chosen):
        uri, data, _ = read[position]
        suffix = Path(uri).suffix.lower()
        name = f"golden/{index}{suffix if suffix in EXTENSIONS else ''}"
        files[name] = data
        values = [float(value) for value in probabilities[position]]
        records.append(GoldenImage(name, classes[int(probabilities[position].argmax())], values))
    files[GOLDEN] = dump_record(GoldenRecord(records))
    return files
