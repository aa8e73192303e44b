"""Colour profiles: pixels of a picture with an ICC profile become sRGB.

A picture is converted behind the resize, on its S x S pixels, which looks the same as before it and costs a millisecond
at most. Transforms are made once for each profile; most profiles are sRGB under one of its names, and need none.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_MAX_BYTES = 4 * 2**20
_SAME = 2
"""Difference of 8-bit values that counts as none: sRGB's curve and matrix are rounded in many ways."""

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def convert_to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an RGB, CMYK or L image to RGB, from the colours of its profile if it has one that can be used."""
    if profile and len(profile) <= _MAX_BYTES and (transform := _make_transform(profile, image.mode)):
        converted = transform.apply(image)
        assert converted is not None
        return converted
    return image.convert("RGB")


@lru_cache(maxsize=32)
def _make_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from a profile to sRGB; None if it changes nothing, or the profile is damaged."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(
            source,
            _SRGB,
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOCACHE,  # its cache is not for several threads
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return None if mode != "CMYK" and _changes_nothing(transform, mode) else transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    levels = np.linspace(0, 255, 16).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(64, 64, 3)
    sample = Image.fromarray(grid if mode == "RGB" else grid[:, :, 0])
    converted = transform.apply(sample)
    difference = np.asarray(converted, np.int16) - np.asarray(sample.convert("RGB"), np.int16)
    return bool(np.abs(difference).max() <= _SAME)
