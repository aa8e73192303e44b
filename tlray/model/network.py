"""The network: a pre-trained base, global average pooling, dense layers, a softmax; and what of it each phase trains.

It takes float32 pixels in [0, 255], `[N, S, S, 3]`, and answers with float32 probabilities `[N, C]`: the base's own
input scale is inside. Training may enter it later than at the pixels, where everything before is frozen and was
computed once:

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
from typing import Any, Literal

import h5py
import keras
import numpy as np
import numpy.typing as npt

from tlray.errors import WeightsError
from tlray.model.backbones import BACKBONES, BASE

Entrance = Literal["pixels", "activations", "pooled"]
"""Where a batch enters the network."""

Weights = dict[str, npt.NDArray[Any]]
"""Arrays by name: `head/LAYER/VARIABLE`, `base/POSITION/VARIABLE`; the same whichever part of the network is built."""

POOL = "pool"
"""Name of the layer whose output are an image's features."""

_FRESH_BATCHNORM_MOMENTUM = 0.9
# Keras's bases come with 0.99 or more: after a few hundred steps their moving statistics would still be half initial


def build_base(
    backbone: str, image_size_px: int, *, weights: bytes | None, seed: int, train_batchnorm: bool = False
) -> keras.Model:
    """Build a base, float32 `[N, S, S, 3]` in the base's own scale -> a feature map; the same for the same arguments.

    Args:
        backbone: a name in `BACKBONES`.
        image_size_px: side S of the square input.
        weights: an HDF5 file of the base without its top; None leaves it random.
        seed: of random weights.
        train_batchnorm: whether its BatchNorm will be trained.

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
    """Dense layers from pooled features to probabilities, built; the last is a float32 softmax."""
    keras.utils.set_random_seed(seed)
    layers = [
        keras.layers.Dense(units, activation="relu", name=f"dense_{index}") for index, units in enumerate(head_units)
    ]
    layers.append(keras.layers.Dense(num_classes, activation="softmax", dtype="float32", name="probabilities"))
    widths = (BACKBONES[backbone].num_features, *head_units)
    for layer, width in zip(layers, widths, strict=True):
        layer.build((None, width))
    return layers


@dataclass(frozen=True)
class Tail:
    """The layers of a base after a boundary, to be built without the rest: Keras's config and weights by name.

    Attributes:
        config: of a functional model, activations -> feature map.
        positions: of each of its layers in the whole base, by the layer's name.
        weights: of all its layers.
    """

    config: dict[str, Any]
    positions: dict[str, int]
    weights: Weights


def cut_tail(base: keras.Model, boundary: str) -> Tail:
    """Take the part after a boundary out of a base."""
    model = keras.Model(base.get_layer(boundary).output, base.output)
    positions = find_positions(base)
    positions = {layer.name: positions[layer.name] for layer in model.layers if layer.name in positions}
    weights = {
        f"base/{positions[layer.name]}/{variable.name}": np.asarray(variable)
        for layer in model.layers
        for variable in layer.variables
    }
    return Tail(model.get_config(), positions, weights)


def build_tail(tail: Tail, *, train_batchnorm: bool = False) -> keras.Model:
    """Build a tail under the current dtype policy, its weights still random: activations -> feature map."""
    config = {**tail.config, "name": BASE, "layers": []}
    policy = keras.config.dtype_policy().name
    for layer in tail.config["layers"]:
        own = dict(layer["config"])
        if layer["class_name"] != "InputLayer":
            own["dtype"] = policy
        config["layers"].append({**layer, "config": own})
    model = keras.Model.from_config(config)
    if train_batchnorm:
        _follow_quickly(model)
    return model


class Network:
    """The part of the network that a phase works on, entered at pixels, activations or pooled features.

    Attributes:
        entrance: where a batch enters.
        base: the whole base, its tail, or None where pooled features enter.
        head: the dense layers.
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
        """Put built parts together.

        Args:
            backbone: a name in `BACKBONES`.
            entrance: where a batch enters.
            base: what lies between the entrance and pooling.
            positions: of its layers in the whole base, by name.
            head: as `build_head` made it.
            train_batchnorm: whether BatchNorm may follow the batch where its layer is trained.
        """
        self.entrance = entrance
        self.base = base
        self.head = head
        self._backbone = BACKBONES[backbone]
        self._positions = positions
        self._train_batchnorm = train_batchnorm

    def open_base(self, boundary: str | None) -> None:
        """Train the base after `boundary` (BatchNorm only where it may be); None freezes all of it."""
        if self.base is None:
            return
        self.base.trainable = True
        opened = set()
        if boundary is not None:
            tail = self.entrance == "activations"
            opened = {
                id(layer)
                for layer in (self.base.layers if tail else self._backbone.list_open_layers(self.base, boundary))
            }
        if not self._train_batchnorm:
            opened -= {id(layer) for layer in list_batchnorm(self.base)}
        for layer in self.base.layers:
            layer.trainable = id(layer) in opened

    @property
    def trainable_variables(self) -> list[Any]:
        """Variables that the phase trains, in order."""
        base = self.base.trainable_variables if self.base is not None else []
        return [*base, *(variable for layer in self.head for variable in layer.trainable_variables)]

    def call(self, inputs: Any, *, training: bool, masks: Any = None) -> Any:
        """Probabilities, float32 `[N, C]`.

        Args:
            inputs: float32 pixels in [0, 255], activations or pooled features, by the entrance.
            training: lets BatchNorm follow the batch where it is trained.
            masks: float32 `[N, sum of head units]` that multiplies the dense layers' outputs (dropout); None for ones.
        """
        return self.classify(self.embed(inputs, training=training), masks=masks)

    def embed(self, inputs: Any, *, training: bool) -> Any:
        """Pooled features `[N, D]`; arguments as `call`."""
        features = inputs
        if self.entrance == "pixels":
            features = features * self._backbone.scale + self._backbone.offset
        if self.base is not None:
            features = self.base(features, training=training and self._train_batchnorm)
            features = keras.ops.mean(features, axis=(1, 2))
        return features

    def classify(self, features: Any, *, masks: Any = None) -> Any:
        """Probabilities, float32 `[N, C]`, of pooled features; `masks` as `call`."""
        start = 0
        for layer in self.head[:-1]:
            features = layer(features)
            if masks is not None:
                features = features * keras.ops.cast(masks[:, start : start + layer.units], features.dtype)
                start += layer.units
        return self.head[-1](features)

    def read_weights(self, *, opened_only: bool) -> Weights:
        """Copies of the weights by name: all, or the head's and those of the base's layers that are trained."""
        return {name: np.array(variable) for name, variable in self._iter_variables(opened_only=opened_only)}

    def assign_weights(self, weights: Weights) -> None:
        """Set those of this network's weights that are named."""
        for name, variable in self._iter_variables(opened_only=False):
            if name in weights:
                variable.assign(weights[name])

    def list_statistics(self) -> list[Any]:
        """BatchNorm's moving mean and variance of every layer that is trained."""
        layers = [layer for layer in list_batchnorm(self.base) if layer.trainable] if self.base is not None else []
        return [variable for layer in layers for variable in (layer.moving_mean, layer.moving_variance)]

    def _iter_variables(self, *, opened_only: bool) -> list[tuple[str, Any]]:
        named = [
            (f"head/{layer.name}/{variable.name}", variable) for layer in self.head for variable in layer.variables
        ]
        for layer in self.base.layers if self.base is not None else ():
            if layer.trainable or not opened_only:
                position = self._positions.get(layer.name)
                named += [(f"base/{position}/{variable.name}", variable) for variable in layer.variables]
        return named


