"""Export trained weights as the model files of a bundle: Keras, SavedModel, golden images and TensorBoard."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np
import numpy.typing as npt
import ray
import tensorflow as tf

from tlray.errors import StoppedError
from tlray.metrics.calibration import Calibration
from tlray.model.manifest import Architecture, EpochRecord
from tlray.model.network import (
    POOL,
    Network,
    Weights,
    assemble_model,
    build_base,
    build_head,
    find_positions,
    hash_weights,
)
from tlray.model.serving import freeze_classifier, make_golden, read_images, save_for_openvino, save_for_serving

if TYPE_CHECKING:
    from tlray.sources.places import Places
    from tlray.training.task import TrainingTask


_SCALAR = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars"), data_class="DATA_CLASS_SCALAR"
)


def export_model(
    task: TrainingTask, weights: Weights, history: Sequence[EpochRecord], calibration: Calibration
) -> tuple[dict[str, npt.NDArray[np.uint8]], Architecture]:
    """Build the whole network outside of any strategy, on the CPU, in float32, and save it.

    Args:
        weights: the trained weights by name; all others keep their initial values.
        calibration: its temperature is folded into the last layer, its out-of-distribution score into the SavedModel.

    Returns:
        `model.keras`, `openvino/...`, `saved_model/...`, `golden/...` and `training/tensorboard/...` by name, as arrays
        that Ray shares without a copy; and the bundle's `architecture`.
    """
    keras.config.set_dtype_policy("float32")
    with tf.device("/CPU:0"):
        model = _assemble(task, weights, calibration.temperature)
        frozen = freeze_classifier(model, model.get_layer(POOL).output, task.image_size_px, calibration.ood_score)
        # TensorFlow's first run spends seconds outside Python's lock, saving spends them inside
        with ThreadPoolExecutor(1) as pool, tempfile.TemporaryDirectory(prefix="tlray-") as folder:
            golden = pool.submit(_make_golden, frozen, task)
            model.save(Path(folder, "model.keras"))
            save_for_serving(frozen, Path(folder, "saved_model"))
            save_for_openvino(Path(folder), calibration.ood_score)
            _write_tensorboard(history, Path(folder, "training", "tensorboard"))
            files = {
                path.relative_to(folder).as_posix(): np.fromfile(path, np.uint8)
                for path in sorted(Path(folder).rglob("*"))
                if path.is_file()
            }
            files |= {name: np.frombuffer(data, np.uint8) for name, data in golden.result().items()}
    architecture = Architecture(
        backbone=task.backbone,
        head_units=tuple(task.head_units),
        num_classes=len(task.classes),
        num_features=int(model.get_layer(POOL).output.shape[-1]),
        weights_sha256=hash_weights(model.get_weights()),
    )
    return files, architecture


def _assemble(task: TrainingTask, weights: Weights, temperature: float) -> keras.Model:
    """Build the whole network; dividing the last layer's weights by the temperature divides its logits."""
    base_weights = ray.get(task.base_weights) if task.base_weights is not None else None
    base = build_base(task.backbone, task.image_size_px, weights=base_weights, seed=task.seed)
    head = build_head(task.backbone, task.head_units, len(task.classes), seed=task.seed)
    network = Network(task.backbone, "pixels", base, find_positions(base), head, train_batchnorm=False)
    network.assign_weights(weights)
    for variable in head[-1].variables:
        variable.assign(variable / temperature)
    return assemble_model(task.backbone, base, head)


def _write_tensorboard(history: Sequence[EpochRecord], path: Path) -> None:
    """Write one run for training and one for validation, named as Keras's callback names them."""
    runs = (("train", ("loss", "accuracy", "learning_rate")), ("validation", ("val_loss", "val_accuracy")))
    for run, names in runs:
        measured = [record for record in history if getattr(record, names[0]) is not None]
        if not measured:
            continue
        with tf.summary.create_file_writer(str(path / run)).as_default():
            for record in measured:
                for name in names:
                    tag = name if name == "learning_rate" else f"epoch_{name.removeprefix('val_')}"
                    # tf.summary.scalar does the same, but only where TensorBoard itself is installed
                    tf.summary.write(tag, np.float32(getattr(record, name)), record.epoch, _SCALAR)


def _make_golden(frozen: tf.types.experimental.ConcreteFunction, task: TrainingTask) -> dict[str, bytes]:
    places: Places = ray.get(task.images.places)
    names, limits = places.list_names(task.golden_rows), task.images.limits
    read = read_images(names, places.fetch(task.golden_rows, limits.max_bytes), task.image_size_px, limits)
    if not read:
        raise StoppedError(f"none of {len(names)} images can be read again, or all are above 4 MiB: no golden image")
    return make_golden(frozen, read, task.classes)
