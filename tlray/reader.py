"""Addresses -> pixels, with a status for each: the one way that every Ray Data stage reads images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tlray import storage
from tlray.errors import FetchError, ImageError
from tlray.images import decode
from tlray.limits import Limits

OK = "ok"
"""Status of a row without error."""


@dataclass(frozen=True)
class ImageBatch:
    """N images as they were read; where `status` is not "ok", pixels are 0.

    Attributes:
        pixels: uint8 `[N, S, S, 3]`.
        status: "ok" or an error code, one for each image.
        errors: one sentence for each image that is not ok, else None.
        widths, heights: upright source size in pixels, None where unknown.
    """

    pixels: npt.NDArray[np.uint8]
    status: list[str]
    errors: list[str | None]
    widths: list[int | None]
    heights: list[int | None]


def read_images(uris: Sequence[str], image_size_px: int, limits: Limits) -> ImageBatch:
    """Fetch and decode images, in order; whatever is wrong with one stays with that one."""
    batch = ImageBatch(np.zeros((len(uris), image_size_px, image_size_px, 3), np.uint8), [], [], [], [])
    for index, data in enumerate(storage.get_many(uris)):
        try:
            if isinstance(data, FetchError):
                raise data
            decoded = decode(data, image_size_px, limits)
        except FetchError as error:
            _append(batch, error.code.value, storage.redact(str(error)), None, None)
        except ImageError as error:
            _append(batch, error.code.value, storage.redact(str(error)), error.width, error.height)
        else:
            batch.pixels[index] = decoded.pixels
            _append(batch, OK, None, decoded.width, decoded.height)
    return batch


def _append(batch: ImageBatch, status: str, error: str | None, width: int | None, height: int | None) -> None:
    batch.status.append(status)
    batch.errors.append(error)
    batch.widths.append(width)
    batch.heights.append(height)
