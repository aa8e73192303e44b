"""A Keras model -> what serves it: one graph of constants, its SavedModel, and the golden probabilities."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlray import storage
from tlray.errors import FetchError, ImageError
from tlray.images.decode import decode
from tlray.images.limits import Limits
from tlray.metrics.ood import OodScore
from tlray.model.bundle import GOLDEN
from tlray.model.engine import freeze
from tlray.model.manifest import GoldenImage, GoldenRecord
from tlray.storage.records import dump_record

GOLDEN_IMAGES = 8
GOLDEN_MARGIN = 0.1
"""Least distance between the two most probable classes, so that rounding cannot change a golden image's label."""
_GOLDEN_MAX_BYTES = 4 * 2**20


def freeze_classifier(model: keras.Model, pooled: Any | None, image_size_px: int, ood_score: OodScore | None) -> Any:
    """The network as one graph of constants.

    Args:
        model: float32 pixels in [0, 255], `[N, S, S, 3]` -> probabilities `[N, C]`.
        pooled: its tensor of pooled features, `[N, D]`; None where it has none.
        image_size_px: side S.
        ood_score: what features are compared with; None without that.

    Returns:
        a function of uint8 `[N, S, S, 3]` that gives float32 `probabilities` `[N, C]` and, where there are such,
        `embedding` `[N, D]` and `ood_score` `[N]`.
    """
    outputs = {"probabilities": model.outputs[0]}
    if pooled is not None:
        outputs["embedding"] = pooled
    whole = keras.Model(model.inputs, outputs)
    spec = tf.TensorSpec((None, image_size_px, image_size_px, 3), tf.uint8, name="image")

    def call(image: Any) -> dict[str, Any]:
        outputs: dict[str, Any] = whole(tf.cast(image, tf.float32), training=False)
        if ood_score is not None:
            outputs = {**outputs, "ood_score": _score_ood(outputs["embedding"], ood_score)}
        return outputs

    return freeze(call, model.variables, spec)


def _score_ood(embedding: Any, ood_score: OodScore) -> Any:
    """Measure distances in the graph, as `metrics.ood.measure_distances`."""
    # in a type that no engine halves: near 1, a cosine in bfloat16 comes in steps of 0.004
    unit = tf.math.l2_normalize(tf.cast(embedding, tf.float64), axis=1)
    alike = tf.linalg.matmul(unit, tf.constant(ood_score.references, tf.float64), transpose_b=True)
    nearest = tf.math.top_k(alike, ood_score.neighbours).values[:, -1]
    return tf.cast((1 - nearest) / ood_score.scale, tf.float32)


def save_for_serving(frozen: Any, path: Path) -> None:
    """A SavedModel without variables: it loads four times faster than Keras's own export and probabilities at once."""
    module = tf.Module()
    signature = [tf.TensorSpec(frozen.inputs[0].shape, tf.uint8, name="image")]

    @tf.function(input_signature=signature)
    def serve(image: tf.Tensor) -> tf.Tensor:
        return frozen(image)["probabilities"]

    @tf.function(input_signature=signature)
    def serving_default(image: tf.Tensor) -> Any:
        return frozen(image)

    module.serve = serve
    tf.saved_model.save(module, str(path), signatures={"serving_default": serving_default})


def read_images(uris: Sequence[str], image_size_px: int, limits: Limits) -> list[tuple[str, bytes, Any]]:
    """Address, file and pixels of those images that can be decoded and are small enough to be kept in a bundle."""
    read = []
    for uri, data in zip(uris, storage.get_many(uris), strict=True):
        if not isinstance(data, FetchError) and len(data) <= _GOLDEN_MAX_BYTES:
            with contextlib.suppress(ImageError):
                read.append((uri, data, decode(data, image_size_px, limits).pixels))
    return read


def make_golden(frozen: Any, read: Sequence[tuple[str, bytes, Any]], classes: Sequence[str]) -> dict[str, bytes]:
    """Up to 8 images that the model is sure enough about, as they were read, with its probabilities.

    Args:
        frozen: as `freeze_classifier` made it.
        read: candidates, at least one, by `read_images`.
        classes: names by index.
    """
    probabilities = np.empty((0, len(classes)), np.float32)
    margins = np.empty(0, np.float32)
    while len(probabilities) < len(read) and (margins >= GOLDEN_MARGIN).sum() < GOLDEN_IMAGES:
        pixels = np.stack([pixels for _, _, pixels in read[len(probabilities) : len(probabilities) + GOLDEN_IMAGES]])
        with tf.device("/CPU:0"):  # a device holds for one thread, and this one is the pool's
            probabilities = np.concatenate([probabilities, frozen(tf.constant(pixels))["probabilities"].numpy()])
        ordered = np.sort(probabilities, axis=1)
        margins = ordered[:, -1] - ordered[:, -2]
    # a model that is sure of nothing still gets one image to be compared by
    chosen = np.flatnonzero(margins >= GOLDEN_MARGIN)[:GOLDEN_IMAGES]
    if len(chosen) == 0:
        chosen = margins.argsort()[-1:]
    files: dict[str, bytes] = {}
    records = []
    for index, position in enumerate(chosen):
        uri, data, _ = read[position]
        name = f"golden/{index}{Path(uri).suffix.lower()}"
        files[name] = data
        values = [float(value) for value in probabilities[position]]
        records.append(GoldenImage(name, classes[int(probabilities[position].argmax())], values))
    files[GOLDEN] = dump_record(GoldenRecord(records))
    return files
