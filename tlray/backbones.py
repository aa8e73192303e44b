"""The convolutional bases that tlray trains on; adding one means adding one entry to `BACKBONES`.

Nothing here imports Keras until a base is built, so that a config is checked against this table in milliseconds.
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
class Backbone:
    """One convolutional base of `keras.applications`.

    Attributes:
        keras_name: the constructor's name in `keras.applications`.
        image_size_px: side of the square input that the published weights were trained with.
        min_image_size_px: smallest side that the constructor takes.
        scale, offset: pixels in [0, 255] enter the base as `pixel * scale + offset`.
        boundaries: layers that the whole network passes through, from input to output. What lies after the chosen one
            is trained in phase 2, what lies up to it stays frozen and can be computed once.
        default_boundary: leaves the top blocks to phase 2.
        imagenet_url, imagenet_md5: the published ImageNet weights without the top, as Keras itself fetches them.
    """

    keras_name: str
    image_size_px: int
    min_image_size_px: int
    scale: float
    offset: float
    boundaries: tuple[str, ...]
    default_boundary: str
    imagenet_url: str
    imagenet_md5: str | None

    def build(self, image_size_px: int) -> keras.Model:
        """Build the base without its top and with random weights: `[N, S, S, 3]` float32 in, a feature map out."""
        import keras

        constructor = getattr(keras.applications, self.keras_name)
        shape = (image_size_px, image_size_px, 3)
        base: keras.Model = constructor(include_top=False, weights=None, input_shape=shape)
        return base

    def list_open_layers(self, base: keras.Model, boundary: str) -> list[keras.Layer]:
        """The layers of `base` that lie after `boundary`, in order."""
        layers: list[keras.Layer] = list(base.layers)
        if boundary == INPUT:
            return layers
        names = [layer.name for layer in layers]
        return layers[names.index(boundary) + 1 :]


_KERAS_APPLICATIONS = "https://storage.googleapis.com/tensorflow/keras-applications"

BACKBONES: dict[str, Backbone] = {
    "inception_v3": Backbone(
        keras_name="InceptionV3",
        image_size_px=299,
        min_image_size_px=75,
        scale=1 / 127.5,
        offset=-1.0,
        boundaries=(INPUT, *(f"mixed{block}" for block in range(11))),
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
        boundaries=(
            INPUT,
            "expanded_conv_project_BN",
            "block_1_project_BN",
            "block_2_add",
            "block_3_project_BN",
            "block_4_add",
            "block_5_add",
            "block_6_project_BN",
            "block_7_add",
            "block_8_add",
            "block_9_add",
            "block_10_project_BN",
            "block_11_add",
            "block_12_add",
            "block_13_project_BN",
            "block_14_add",
            "block_15_add",
            "block_16_project_BN",
        ),
        default_boundary="block_12_add",
        imagenet_url=f"{_KERAS_APPLICATIONS}/mobilenet_v2/"
        "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
        imagenet_md5=None,  # Keras publishes none for it
    ),
}
