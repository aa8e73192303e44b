"""Decode batches of images, with a status for each; all stages that read images use it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tlray import storage
from tlray.errors import OK, FetchError, ImageError
from tlray.images.decode import Decoded, decode
from tlray.images.limits import Limits


@dataclass(frozen=True)
class ImageBatch:
    """N decoded images; pixels are 0 where `status` is not "ok".

    Attributes:
        pixels: uint8 `[N, S, S, 3]`.
        status: "ok" or an error code for each image.
        errors: one sentence for each failed image, None for the others.
        widths, heights: upright source size in pixels, None where unknown.
    """

    pixels: npt.NDArray[np.uint8]
    status: list[str]
    errors: list[str | None]
    widths: list[int | None]
    heights: list[int | None]

    def append(self, status: str, error: str | None, width: int | None, height: int | None) -> None:
        """Add the status of the next image."""
        self.status.append(status)
        self.errors.append(error)
        self.widths.append(width)
        self.heights.append(height)


def decode_images(
    fetched: Iterable[bytes | Decoded | ImageError | FetchError], num_images: int, image_size_px: int, limits: Limits
) -> ImageBatch:
    """Decode `num_images` fetched images, in order; a faulty one does not affect the others.

    Those that were decoded before are taken as they are.
    """
    batch = ImageBatch(np.zeros((num_images, image_size_px, image_size_px, 3), np.uint8), [], [], [], [])
    for index, data in enumerate(fetched):
        try:
            if isinstance(data, (FetchError, ImageError)):
                raise data
            decoded = data if isinstance(data, Decoded) else decode(data, image_size_px, limits)
        except FetchError as error:
            batch.append(error.code.value, storage.redact(str(error)), None, None)
        except ImageError as error:
            batch.append(error.code.value, storage.redact(str(error)), error.width, error.height)
        else:
            batch.pixels[index] = decoded.pixels
            batch.append(OK, None, decoded.width, decoded.height)
    return batch
