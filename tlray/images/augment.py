"""Shear, zoom and flip images by one stateless affine warp.

A view of an image depends only on (seed, content, view), so any process can draw it again, in any order, and it stays
the same whatever images are added. The parameters are drawn on the host; the warp runs inside the training step, on its
device. Shear and zoom are those of Keras's `ImageDataGenerator`: the warp equals its `apply_affine_transform`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class Augmentation:
    """The ranges from which transforms are drawn.

    Attributes:
        shear_deg: shear angle, drawn from [-shear_deg, shear_deg].
        zoom: zoom of each axis, drawn from [1 - zoom, 1 + zoom]; above 1 shows more of the image.
        horizontal_flip: mirror half of the views.
        seed: seed of every draw.
    """

    shear_deg: float
    zoom: float
    horizontal_flip: bool
    seed: int

    def draw(self, keys: npt.NDArray[np.uint64], view: int, image_size_px: int) -> npt.NDArray[np.float32]:
        """Draw the transforms of one view of each image: float32 `[N, 8]`, for `warp`; `keys` are of `make_keys`."""
        transforms = [self._draw_one(int(key), view, image_size_px) for key in keys]
        return np.stack(transforms) if transforms else np.empty((0, 8), np.float32)

    def _draw_one(self, key: int, view: int, image_size_px: int) -> npt.NDArray[np.float32]:
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, key, view])))
        shear, horizontal, vertical, flip = random.uniform(-1, 1, 4)
        return compose_transform(
            image_size_px,
            shear_deg=shear * self.shear_deg,
            zoom_columns=1 + horizontal * self.zoom,
            zoom_rows=1 + vertical * self.zoom,
            flip=self.horizontal_flip and flip < 0,
        )


def make_keys(digests: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Return the first 64 bits of each hexadecimal sha256, by which an image's views are drawn, uint64 `[N]`."""
    return np.array([int(digest[:16] or "0", 16) for digest in digests], np.uint64)


def compose_transform(
    image_size_px: int, *, shear_deg: float = 0.0, zoom_columns: float = 1.0, zoom_rows: float = 1.0, flip: bool = False
) -> npt.NDArray[np.float32]:
    """Return a warp about the image's centre: float32 `[8]`, a0 to a7.

    Output pixel (x, y), column and row, shows the input at (a0 x + a1 y + a2, a3 x + a4 y + a5). Shear and zoom follow
    Keras's `apply_affine_transform` (`zoom_columns` is its `zx`, `zoom_rows` its `zy`); its result is then mirrored.
    """
    angle = np.deg2rad(shear_deg)
    shear = np.array([[1, -np.sin(angle), 0], [0, np.cos(angle), 0], [0, 0, 1]])
    zoom = np.diag([zoom_columns, zoom_rows, 1.0])
    mirror = np.diag([-1.0 if flip else 1.0, 1.0, 1.0])
    centre = (image_size_px - 1) / 2
    there = np.array([[1, 0, centre], [0, 1, centre], [0, 0, 1]])
    back = np.array([[1, 0, -centre], [0, 1, -centre], [0, 0, 1]])
    matrix = there @ shear @ zoom @ mirror @ back
    return np.array([*matrix[:2].ravel(), 0, 0], np.float32)


def warp(images: tf.Tensor, transforms: tf.Tensor) -> tf.Tensor:
    """Warp `[N, S, S, 3]` images by `[N, 8]` transforms into float32 of the same shape and range.

    Bilinear; pixels outside repeat the edge.
    """
    import tensorflow as tf

    return tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),
        transforms=transforms,
        output_shape=tf.shape(images)[1:3],
        interpolation="BILINEAR",
        fill_mode="NEAREST",
        fill_value=0.0,
    )
