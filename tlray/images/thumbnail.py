"""Images as small JPEGs inside of a page."""

from __future__ import annotations

import base64
import io

from PIL import Image

from tlray.errors import ImageError
from tlray.images.decode import decode
from tlray.images.limits import Limits

SIDE_PX = 96

_QUALITY = 80
_HEAD = "data:image/jpeg;base64,"
_USUAL = Limits()


def make_thumbnail(data: bytes, side_px: int = SIDE_PX, limits: Limits = _USUAL) -> str | None:
    """Return an encoded image as a data URI, its longer side `side_px`; None if it cannot be decoded."""
    try:
        decoded = decode(data, 2 * side_px, limits)  # decoded to a square at twice the size, to stay sharp
    except ImageError:
        return None
    scale = side_px / max(decoded.width, decoded.height)
    size = (max(1, round(decoded.width * scale)), max(1, round(decoded.height * scale)))
    buffer = io.BytesIO()
    small = Image.fromarray(decoded.pixels).resize(size, Image.Resampling.LANCZOS)
    small.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return _HEAD + base64.b64encode(buffer.getvalue()).decode()
