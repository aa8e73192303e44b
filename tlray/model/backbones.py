"""The convolutional bases; a new one is a new entry of `BACKBONES`, and a run of `tlray.model.walk`.

Keras is imported only to build a base, so that a config is checked against this table in milliseconds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

BASE = "base"
"""Name of the base inside the network."""

INPUT = "input"
"""The boundary before the first layer: the whole base is trained."""

WALKED = Path(__file__).with_name("backbones.json")
"""The findings of `tlray.model.walk` in each base, by Keras's name of it."""


@dataclass(frozen=True)
class Boundary:
    """A layer that every path through the base passes.

    Attributes:
        side_px, channels: shape of its output, `[side, side, channels]`, at the published input size.
        frozen_share: share of the base's multiply-adds up to and including it, 0 to 1.
    """

    side_px: int
    channels: int
    frozen_share: float


@dataclass(frozen=True)
class Walk:
    """The findings of a walk through a base.

    Attributes:
        num_features: width of its output.
        num_weights: number of values in its weights, moving statistics included.
        boundaries: by the layers' names, from input to output.
    """

    num_features: int
    num_weights: int
    boundaries: dict[str, Boundary]


@cache
def read_walks() -> dict[str, Walk]:
    """Return the walks of all bases, by Keras's name."""
    return {
        name: Walk(
            one["features"],
            one["weights"],
            {boundary: Boundary(*cut) for boundary, cut in one["boundaries"].items()},
        )
        for name, one in json.loads(WALKED.read_text()).items()
    }


@dataclass(frozen=True)
class Backbone:
    """One convolutional base of `keras.applications`.

    Attributes:
        image_size_px: side of the square input of the published weights; the constructor takes `min_image_size_px`.
        scale, offset: pixels in [0, 255] enter the base as `pixel * scale + offset`.
        default_boundary: phase 2 trains the layers after it by default; the others stay frozen and can be computed
            once.
        imagenet_url, imagenet_md5: the published ImageNet weights without the top, as Keras fetches them.
    """

    keras_name: str
    image_size_px: int
    min_image_size_px: int
    scale: float
    offset: float
    default_boundary: str
    imagenet_url: str
    imagenet_md5: str | None

    @property
    def num_features(self) -> int:
        """Width of the base's output."""
        return read_walks()[self.keras_name].num_features

    @property
    def num_weights(self) -> int:
        """Number of values in the weights, moving statistics included."""
        return read_walks()[self.keras_name].num_weights

    @property
    def boundaries(self) -> dict[str, Boundary]:
        """Boundaries by the layers' names, from input to output."""
        return read_walks()[self.keras_name].boundaries

    def estimate_activation_bytes(self, boundary: str, image_size_px: int, bytes_each: int) -> int:
        """Estimate the bytes of one image's activations at a boundary, at `bytes_each` a value."""
        cut = self.boundaries[boundary]
        side = max(1, round(cut.side_px * image_size_px / self.image_size_px))
        return side * side * cut.channels * bytes_each

    def build(self, image_size_px: int) -> keras.Model:
        """Build the base without its top and with random weights: `[N, S, S, 3]` float32 in, a feature map out."""
        import keras

        constructor = getattr(keras.applications, self.keras_name)
        shape = (image_size_px, image_size_px, 3)
        base: keras.Model = constructor(include_top=False, weights=None, input_shape=shape)
        return base

    def list_open_layers(self, base: keras.Model, boundary: str) -> list[keras.Layer]:
        """Return the layers of `base` after `boundary`, in order."""
        layers: list[keras.Layer] = list(base.layers)
        if boundary == INPUT:
            return layers
        return layers[[layer.name for layer in layers].index(boundary) + 1 :]


_KERAS_APPLICATIONS = "https://storage.googleapis.com/tensorflow/keras-applications"

BACKBONES: dict[str, Backbone] = {
    "inception_v3": Backbone(
        keras_name="InceptionV3",
        image_size_px=299,
        min_image_size_px=75,
        scale=1 / 127.5,
        offset=-1.0,
        default_boundary="mixed8",
        imagenet_url=f"{_KERAS_APPLICATIONS}/inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
        imagenet_md5="bcbd6486424b2319ff4ef7d526e38f63",
    ),
    "mobilenet_v2": Backbone(
        keras_name="MobileNetV2",
        image_size_px=224,
        min_image_size_px=32,
        scale=1 / 127.5,
        offset=-1.0,
        default_boundary="block_12_add",
        imagenet_url=f"{_KERAS_APPLICATIONS}/mobilenet_v2/"
        "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
        imagenet_md5=None,  # Keras publishes none for it
    ),
    "efficientnet_v2_b0": Backbone(
        keras_name="EfficientNetV2B0",
        image_size_px=224,
        min_image_size_px=32,
        scale=1.0,  # its own layers scale and normalize
        offset=0.0,
        default_boundary="block5e_add",
        imagenet_url=f"{_KERAS_APPLICATIONS}/efficientnet_v2/efficientnetv2-b0_notop.h5",
        imagenet_md5="893217f2bb855e2983157299931e43ff",
    ),
    "resnet50_v2": Backbone(
        keras_name="ResNet50V2",
        image_size_px=224,
        min_image_size_px=32,
        scale=1 / 127.5,
        offset=-1.0,
        default_boundary="conv5_block1_preact_relu",
        imagenet_url=f"{_KERAS_APPLICATIONS}/resnet/resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
        imagenet_md5="fac2f116257151a9d068a22e544a4917",
    ),
}
