"""Decode one encoded image to uint8 RGB `[S, S, 3]`, in training and prediction alike.

The image is turned upright by its EXIF orientation; of an animation the first frame counts; alpha is composited over
white; CMYK, palette, 1-bit and 16-bit become 8-bit RGB; Pillow's BILINEAR resizes to S x S, whatever the aspect ratio.
Byte, pixel and format limits are checked before any pixel is decoded. Every failure is an `ImageError` with a `Code`.
"""

from __future__ import annotations

import io
import struct
import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile

from tlray.errors import Code, ImageError
from tlray.images.limits import Limits

Image.init()  # registers all formats; without it `formats=` knows only those already used

FORMATS = tuple(
    name for name in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM") if name in Image.OPEN
)
"""Pillow's names of the formats that are decoded, whatever the file's extension (JPEG includes MPO)."""

EXTENSIONS = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".apng",
        ".gif",
        ".webp",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".avif",
        ".jp2",
        ".j2k",
        ".ppm",
        ".pgm",
        ".pbm",
    ]
)
"""Lower-case file extensions of images; a name without an extension counts as an image too."""

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
    image = _open(data)
    orientation = _read_orientation(image)
    width, height = image.size
    if orientation >= 5:
        width, height = height, width
    if width * height > limits.max_pixels:
        message = f"{width:,} x {height:,} pixels, more than --max-pixels {limits.max_pixels:,}"
        raise ImageError(Code.BOMB, message, width, height)
    try:
        if image.format in ("JPEG", "MPO") and min(image.size) >= 2 * image_size_px:
            image.draft("RGB", (image_size_px, image_size_px))
        image.load()
        rgb = _convert_to_rgb(image)
        for turn in _UPRIGHT.get(orientation, ()):
            rgb = rgb.transpose(turn)
        square = rgb.resize((image_size_px, image_size_px), Image.Resampling.BILINEAR)
    except Exception as error:  # decoders of hostile bytes raise anything: OSError, ValueError, struct.error, ...
        code = Code.TRUNCATED if _is_cut_short(data, error) else Code.CORRUPT
        raise ImageError(code, f"{image.format} cannot be decoded: {error}", width, height) from None
    return Decoded(np.asarray(square), width, height)


def _open(data: bytes) -> ImageFile.ImageFile:
    """Open an image, which reads its header."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(Code.BOMB, str(error)) from None
    except Exception as error:
        name = _sniff(data)
        if name is None:
            message = f"not an image of a known format ({_describe(data)})"
            raise ImageError(Code.UNSUPPORTED, message) from None
        code = Code.TRUNCATED if _is_cut_short(data, error) else Code.CORRUPT
        reason = "it ends inside its header" if code is Code.TRUNCATED else "its header cannot be read"
        raise ImageError(code, f"{name} cannot be decoded: {reason}") from None


def _read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if it is missing or the EXIF block is damaged."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the picture is usable without its EXIF block
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to 8-bit RGB: alpha over white, 16-bit samples by their high byte."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _convert_deep_to_rgb(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _convert_deep_to_rgb(image: Image.Image) -> Image.Image:
    """Convert greyscale of 16 bits or more to 8-bit RGB.

    16-bit samples keep their high byte; larger integers are clipped to 16 bits first. Floats count as [0, 1] if none
    exceeds 1, else as [0, 255].
    """
    samples = np.asarray(image)
    if image.mode == "F":
        finite = np.nan_to_num(samples.astype(np.float32), nan=0.0)
        grey = np.clip(finite * (255.0 if finite.max(initial=0.0) <= 1.0 else 1.0), 0, 255).astype(np.uint8)
    else:
        grey = (np.clip(samples.astype(np.int64), 0, 65535) >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey = np.where(samples == transparent, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")


def _sniff(data: bytes) -> str | None:
    """Return the format that the first bytes announce, None if unknown."""
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "AVIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    signatures = {
        b"\xff\xd8\xff": "JPEG",
        b"\x89PNG\r\n\x1a\n": "PNG",
        b"GIF87a": "GIF",
        b"GIF89a": "GIF",
        b"II*\x00": "TIFF",
        b"MM\x00*": "TIFF",
        b"BM": "BMP",
        b"\x00\x00\x00\x0cjP  ": "JPEG2000",
    }
    for magic, name in signatures.items():
        if data.startswith(magic) or (len(data) >= 3 and magic.startswith(data)):
            return name
    return None


def _describe(data: bytes) -> str:
    """Describe bytes that are not an image, without quoting them: they may be private."""
    head = data[:512].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "it looks like HTML or XML"
    return "it looks like text" if head.isascii() and b"\0" not in head else "unknown binary data"


def _is_cut_short(data: bytes, error: Exception) -> bool:
    """Return whether a file that failed to decode ends earlier than its structure announces."""
    name = _sniff(data)
    if name == "JPEG":
        return _is_jpeg_cut_short(data)
    if name == "PNG":
        return _is_png_cut_short(data)
    if name == "GIF":
        return b"\x3b" not in data[-2:]
    if name == "WEBP":
        return len(data) < 8 + int(struct.unpack("<I", data[4:8])[0])
    if name == "BMP":
        return len(data) < 6 or len(data) < int(struct.unpack("<I", data[2:6])[0])
    text = str(error).lower()
    return isinstance(error, EOFError | struct.error) or any(
        sign in text for sign in ("truncated", "unexpected end", "not enough", "read beyond")
    )


def _is_jpeg_cut_short(data: bytes) -> bool:
    """Return whether the marker segments up to the scan (ITU-T T.81, B.1), or the EOI marker behind it, are missing."""
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return False
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
        elif marker == 0xDA:
            return data.rfind(b"\xff\xd9", position) < 0
        elif 0xD0 <= marker <= 0xD8 or marker == 0x01:
            position += 2
        else:
            position += 2 + struct.unpack(">H", data[position + 2 : position + 4])[0]
    return True


def _is_png_cut_short(data: bytes) -> bool:
    """Return whether the chunks (PNG specification, 5.3) end before IEND."""
    position = 8
    while position + 12 <= len(data):
        length = struct.unpack(">I", data[position : position + 4])[0]
        if data[position + 4 : position + 8] == b"IEND":
            return False
        if length > 0x7FFFFFFF:
            return False
        position += 12 + length
    return True
