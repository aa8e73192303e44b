"""A model from elsewhere with its preprocessing: where its probabilities, logits and features are."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from tlray.config import ImportConfig
from tlray.console import say
from tlray.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    import keras

_DRAWN_IMAGES = 16
_SUM_TOLERANCE = 1e-2
"""Distance from 1 that the sum of probabilities in half precision may have: 1,000 of them are off by up to 5e-3."""

_LOGITS = ("linear", "relu")
"""Activations of a dense layer whose values are logits, wherever they lie."""

_CERTAIN = 1e-6
"""Least distance of a probability from 0 and 1 whose logit is taken."""

_CAFFE_MEANS = (103.939, 116.779, 123.68)
_TORCH_MEANS, _TORCH_DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

GoldenCandidate: TypeAlias = tuple[str, bytes, npt.NDArray[np.uint8]]
"""Name, encoded file, and pixels `[S, S, 3]` of an image."""

_Arrays: TypeAlias = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class ImportedNetwork:
    """A model with its preprocessing, as symbolic tensors.

    Attributes:
        inputs: float32 pixels in [0, 255], `[N, S, S, 3]`.
        probabilities: `[N, C]`, not calibrated.
        logits: `[N, C]`, the softmax's inputs; None if unknown.
        pooled: `[N, D]`, the last dense layer's inputs; None without such a layer.
    """

    inputs: keras.KerasTensor
    probabilities: keras.KerasTensor
    logits: keras.KerasTensor | None
    pooled: keras.KerasTensor | None

    def scale(self, temperature: float) -> keras.Model:
        """Return the model with its logits divided by a temperature."""
        import keras

        outputs = self.probabilities
        if self.logits is not None:
            outputs = keras.layers.Rescaling(1 / temperature, name="temperature")(self.logits)
            outputs = keras.layers.Softmax(name="probabilities")(outputs)
        return keras.Model(self.inputs, outputs, name="tlray")

    @cached_property
    def run(self) -> Callable[[npt.NDArray[np.uint8]], _Arrays]:
        """A compiled function: probabilities `[N, C]` and features `[N, D]` of pixels, D = 0 if there are none."""
        import keras
        import tensorflow as tf

        outputs = [self.probabilities, *([] if self.pooled is None else [self.pooled])]
        model = keras.Model(self.inputs, outputs)
        compiled = tf.function(
            lambda pixels: model(pixels, training=False),
            input_signature=[tf.TensorSpec((None, *self.inputs.shape[1:]), tf.float32)],
        )

        def run(pixels: npt.NDArray[np.uint8]) -> _Arrays:
            found = compiled(pixels.astype(np.float32))
            probabilities, *features = (
                tensor.numpy() for tensor in (found if isinstance(found, list | tuple) else [found])
            )
            return probabilities, features[0] if features else np.zeros((len(pixels), 0), np.float32)

        return run


def find_image_size(config: ImportConfig, model: keras.Model) -> int:
    """Return the side of the square that the model takes.

    Raises:
        ConfigError: --image-size is needed, or is another one than the model's.
    """
    height, width = model.inputs[0].shape[1:3]
    size = config.image_size or height or width
    if size is None:
        raise ConfigError(["--image-size is needed, since the model takes images of any size"])
    if {height, width} - {None, size}:
        raise ConfigError([f"--image-size takes what the model does, a square of {height} x {width}; got {size}"])
    return int(size)


def wrap(model: keras.Model, size: int, config: ImportConfig, classes: Sequence[str]) -> ImportedNetwork:
    """Put the preprocessing before a model, and find its probabilities.

    Raises:
        ConfigError: there are more or fewer class names than outputs.
        WeightsError: its outputs are neither probabilities of one class each nor logits.
    """
    import keras

    num_outputs = model.outputs[0].shape[-1]
    if num_outputs != len(classes) and (num_outputs, len(classes)) != (1, 2):
        raise ConfigError(
            [f"--classes takes as many names as the model has outputs, {num_outputs}; got {len(classes)}"]
        )
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    pooled = dense[-1].input if dense and len(dense[-1].input.shape) == 2 else None
    end, removed, ends_in = _take_activation(model)
    if ends_in == "sigmoid" and num_outputs > 1:
        raise WeightsError(
            "the model must end in a softmax or give logits; its outputs are sigmoids, which answer for each class "
            "alone: train it with a softmax"
        )
    inner = keras.Model(model.inputs, [end, *([] if pooled is None else [pooled])])
    inputs = keras.Input((size, size, 3), dtype="float32", name="image")
    outputs = inner(_preprocess(inputs, config), training=False)
    predictions, *features = (
        keras.layers.Activation("linear", dtype="float32")(tensor)  # under a mixed policy they would be half precision
        for tensor in (outputs if isinstance(outputs, list | tuple) else [outputs])
    )
    plain = ImportedNetwork(inputs, predictions, None, features[0] if features else None)
    if num_outputs == 1:
        return _open_binary(plain, classes[1], removed=removed, is_probability=ends_in == "sigmoid")
    if removed:
        return replace(plain, probabilities=keras.layers.Softmax()(predictions), logits=predictions)
    drawn = plain.run(np.stack([pixels for _, _, pixels in draw_images(size)]))[0]
    between = bool((drawn >= 0).all() and (drawn <= 1 + _SUM_TOLERANCE).all())
    if between and np.abs(drawn.sum(axis=1) - 1).max() <= _SUM_TOLERANCE:
        say("the model's softmax is not its last layer: its probabilities stay as they are")
        return plain
    if between and ends_in not in _LOGITS:
        raise WeightsError(
            "the model must end in a softmax or give logits; its outputs lie between 0 and 1 without a sum of 1, as "
            "sigmoids do: train it with a softmax"
        )
    say("the model gives logits: a softmax is added")
    return replace(plain, probabilities=keras.layers.Softmax()(predictions), logits=predictions)


def _open_binary(plain: ImportedNetwork, second: str, *, removed: bool, is_probability: bool) -> ImportedNetwork:
    """Make two classes of one output: the logits 0 and z, whose softmax is 1 - p and p."""
    import keras

    value = plain.probabilities
    say(f"the model's one output is the {'probability' if is_probability else 'logit'} of {second}, the second class")
    if is_probability and not removed:
        inside = keras.ops.clip(value, _CERTAIN, 1 - _CERTAIN)
        value = keras.ops.log(inside) - keras.ops.log(1 - inside)
    logits = keras.layers.Concatenate(name="logits")([keras.ops.zeros_like(value), value])
    return replace(plain, probabilities=keras.layers.Softmax()(logits), logits=logits)


def _take_activation(model: keras.Model) -> tuple[keras.KerasTensor, bool, str | None]:
    """Return the output without a last softmax or sigmoid, whether one was removed, and the activation it ends in."""
    import keras

    last = _find_operation(model.outputs[0])
    name = _find_activation(model)
    if name not in ("softmax", "sigmoid"):
        return model.outputs[0], False, name
    if name == "sigmoid" and model.outputs[0].shape[-1] > 1:
        return model.outputs[0], False, name
    if isinstance(last, keras.layers.Dense):
        last.activation = keras.activations.linear
        return model.outputs[0], True, name
    if isinstance(last, keras.layers.Softmax | keras.layers.Activation):
        return last.input, True, name
    return model.outputs[0], False, name


def _find_activation(model: keras.Model) -> str | None:
    """Return the name of the activation in which a model ends, also inside a model within it."""
    import keras

    last = _find_operation(model.outputs[0])
    if isinstance(last, keras.layers.Activation) and last.activation is keras.activations.linear:
        last = _find_operation(last.input)  # such a layer only converts to another type
    if isinstance(last, keras.Model):
        return _find_activation(last)
    if isinstance(last, keras.layers.Softmax):
        return "softmax"
    activation = getattr(last, "activation", None)
    return str(getattr(activation, "__name__", None) or type(last).__name__).lower()


def _find_operation(tensor: keras.KerasTensor) -> object:
    """Return the layer or function whose output a tensor is."""
    return tensor._keras_history.operation


def _preprocess(pixels: keras.KerasTensor, config: ImportConfig) -> keras.KerasTensor:
    """Apply `keras.applications`' preprocessing by its name there, else --scale and --offset."""
    import keras

    match config.preprocessing:
        case "caffe":
            offsets = [-mean for mean in _CAFFE_MEANS]
            return keras.layers.Rescaling(1.0, offsets, name="rescale")(keras.ops.flip(pixels, axis=-1))
        case "torch":
            scales = [1 / (255 * deviation) for deviation in _TORCH_DEVIATIONS]
            offsets = [-mean / deviation for mean, deviation in zip(_TORCH_MEANS, _TORCH_DEVIATIONS, strict=True)]
            return keras.layers.Rescaling(scales, offsets, name="rescale")(pixels)
        case "tf":
            return keras.layers.Rescaling(1 / 127.5, -1.0, name="rescale")(pixels)
        case _:
            return keras.layers.Rescaling(config.scale, config.offset, name="rescale")(pixels)


def draw_images(size: int) -> list[GoldenCandidate]:
    """Draw patches of colour."""
    rng = np.random.default_rng(0)
    drawn = []
    for index in range(_DRAWN_IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (2 + index % 5, 2 + index % 7, 3), dtype=np.uint8))
        image = coarse.resize((size, size), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.save(file, "PNG")
        drawn.append((f"{index}.png", file.getvalue(), np.asarray(image)))
    return drawn
