"""Trained weights -> the files of a bundle that hold the model: Keras's, TensorFlow's, and the golden answers."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import numpy.typing as npt
import ray
import tensorflow as tf

from tlray import storage
from tlray.bundle import GOLDEN
from tlray.calibration import Calibration
from tlray.engine import freeze
from tlray.errors import FetchError, ImageError, StoppedError
from tlray.images import decode
from tlray.limits import Limits
from tlray.model import POOL, Network, Weights, assemble_model, build_base, build_head, find_positions, hash_weights
from tlray.oddness import Oddness

if TYPE_CHECKING:
    from tlray.training.task import Task

GOLDEN_IMAGES = 8
GOLDEN_MARGIN = 0.1
"""Least distance between the two most probable classes, so that rounding cannot change a golden image's label."""

_GOLDEN_MAX_BYTES = 4 * 2**20

_SCALAR = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars"), data_class="DATA_CLASS_SCALAR"
)


def export_model(
    task: Task, weights: Weights, history: Sequence[dict[str, Any]], calibration: Calibration
) -> tuple[dict[str, npt.NDArray[np.uint8]], dict[str, Any]]:
    """Build the whole network outside of any strategy, on the CPU, in float32, and save it.

    Args:
        task: what was trained.
        weights: of what was trained, by name; the rest is as it began.
        history: one record an epoch.
        calibration: its temperature goes into the last layer, its oddness beside the network.

    Returns:
        `model.keras`, `saved_model/...`, `golden/...` and `training/tensorboard/...` by name, as bytes that Ray
        can share without a copy; and the bundle's `architecture`.
    """
    keras.config.set_dtype_policy("float32")
    with tf.device("/CPU:0"):
        model = _assemble(task, weights, calibration.temperature)
        frozen = freeze_classifier(model, model.get_layer(POOL).output, task.image_size_px, calibration.oddness)
        # TensorFlow's first run works for seconds outside of Python's lock, saving inside of it
        with ThreadPoolExecutor(1) as pool, tempfile.TemporaryDirectory(prefix="tlray-") as folder:
            golden = pool.submit(_make_golden, frozen, task)
            model.save(Path(folder, "model.keras"))
            save_for_serving(frozen, Path(folder, "saved_model"))
            _write_tensorboard(history, Path(folder, "training", "tensorboard"))
            files = {
                path.relative_to(folder).as_posix(): np.fromfile(path, np.uint8)
                for path in sorted(Path(folder).rglob("*"))
                if path.is_file()
            }
            files |= {name: np.frombuffer(data, np.uint8) for name, data in golden.result().items()}
    architecture = {
        "backbone": task.backbone,
        "head_units": list(task.head_units),
        "num_classes": len(task.classes),
        "num_features": int(model.get_layer(POOL).output.shape[-1]),
        "weights_sha256": hash_weights(model.get_weights()),
    }
    return files, architecture


def _assemble(task: Task, weights: Weights, temperature: float) -> keras.Model:
    """The whole network; a softmax of logits divided by the temperature is one of weights divided by it."""
    base_weights = ray.get(task.base_weights) if task.base_weights is not None else None
    base = build_base(task.backbone, task.image_size_px, weights=base_weights, seed=task.seed)
    head = build_head(task.backbone, task.head_units, len(task.classes), seed=task.seed)
    network = Network(task.backbone, "pixels", base, find_positions(base), head, train_batchnorm=False)
    network.assign_weights(weights)
    for variable in head[-1].variables:
        variable.assign(variable / temperature)
    return assemble_model(task.backbone, base, head)


def freeze_classifier(model: keras.Model, pooled: Any | None, image_size_px: int, oddness: Oddness | None) -> Any:
    """The network as one graph of constants.

    Args:
        model: float32 pixels in [0, 255], `[N, S, S, 3]` -> probabilities `[N, C]`.
        pooled: its tensor of pooled features, `[N, D]`; None where it has none.
        image_size_px: side S.
        oddness: what features are compared with; None without that.

    Returns:
        a function of uint8 `[N, S, S, 3]` that gives float32 `probabilities` `[N, C]` and, where there are such,
        `embedding` `[N, D]` and `oddness` `[N]`.
    """
    outputs = {"probabilities": model.outputs[0]}
    if pooled is not None:
        outputs["embedding"] = pooled
    whole = keras.Model(model.inputs, outputs)
    spec = tf.TensorSpec((None, image_size_px, image_size_px, 3), tf.uint8, name="image")

    def call(image: Any) -> dict[str, Any]:
        answers: dict[str, Any] = whole(tf.cast(image, tf.float32), training=False)
        if oddness is not None:
            answers = {**answers, "oddness": _measure_oddness(answers["embedding"], oddness)}
        return answers

    return freeze(call, model.variables, spec)


def _measure_oddness(embedding: Any, oddness: Oddness) -> Any:
    """As `tlray.oddness.measure_distances`, in the graph."""
    # in a type that no engine halves: near 1, a cosine in bfloat16 comes in steps of 0.004
    unit = tf.math.l2_normalize(tf.cast(embedding, tf.float64), axis=1)
    alike = tf.linalg.matmul(unit, tf.constant(oddness.references, tf.float64), transpose_b=True)
    nearest = tf.math.top_k(alike, oddness.neighbours).values[:, -1]
    return tf.cast((1 - nearest) / oddness.scale, tf.float32)


def _write_tensorboard(history: Sequence[dict[str, Any]], path: Path) -> None:
    """One run for training and one for validation, as Keras's own callback names them."""
    for run, prefix in (("train", ""), ("validation", "val_")):
        if history[0][f"{prefix}loss"] is None:
            continue
        with tf.summary.create_file_writer(str(path / run)).as_default():
            for record in history:
                values = {f"epoch_{name}": record[prefix + name] for name in ("loss", "accuracy")}
                if run == "train":
                    values["learning_rate"] = record["learning_rate"]
                for name, value in values.items():
                    # tf.summary.scalar does the same, but only where TensorBoard itself is installed
                    tf.summary.write(name, np.float32(value), record["epoch"], _SCALAR)


def save_for_serving(frozen: Any, path: Path) -> None:
    """A SavedModel without variables: it loads four times faster than Keras's own export and answers at once."""
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


def _make_golden(frozen: Any, task: Task) -> dict[str, bytes]:
    addresses = ray.get(task.images.uris)
    uris = [addresses[int(row)] for row in task.golden_rows]
    read = read_images(uris, task.image_size_px, task.images.limits)
    if not read:
        raise StoppedError(f"none of {len(uris)} images can be read again, or all are above 4 MiB: no golden image")
    return make_golden(frozen, read, task.classes)


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
    answers = np.empty((0, len(classes)), np.float32)
    margins = np.empty(0, np.float32)
    while len(answers) < len(read) and (margins >= GOLDEN_MARGIN).sum() < GOLDEN_IMAGES:
        pixels = np.stack([pixels for _, _, pixels in read[len(answers) : len(answers) + GOLDEN_IMAGES]])
        with tf.device("/CPU:0"):  # a device holds for one thread, and this one is the pool's
            answers = np.concatenate([answers, frozen(tf.constant(pixels))["probabilities"].numpy()])
        ordered = np.sort(answers, axis=1)
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
        values = [float(value) for value in answers[position]]
        records.append({"file": name, "class_name": classes[int(answers[position].argmax())], "probabilities": values})
    files[GOLDEN] = json.dumps({"images": records}, indent=2).encode()
    return files