def find_positions(base: keras.Model) -> dict[str, int]:
    """Position of each layer of a whole base, by name."""
    return {layer.name: position for position, layer in enumerate(base.layers)}


def assemble_model(backbone: str, base: keras.Model, head: Sequence[keras.layers.Dense]) -> keras.Model:
    """The whole network as one Keras model: float32 pixels in [0, 255] `[N, S, S, 3]` -> probabilities `[N, C]`."""
    entry = BACKBONES[backbone]
    inputs = keras.Input(base.input.shape[1:], dtype="float32", name="image")
    features = keras.layers.Rescaling(entry.scale, entry.offset, name="rescale")(inputs)
    features = base(features, training=False)
    features = keras.layers.GlobalAveragePooling2D(name=POOL)(features)
    for layer in head:
        features = layer(features)
    return keras.Model(inputs, features, name="tlray")


def make_optimizer(name: str, learning_rate: Any) -> keras.optimizers.Optimizer:
    """RMSprop and Adam with Keras's defaults; SGD with momentum 0.9. The rate is a number or a Keras schedule."""
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


def _follow_quickly(base: keras.Model) -> None:
    for layer in list_batchnorm(base):
        layer.momentum = _FRESH_BATCHNORM_MOMENTUM


def list_batchnorm(base: keras.Model) -> list[keras.layers.BatchNormalization]:
    """BatchNorm layers of a base, in order."""
    return [layer for layer in base.layers if isinstance(layer, keras.layers.BatchNormalization)]
