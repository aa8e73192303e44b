"""The network: a pre-trained base, global average pooling, dense layers, a softmax; and the part that a phase trains.

It maps float32 pixels in [0, 255], `[N, S, S, 3]`, to float32 probabilities `[N, C]`; the base's own input scale is
inside. Training may enter it later than at the pixels, if everything before is frozen and was computed once:

    pixels ──> rescale ──> base up to the boundary ──> rest of the base ──> pool ──> dense layers ──> softmax
    "pixels"               (always frozen)        "activations"           "pooled"
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import h5py
import keras
import numpy as np
import numpy.typing as npt

from tlray.errors import WeightsError
from tlray.model.backbones import BACKBONES, BASE
from tlray.storage.records import Json

if TYPE_CHECKING:
    import tensorflow as tf

Entrance = Literal["pixels", "activations", "pooled"]
"""The place at which a batch enters the network."""

Weights: TypeAlias = dict[str, npt.NDArray[np.generic]]
"""Arrays by name, `head/LAYER/VARIABLE` and `base/POSITION/VARIABLE`: the same for any part of the network."""

POOL = "pool"
"""Name of the layer that gives an image's pooled features."""

_FRESH_BATCHNORM_MOMENTUM = 0.9
# Keras's bases have 0.99 or more: after a few hundred steps their moving statistics would still be half initial


def build_base(
    backbone: str, image_size_px: int, *, weights: bytes | None, seed: int, train_batchnorm: bool = False
) -> keras.Model:
    """Build a base, float32 `[N, S, S, 3]` in the base's own scale -> a feature map; the same for the same arguments.

    Args:
        weights: an HDF5 file of the base without its top; None for random weights.
        seed: seed of random weights.

    Raises:
        WeightsError: the weights are of another network.
    """
    keras.utils.set_random_seed(seed)
    base = BACKBONES[backbone].build(image_size_px)
    base.name = BASE
    if weights is not None:
        _load_base_weights(base, weights, backbone)
    if train_batchnorm:
        _follow_quickly(base)
    return base


def build_head(backbone: str, head_units: Sequence[int], num_classes: int, *, seed: int) -> list[keras.layers.Dense]:
    """Build the dense layers from pooled features to probabilities; the last is a float32 softmax."""
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(units, "relu", name=f"dense_{index}") for index, units in enumerate(head_units)]
    layers.append(keras.layers.Dense(num_classes, activation="softmax", dtype="float32", name="probabilities"))
    widths = (BACKBONES[backbone].num_features, *head_units)
    for layer, width in zip(layers, widths, strict=True):
        layer.build((None, width))
    return layers


@dataclass(frozen=True)
class Tail:
    """The layers of a base after a boundary: Keras's config, positions in the whole base by name, and weights."""

    config: dict[str, Json]
    positions: dict[str, int]
    weights: Weights


def cut_tail(base: keras.Model, boundary: str) -> Tail:
    """Return the part of a base after a boundary."""
    model = keras.Model(base.get_layer(boundary).output, base.output)
    positions = find_positions(base)
    positions = {layer.name: positions[layer.name] for layer in model.layers if layer.name in positions}
    named = [(positions[layer.name], variable) for layer in model.layers for variable in layer.variables]
    weights = {f"base/{position}/{variable.name}": np.asarray(variable) for position, variable in named}
    return Tail(model.get_config(), positions, weights)


def build_tail(tail: Tail, *, train_batchnorm: bool = False) -> keras.Model:
    """Build a tail under the current dtype policy, with random weights: activations -> feature map."""
    dtype = {"dtype": keras.config.dtype_policy().name}
    layers = [
        layer if layer["class_name"] == "InputLayer" else {**layer, "config": {**layer["config"], **dtype}}
        for layer in tail.config["layers"]
    ]
    model = keras.Model.from_config({**tail.config, "name": BASE, "layers": layers})
    if train_batchnorm:
        _follow_quickly(model)
    return model


