"""Decode one encoded image to uint8 RGB `[S, S, 3]`, in training and prediction alike.

The image is turned upright by its EXIF orientation; of an animation the first frame counts; alpha is composited over
white; CMYK, palette, 1-bit and deep samples become 8-bit RGB, colours of another profile sRGB; Pillow's BILINEAR
resizes to S x S, whatever the aspect ratio. Byte, pixel and format limits are checked before any pixel is decoded.
Every failure is an `ImageError` with a `Code`; what cannot be read right is UNSUPPORTED, never a wrong picture.
"""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from tlray.errors import Code, ImageError
from tlray.images import formats, tiff
from tlray.images.flatten import convert_to_srgb, flatten
from tlray.images.limits import Limits

# Pillow warns above 89 million pixels; tlray checks its own limit for every image.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

DEFAULT_LIMITS = Limits()

_UPRIGHT = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_270,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_90,),
}
"""Transpositions that turn an image upright, by EXIF orientation (TIFF 6.0, tag 274)."""

_TURNED_BY_PILLOW = ("TIFF", "HEIF")


class Decoded(NamedTuple):
    """One decoded image.

    Attributes:
        pixels: uint8 `[S, S, 3]`, RGB in [0, 255].
        width, height: size in pixels of the upright source.
    """

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int


def decode(data: bytes, image_size_px: int, limits: Limits = DEFAULT_LIMITS) -> Decoded:
    """Decode one encoded image into an RGB square.

    Args:
        data: the encoded file.
        image_size_px: side S of the square.
        limits: largest file and image that are decoded.

    Raises:
        ImageError: EMPTY, TOO_LARGE, UNSUPPORTED, BOMB, TRUNCATED or CORRUPT.
    """
    if not data:
        raise ImageError(Code.EMPTY, "the file holds 0 bytes")
    if len(data) > limits.max_bytes:
        raise ImageError(
            Code.TOO_LARGE, f"the file holds {len(data):,} bytes, more than --max-bytes {limits.max_bytes:,}"
        )
    try:
        return _decode(data, image_size_px, limits)
    except ImageError as error:
        plain = formats.strip_text(data) if error.code is Code.CORRUPT and formats.sniff(data) == "PNG" else data
        if plain == data:
            raise
    return _decode(plain, image_size_px, limits)


def _decode(data: bytes, image_size_px: int, limits: Limits) -> Decoded:
    image = _open(data)
    width, height = image.size
    if width * height > limits.max_pixels:  # before the orientation, for which Pillow may load the picture
        message = f"{width:,} x {height:,} pixels, more than --max-pixels {limits.max_pixels:,}"
        raise ImageError(Code.BOMB, message, width, height)
    if image.format == "TIFF" and (kind := formats.find_unread_kind(data)):  # its preview would be decoded
        raise ImageError(Code.UNSUPPORTED, f"{kind} is not read; save it as 8-bit JPEG or PNG")
    if image.format == "PNG" and (chunk := formats.find_damaged_chunk(data)):  # which Pillow does not look at
        raise ImageError(Code.CORRUPT, f"PNG cannot be decoded: the checksum of {chunk} is wrong", width, height)
    try:
        # of a PNG, Pillow may load the picture for it, and a picture that failed to load once seems whole then
        orientation = 1 if image.format in (*_TURNED_BY_PILLOW, "PNG") else _read_orientation(image)
        is_large = image.format in ("JPEG", "MPO") and min(image.size) >= 2 * image_size_px
        if is_large and not formats.is_lossless_jpeg(data):
            image.draft("RGB", (image_size_px, image_size_px))
        tags = dict(image.tag_v2) if isinstance(image, TiffImageFile) else None  # loading drops some
        profile = image.info.get("icc_profile")
        drawn = image.tile[0][1] if image.tile and image.format == "GIF" else None
        image.load()
        if image.format == "PNG":
            orientation = _read_orientation(image)
            _check_png(image, data)
        if orientation >= 5:
            width, height = height, width
        flat = flatten(image, tags)
        if drawn not in (None, (0, 0, *image.size)) and "transparency" not in image.info:
            flat = _lay_on_white(flat, drawn)
        for turn in _UPRIGHT.get(orientation, ()):
            flat = flat.transpose(turn)
        square = flat.resize((image_size_px, image_size_px), Image.Resampling.BILINEAR)
        pixels = np.asarray(convert_to_srgb(square, profile))
    except ImageError as error:
        raise ImageError(error.code, str(error), width, height) from None
    except Exception as error:  # decoders of hostile bytes raise anything: OSError, ValueError, struct.error, ...
        raise _explain(data, error, str(image.format), width, height) from None
    return Decoded(pixels, width, height)


