"""Trained weights -> the files of a bundle that hold the model: Keras's, TensorFlow's, and the golden answers."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import numpy.typing as npt
import ray
import tensorflow as tf

from tlray import storage
from tlray.bundle import GOLDEN
from tlray.errors import FetchError
from tlray.images import decode
from tlray.model import build_model, hash_weights

if TYPE_CHECKING:
    from tlray.training.loop import Task

GOLDEN_IMAGES = 8
GOLDEN_MARGIN = 0.1
"""Least distance between the two most probable classes, so that rounding cannot change a golden image's label."""

_GOLDEN_MAX_BYTES = 4 * 2**20


def export_model(task: Task, weights: list[npt.NDArray[np.float32]]) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Rebuild the network outside of any strategy, on the CPU, and save it.

    Returns:
        `model.keras`, `saved_model/...` and `golden/...` by name; and the bundle's `architecture`.
    """
    with tf.device("/CPU:0"):
        model = build_model(
            task.backbone,
            task.image_size_px,
            task.head_units,
            len(task.classes),
            train_batchnorm=task.train_batchnorm,
        )
        model.set_weights(weights)
        with tempfile.TemporaryDirectory(prefix="tlray-") as folder:
            model.save(Path(folder, "model.keras"))
            _save_for_serving(model, task.image_size_px, Path(folder, "saved_model"))
            files = {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in sorted(Path(folder).rglob("*"))
                if path.is_file()
            }
        files |= _make_golden(model, task)
    architecture = {
        "backbone": task.backbone,
        "head_units": list(task.head_units),
        "num_classes": len(task.classes),
        "weights_sha256": hash_weights(weights),
    }
    return files, architecture


def _save_for_serving(model: keras.Model, image_size_px: int, path: Path) -> None:
    """uint8 `[N, S, S, 3]` in, float32 probabilities `[N, C]` out."""
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        name="serve",
        fn=lambda image: model(tf.cast(image, tf.float32), training=False),
        input_signature=[tf.TensorSpec((None, image_size_px, image_size_px, 3), tf.uint8, name="image")],
    )
    archive.write_out(str(path), verbose=False)


def _make_golden(model: keras.Model, task: Task) -> dict[str, bytes]:
    """Up to 8 images that the model is sure enough about, as they were read, with its probabilities."""
    addresses = ray.get(task.uris)
    uris = [addresses[int(row)] for row in task.golden_rows]
    chosen: list[tuple[float, str, bytes, npt.NDArray[np.float32]]] = []
    for uri, data in zip(uris, storage.get_many(uris), strict=True):
        if isinstance(data, FetchError) or len(data) > _GOLDEN_MAX_BYTES:
            continue
        limits = task.limits
        pixels = decode(data, task.image_size_px, max_bytes=limits.max_bytes, max_pixels=limits.max_pixels).pixels
        (probabilities,) = model(pixels[None].astype(np.float32), training=False).numpy()
        second, first = np.sort(probabilities)[-2:]
        chosen.append((float(first - second), uri, data, probabilities))
    sure = [entry for entry in chosen if entry[0] >= GOLDEN_MARGIN]
    # a model that is sure of nothing still gets one image to be compared by
    kept = sure[:GOLDEN_IMAGES] or sorted(chosen, key=lambda entry: -entry[0])[:1]
    files: dict[str, bytes] = {}
    answers = []
    for index, (_, uri, data, probabilities) in enumerate(kept):
        name = f"golden/{index}{Path(uri).suffix.lower()}"
        files[name] = data
        label = int(probabilities.argmax())
        values = [float(value) for value in probabilities]
        answers.append({"file": name, "class_name": task.classes[label], "probabilities": values})
    files[GOLDEN] = json.dumps({"images": answers}, indent=2).encode()
    return files
