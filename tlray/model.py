"""The network: a pre-trained base, global average pooling, dense layers, a softmax; and what of it each phase trains.

It takes float32 (or uint8) pixels in [0, 255], `[N, S, S, 3]`, and answers with float32 probabilities `[N, C]`: the
base's own input scale is inside.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import h5py
import keras
import numpy as np
import numpy.typing as npt

from tlray.backbones import BACKBONES, BASE
from tlray.errors import WeightsError

Phase = Literal["head", "finetune"]

_FRESH_BATCHNORM_MOMENTUM = 0.9
# Keras's bases come with 0.99 or more: after a few hundred steps their moving statistics would still be half initial


def build_model(
    backbone: str,
    image_size_px: int,
    head_units: Sequence[int],
    num_classes: int,
    *,
    base_weights: bytes | None = None,
    train_batchnorm: bool = False,
) -> keras.Model:
    """Build the network.

    Args:
        backbone: a name in `BACKBONES`.
        image_size_px: side S of the square input.
        head_units: width of each dense layer between pooling and softmax.
        num_classes: C.
        base_weights: an HDF5 file of the base without its top; None leaves it random.
        train_batchnorm: whether BatchNorm may follow the batch where its layer is trained; False always uses the
            moving statistics.

    Raises:
        WeightsError: the weights are of another network.
    """
    entry = BACKBONES[backbone]
    base = entry.build(image_size_px)
    base.name = BASE
    if base_weights is not None:
        _load_base_weights(base, base_weights, backbone)
    if train_batchnorm:
        for layer in list_batchnorm(base):
            layer.momentum = _FRESH_BATCHNORM_MOMENTUM
    inputs = keras.Input((image_size_px, image_size_px, 3), dtype="float32", name="image")
    features = keras.layers.Rescaling(entry.scale, entry.offset, name="rescale")(inputs)
    features = base(features) if train_batchnorm else base(features, training=False)
    features = keras.layers.GlobalAveragePooling2D(name="pool")(features)
    for index, units in enumerate(head_units):
        features = keras.layers.Dense(units, activation="relu", name=f"dense_{index}")(features)
    outputs = keras.layers.Dense(num_classes, activation="softmax", dtype="float32", name="probabilities")(features)
    return keras.Model(inputs, outputs, name="tlray")


def open_phase(model: keras.Model, phase: Phase, backbone: str, finetune_from: str, *, train_batchnorm: bool) -> None:
    """Freeze everything that a phase does not train.

    Phase "head" trains the dense layers alone; "finetune" also the base's layers after `finetune_from`, its BatchNorm
    only where `train_batchnorm`.
    """
    base = model.get_layer(BASE)
    base.trainable = True
    opened = set()
    if phase == "finetune":
        opened = {id(layer) for layer in BACKBONES[backbone].list_open_layers(base, finetune_from)}
    if not train_batchnorm:
        opened -= {id(layer) for layer in list_batchnorm(base)}
    for layer in base.layers:
        layer.trainable = id(layer) in opened


def make_optimizer(name: str, learning_rate: float) -> keras.optimizers.Optimizer:
    """RMSprop and Adam with Keras's defaults; SGD with momentum 0.9."""
    if name == "sgd":
        return keras.optimizers.SGD(learning_rate, momentum=0.9)
    constructors = {"rmsprop": keras.optimizers.RMSprop, "adam": keras.optimizers.Adam}
    return constructors[name](learning_rate)


def hash_weights(weights: Sequence[npt.NDArray[np.float32]]) -> str:
    """sha256 over shapes and float32 values, in the network's own order."""
    digest = hashlib.sha256()
    for array in weights:
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array, np.float32).tobytes())
    return digest.hexdigest()


def _load_base_weights(base: keras.Model, data: bytes, backbone: str) -> None:
    with h5py.File(io.BytesIO(data)) as file:
        # Keras picks the layout by the name, and a wrong one can leave random weights with no more than a warning
        name = "base.h5" if "layer_names" in file.attrs else "base.weights.h5"
    with tempfile.TemporaryDirectory(prefix="tlray-") as folder, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        path = Path(folder, name)
        path.write_bytes(data)
        try:
            base.load_weights(path)
        except (ValueError, KeyError, TypeError, OSError, UserWarning) as error:
            reason = str(error).partition(". ")[0].splitlines()[0] if str(error) else type(error).__name__
            raise WeightsError(f"the weights file is not of a {backbone} without its top: {reason}") from None


def list_batchnorm(base: keras.Model) -> list[keras.layers.BatchNormalization]:
    """BatchNorm layers of a base, in order."""
    return [layer for layer in base.layers if isinstance(layer, keras.layers.BatchNormalization)]