class Network:
    """The part of the network from an entrance on.

    Args:
        base: the layers between the entrance and pooling; None if pooled features enter.
        positions: position of each of them in the whole base, by name.
        head: result of `build_head`.
        train_batchnorm: True lets the BatchNorm of trained layers follow the batch.
    """

    def __init__(
        self,
        backbone: str,
        entrance: Entrance,
        base: keras.Model | None,
        positions: dict[str, int],
        head: list[keras.layers.Dense],
        *,
        train_batchnorm: bool,
    ) -> None:
        self.entrance = entrance
        self.base = base
        self.head = head
        self._backbone = BACKBONES[backbone]
        self._positions = positions
        self._train_batchnorm = train_batchnorm

    def open_base(self, boundary: str | None) -> None:
        """Train the base after `boundary`, BatchNorm only if the network trains it; None freezes all of it."""
        if self.base is None:
            return
        self.base.trainable = True
        layers: list[keras.Layer] = []
        if boundary is not None:
            tail = self.entrance == "activations"
            layers = self.base.layers if tail else self._backbone.list_open_layers(self.base, boundary)
        opened = {id(layer) for layer in layers}
        if not self._train_batchnorm:
            opened -= {id(layer) for layer in list_batchnorm(self.base)}
        for layer in self.base.layers:
            layer.trainable = id(layer) in opened

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """Variables that the phase trains, in order."""
        base = self.base.trainable_variables if self.base is not None else []
        return [*base, *(variable for layer in self.head for variable in layer.trainable_variables)]

    @property
    def num_features(self) -> int:
        """Width of the pooled features."""
        return self._backbone.num_features

    def call(self, inputs: tf.Tensor, *, training: bool, masks: tf.Tensor | None = None) -> tf.Tensor:
        """Return the logits, float32 `[N, C]`, of float32 pixels in [0, 255], activations or pooled features.

        `masks`, float32 `[N, sum of head units]`, are factors of the dense layers' outputs (dropout), or `[N, D]` of
        the pooled features where there are no dense layers; None for ones.
        """
        return self.classify(self.embed(inputs, training=training), masks=masks)

    def embed(self, inputs: tf.Tensor, *, training: bool) -> tf.Tensor:
        """Return the pooled features `[N, D]`; arguments as `call`."""
        features = inputs
        if self.entrance == "pixels":
            features = features * self._backbone.scale + self._backbone.offset
        if self.base is not None:
            features = self.base(features, training=training and self._train_batchnorm)
            features = keras.ops.mean(features, axis=(1, 2))
        return features

    def classify(self, features: tf.Tensor, *, masks: tf.Tensor | None = None) -> tf.Tensor:
        """Return the logits of pooled features, float32 `[N, C]`, whose softmax the model gives; `masks` as `call`."""
        start = 0
        if masks is not None and len(self.head) == 1:
            features = features * keras.ops.cast(masks, features.dtype)
        for layer in self.head[:-1]:
            features = layer(features)
            if masks is not None:
                features = features * keras.ops.cast(masks[:, start : start + layer.units], features.dtype)
                start += layer.units
        last = self.head[-1]
        return keras.ops.matmul(keras.ops.cast(features, "float32"), last.kernel) + last.bias

    def read_weights(self, *, opened_only: bool) -> Weights:
        """Copy the weights: all, or the head's and those of the base's trained layers."""
        return {name: np.array(variable) for name, variable in self._iter_variables(opened_only=opened_only)}

    def assign_weights(self, weights: Weights) -> None:
        """Set the weights that are named."""
        for name, variable in self._iter_variables(opened_only=False):
            if name in weights:
                variable.assign(weights[name])

    def list_statistics(self) -> list[keras.Variable]:
        """Return the moving mean and variance of every trained BatchNorm."""
        layers = [layer for layer in list_batchnorm(self.base) if layer.trainable] if self.base is not None else []
        return [variable for layer in layers for variable in (layer.moving_mean, layer.moving_variance)]

    def _iter_variables(self, *, opened_only: bool) -> list[tuple[str, keras.Variable]]:
        named = [
            (f"head/{layer.name}/{variable.name}", variable) for layer in self.head for variable in layer.variables
        ]
        for layer in self.base.layers if self.base is not None else ():
            if layer.trainable or not opened_only:
                position = self._positions.get(layer.name)
                named += [(f"base/{position}/{variable.name}", variable) for variable in layer.variables]
        return named


def find_positions(base: keras.Model) -> dict[str, int]:
    """Return the position of each layer of a whole base, by name."""
    return {layer.name: position for position, layer in enumerate(base.layers)}


def assemble_model(backbone: str, base: keras.Model, head: Sequence[keras.layers.Dense]) -> keras.Model:
    """Build the whole network: float32 pixels in [0, 255] `[N, S, S, 3]` -> probabilities `[N, C]`."""
    entry = BACKBONES[backbone]
    inputs = keras.Input(base.input.shape[1:], dtype="float32", name="image")
    features = keras.layers.Rescaling(entry.scale, entry.offset, name="rescale")(inputs)
    features = base(features, training=False)
    features = keras.layers.GlobalAveragePooling2D(name=POOL)(features)
    for layer in head:
        features = layer(features)
    return keras.Model(inputs, features, name="tlray")


def make_optimizer(
    name: str, learning_rate: float | keras.optimizers.schedules.LearningRateSchedule, *, nesterov: bool = False
) -> keras.optimizers.Optimizer:
    """Make RMSprop or Adam with Keras's defaults, or SGD with momentum 0.9, perhaps Nesterov's."""
    if name == "sgd":
        return keras.optimizers.SGD(learning_rate, momentum=0.9, nesterov=nesterov)
    constructors = {"rmsprop": keras.optimizers.RMSprop, "adam": keras.optimizers.Adam}
    return constructors[name](learning_rate)


def hash_weights(weights: Sequence[npt.NDArray[np.float32]]) -> str:
    """Return the sha256 over shapes and float32 values, in the network's own order."""
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


def _follow_quickly(base: keras.Model) -> None:
    for layer in list_batchnorm(base):
        layer.momentum = _FRESH_BATCHNORM_MOMENTUM


def list_batchnorm(base: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Return the BatchNorm layers of a base, in order."""
    return [layer for layer in base.layers if isinstance(layer, keras.layers.BatchNormalization)]
