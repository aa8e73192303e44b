"""Convert a loaded picture of any Pillow mode to 8-bit sRGB: alpha over white, deep samples by their range, profiles.

Colours of an embedded ICC profile are converted behind the resize, on S x S pixels, which looks the same as before it
and costs a millisecond at most. Transforms are made once for each profile; most profiles are sRGB under one of its
names, and need none.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from tlray.errors import Code, ImageError
from tlray.images import tiff

_STRIP_PIXELS = 2**22
"""Pixels that are converted at a time: alpha and deep samples take up to 32 bytes a pixel on the way."""

_TWELVE_BITS = 4096
_MAX_PROFILE_BYTES = 4 * 2**20
_SAME = 2
"""Difference of 8-bit values that counts as none: sRGB's curve and matrix are rounded in many ways."""

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def flatten(image: Image.Image, tags: tiff.Tags | None) -> Image.Image:
    """Convert a picture to RGB, or to L where it is grey and deep or transparent; with a profile, L and CMYK stay.

    Args:
        image: a loaded picture.
        tags: of a TIFF, as they were before loading; None for other formats.

    Raises:
        ImageError: UNSUPPORTED, its samples have a range that nobody declared.
    """
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _flatten_deep(image, tags)
    if tags is not None:
        _check_range(image, tags)
        if image.mode in ("RGBA", "RGBX", "LA") and not tiff.has_alpha(tags):
            return image.convert("RGB")
    if image.has_transparency_data:
        return _compose(image)
    if image.mode == "RGB" or (image.info.get("icc_profile") and image.mode in ("CMYK", "L")):
        return image
    return image.convert("RGB")


def _check_range(image: Image.Image, tags: tiff.Tags) -> None:
    """Raise UNSUPPORTED for 8-bit pixels that Pillow took from samples of another range."""
    if not tiff.is_unsigned(tags):
        raise _make_error(tags, "they are signed, and no tag tells which value is white")
    if tiff.get_bits(tags) != 16:
        return
    declared = tiff.get_range(tags)
    if declared is not None and declared[1] != 65535:
        raise _make_error(tags, f"they reach to {declared[1]:,.0f}, and only the high byte of each is decoded")
    bands = image.getextrema()
    high = max(band[1] for band in bands[:3] if isinstance(band, tuple))
    if 0 < high < _TWELVE_BITS >> 8:
        raise _make_error(tags, "they hold 12 bits or fewer in 16, and only the high byte of each is decoded")


def _compose(image: Image.Image) -> Image.Image:
    """Lay a picture with alpha over white."""
    mode = "L" if image.mode in ("LA", "La") else "RGB"

    def compose(strip: Image.Image) -> Image.Image:
        strip = strip.convert("LA") if strip.mode == "La" else strip  # Pillow goes from La nowhere else
        rgba = strip.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert(mode)

    return _convert_in_strips(image, mode, compose)


def _flatten_deep(image: Image.Image, tags: tiff.Tags | None) -> Image.Image:
    """Convert grey samples of 16 bits or more, or floats, to 8 bits."""
    low, high = _find_range(image, tags)
    transparent = image.info.get("transparency")
    inverted = tags is not None and tiff.is_white_zero(tags)
    signed = tags is None or not tiff.is_unsigned(tags)

    def scale(strip: Image.Image) -> Image.Image:
        samples = np.asarray(strip)
        if samples.dtype == np.int32 and not signed:  # as Pillow holds unsigned ones of 32 bits
            samples = samples.view(np.uint32)
        if (low, high) == (0, 65535):
            grey = (np.clip(samples, 0, 65535).astype(np.int32) >> 8).astype(np.uint8)
        else:
            shares = (np.nan_to_num(samples.astype(np.float32), nan=low) - low) / (high - low)
            grey = np.clip(shares * np.float32(255), 0, 255).astype(np.uint8)
        grey = 255 - grey if inverted else grey
        if isinstance(transparent, int):
            grey = np.where(samples == transparent, np.uint8(255), grey)
        return Image.fromarray(grey)

    return _convert_in_strips(image, "L", scale)


def _find_range(image: Image.Image, tags: tiff.Tags | None) -> tuple[float, float]:
    """Return the samples that are black and white, never by the picture's own range.

    Raises:
        ImageError: UNSUPPORTED, nothing tells them.
    """
    if tags is None and image.mode != "F":  # Pillow brings the integers of other formats to 16 bits
        return 0, 65535
    if tags is not None and (declared := tiff.get_range(tags)) is not None:
        return declared
    darkest, brightest = _get_extremes(image)
    if image.mode == "F":
        if 0 <= darkest <= brightest <= 1:
            return 0.0, 1.0
        if darkest > brightest:
            raise _make_error(tags, "none of them is a number")
        fault = f"they lie between {darkest:g} and {brightest:g}, and nothing tells which value is white"
        raise _make_error(tags, fault)
    assert tags is not None
    if 8 < tiff.get_bits(tags) < 16 and tiff.is_unsigned(tags):
        return 0, 2 ** tiff.get_bits(tags) - 1
    if not tiff.is_unsigned(tags) or tiff.get_bits(tags) > 16:
        raise _make_error(tags, "no tag tells which value is white")
    if 0 < brightest < _TWELVE_BITS:
        raise _make_error(
            tags,
            f"they reach only to {brightest:,.0f}, 12 bits or fewer in 16, and no tag tells which value is white",
        )
    return 0, 65535


def _get_extremes(image: Image.Image) -> tuple[float, float]:
    low, high = float("inf"), float("-inf")
    for strip, _ in _iter_strips(image):
        samples = np.asarray(strip)
        low, high = np.fmin(low, np.fmin.reduce(samples, None)), np.fmax(high, np.fmax.reduce(samples, None))
    return float(low), float(high)


def _make_error(tags: tiff.Tags | None, reason: str) -> ImageError:
    kind = "an image of float samples" if tags is None else tiff.describe(tags)
    return ImageError(Code.UNSUPPORTED, f"{kind} is not read: {reason}; save it as 8-bit TIFF or PNG")


def _convert_in_strips(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    flat = Image.new(mode, image.size)
    for strip, top in _iter_strips(image):
        flat.paste(convert(strip), (0, top))
    return flat


def _iter_strips(image: Image.Image) -> Iterator[tuple[Image.Image, int]]:
    """Yield pieces of the full width, and where each begins."""
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield image.crop((0, top, width, min(top + rows, height))), top


# ---- profiles --------------------------------------------------------------------------------------------------------


def convert_to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an RGB, CMYK or L image to RGB, from the colours of its profile if it has one that can be used."""
    if profile and len(profile) <= _MAX_PROFILE_BYTES and (transform := _make_transform(profile, image.mode)):
        converted = transform.apply(image)
        assert converted is not None
        return converted
    return image if image.mode == "RGB" else image.convert("RGB")


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
