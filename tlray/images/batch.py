"""Addresses -> pixels, with a status for each: the one way that every Ray Data stage reads images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tlray import storage
from tlray.errors import OK, FetchError, ImageError
from tlray.images.decode import decode
from tlray.images.limits import Limits

Fetch = Callable[[Sequence[str]], Iterator[bytes | FetchError]]
"""How bytes are had: an answer for every address, in order."""


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

    def append(self, status: str, error: str | None, width: int | None, height: int | None) -> None:
        """Say what became of the next image."""
        self.status.append(status)
        self.errors.append(error)
        self.widths.append(width)
        self.heights.append(height)


def read_images(uris: Sequence[str], image_size_px: int, limits: Limits, fetch: Fetch = storage.get_many) -> ImageBatch:
    """Fetch and decode images, in order; whatever is wrong with one stays with that one."""
    return decode_images(fetch(uris), len(uris), image_size_px, limits)


def decode_images(
    fetched: Iterable[bytes | FetchError], num_images: int, image_size_px: int, limits: Limits
) -> ImageBatch:
    """Decode what was fetched of `num_images` images, in order."""
    batch = ImageBatch(np.zeros((num_images, image_size_px, image_size_px, 3), np.uint8), [], [], [], [])
    for index, data in enumerate(fetched):
        try:
            if isinstance(data, FetchError):
                raise data
            decoded = decode(data, image_size_px, limits)
        except FetchError as error:
            batch.append(error.code.value, storage.redact(str(error)), None, None)
        except ImageError as error:
            batch.append(error.code.value, storage.redact(str(error)), error.width, error.height)
        else:
            batch.pixels[index] = decoded.pixels
            batch.append(OK, None, decoded.width, decoded.height)
    return batch