def _check_png(image: Image.Image, data: bytes) -> None:
    """Scale a transparent grey of fewer than 8 bits, since Pillow scales pixels alone; check that no row is missing.

    Raises:
        ImageError: TRUNCATED, or UNSUPPORTED: a transparent colour of 16 bits a sample, of which Pillow keeps 8.
    """
    bits, key = formats.get_png_bits(data), image.info.get("transparency")
    if isinstance(key, tuple) and bits == 16:
        raise ImageError(
            Code.UNSUPPORTED, "a PNG of 16 bits a sample with a transparent colour is not read; save it as RGBA"
        )
    if isinstance(key, int) and bits < 8 and image.mode in ("1", "L"):
        image.info["transparency"] = key * 255 // (2**bits - 1)
    width, height = image.size
    last = image.crop((0, height - 1, width, height))
    if (formats.is_interlaced(data) or last.getbbox(alpha_only=False) is None) and not formats.has_all_rows(data):
        raise ImageError(Code.TRUNCATED, "PNG cannot be decoded: its pixels end before its last row")


def _lay_on_white(image: Image.Image, drawn: tuple[int, int, int, int]) -> Image.Image:
    """Return a picture whose pixels outside the drawn rectangle are white, as of an animation's small first frame."""
    canvas = Image.new(image.mode, image.size, "white")
    canvas.paste(image.crop(drawn), drawn[:2])
    return canvas


def _open(data: bytes) -> ImageFile.ImageFile:
    """Open an image, which reads its header."""
    try:
        return Image.open(io.BytesIO(data), formats=formats.FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(Code.BOMB, str(error)) from None
    except Exception as error:
        raise _explain(data, error) from None


def _explain(
    data: bytes, error: Exception, name: str | None = None, width: int | None = None, height: int | None = None
) -> ImageError:
    """Return the reason why an image cannot be opened, or decoded where its header could be read."""
    if kind := formats.find_unread_kind(data):
        return ImageError(Code.UNSUPPORTED, f"{kind} is not read; save it as 8-bit JPEG or PNG", width, height)
    name = name or formats.sniff(data)
    if name is None:
        return ImageError(Code.UNSUPPORTED, f"not an image of a known format ({formats.describe_unknown(data)})")
    if formats.is_cut_short(data, error):
        reason = str(error) if width else "it ends inside its header"
        return ImageError(Code.TRUNCATED, f"{name} cannot be decoded: {reason}", width, height)
    if name == "TIFF" and (tags := tiff.read_tags(data)) and (width is None or not tiff.is_read(tags)):
        return ImageError(Code.UNSUPPORTED, f"{tiff.describe(tags)} is not read; save it as 8-bit TIFF or PNG")
    if "unsupported" in str(error).lower():
        return ImageError(Code.UNSUPPORTED, f"this kind of {name} is not read ({error}); save it as 8-bit JPEG or PNG")
    reason = str(error) if width else "its header cannot be read"
    return ImageError(Code.CORRUPT, f"{name} cannot be decoded: {reason}", width, height)


def _read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if it is missing or the EXIF block is damaged."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the picture is usable without its EXIF block
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
