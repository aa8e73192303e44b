"""Limits that hold before any pixel of an image is decoded."""

from __future__ import annotations

from dataclasses import dataclass

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 100_000_000
PILLOW_MAX_PIXELS = 178_956_970
"""Above it Pillow itself refuses an image, so no limit of ours can lie higher."""


@dataclass(frozen=True)
class Limits:
    """What an image may be at most.

    Attributes:
        max_bytes: of the encoded file; more is TOO_LARGE.
        max_pixels: that its header tells of; more is BOMB.
    """

    max_bytes: int = MAX_BYTES
    max_pixels: int = MAX_PIXELS
