"""The convolutional bases; a new one is a new entry of `BACKBONES`.

Keras is imported only to build a base, so that a config is checked against this table in milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

BASE = "base"
"""Name of the base inside the network."""

INPUT = "input"
"""The boundary before the first layer: the whole base is trained."""


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
class Backbone:
    """One convolutional base of `keras.applications`.

    Attributes:
        image_size_px: side of the square input of the published weights; the constructor takes `min_image_size_px`.
        scale, offset: pixels in [0, 255] enter the base as `pixel * scale + offset`.
        num_features: width of the base's output.
        num_weights: number of values in the weights, moving statistics included.
        boundaries: from input to output. Phase 2 trains the layers after the chosen one; the others stay frozen and can
            be computed once.
        imagenet_url, imagenet_md5: the published ImageNet weights without the top, as Keras fetches them.
    """

    keras_name: str
    image_size_px: int
    min_image_size_px: int
    scale: float
    offset: float
    num_features: int
    num_weights: int
    boundaries: dict[str, Boundary]
    default_boundary: str
    imagenet_url: str
    imagenet_md5: str | None

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
        num_features=2048,
        num_weights=21_802_784,
        image_size_px=299,
        min_image_size_px=75,
        scale=1 / 127.5,
        offset=-1.0,
        boundaries={
            INPUT: Boundary(299, 3, 0.0),
            "mixed0": Boundary(35, 256, 0.29),
            "mixed1": Boundary(35, 288, 0.35),
            "mixed2": Boundary(35, 288, 0.41),
            "mixed3": Boundary(17, 768, 0.48),
            "mixed4": Boundary(17, 768, 0.55),
            "mixed5": Boundary(17, 768, 0.63),
            "mixed6": Boundary(17, 768, 0.72),
            "mixed7": Boundary(17, 768, 0.82),
            "mixed8": Boundary(8, 1280, 0.88),
            "mixed9": Boundary(8, 2048, 0.93),
            "mixed10": Boundary(8, 2048, 1.00),
        },
        default_boundary="mixed8",
        imagenet_url=f"{_KERAS_APPLICATIONS}/inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
        imagenet_md5="bcbd6486424b2319ff4ef7d526e38f63",
    ),
    "mobilenet_v2": Backbone(
        keras_name="MobileNetV2",
        num_features=1280,
        num_weights=2_257_984,
        image_size_px=224,
        min_image_size_px=32,
        scale=1 / 127.5,
        offset=-1.0,
        boundaries={
            INPUT: Boundary(224, 3, 0.0),
            "expanded_conv_project_BN": Boundary(112, 16, 0.07),
            "block_1_project_BN": Boundary(56, 24, 0.17),
            "block_2_add": Boundary(56, 24, 0.25),
            "block_3_project_BN": Boundary(28, 32, 0.30),
            "block_4_add": Boundary(28, 32, 0.34),
            "block_5_add": Boundary(28, 32, 0.38),
            "block_6_project_BN": Boundary(14, 64, 0.40),
            "block_7_add": Boundary(14, 64, 0.44),
            "block_8_add": Boundary(14, 64, 0.47),
            "block_9_add": Boundary(14, 64, 0.51),
            "block_10_project_BN": Boundary(14, 96, 0.55),
            "block_11_add": Boundary(14, 96, 0.62),
            "block_12_add": Boundary(14, 96, 0.70),
            "block_13_project_BN": Boundary(7, 160, 0.75),
            "block_14_add": Boundary(7, 160, 0.80),
            "block_15_add": Boundary(7, 160, 0.86),
            "block_16_project_BN": Boundary(7, 320, 0.93),
        },
        default_boundary="block_12_add",
        imagenet_url=f"{_KERAS_APPLICATIONS}/mobilenet_v2/"
        "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
        imagenet_md5=None,  # Keras publishes none for it
    ),
}
