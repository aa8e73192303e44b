"""Limits on images, checked before any pixel is decoded."""

from __future__ import annotations

from dataclasses import dataclass

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 100_000_000
PILLOW_MAX_PIXELS = 178_956_970
"""Pixels above which Pillow itself refuses an image: the upper bound of `max_pixels`."""


@dataclass(frozen=True)
class Limits:
    """The largest image that is decoded.

    Attributes:
        max_bytes: bytes of the encoded file; more is TOO_LARGE.
        max_pixels: width times height in its header; more is BOMB.
    """

    max_bytes: int = MAX_BYTES
    max_pixels: int = MAX_PIXELS
