"""The contact sheet of a sample: one page that holds everything, pictures included."""

from __future__ import annotations

import base64
import io
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby

import jinja2
import pyarrow as pa
from PIL import Image

from tlray.audit.form import ANSWER, NONE, RIGHT
from tlray.audit.form import NAME as FORM
from tlray.audit.sample import Drawn, Sample
from tlray.errors import ImageError
from tlray.images import decode
from tlray.limits import Limits
from tlray.progress import Stage
from tlray.sources.reading import read_rows

NAME = "sheet.html"

_SIDE_PX = 128
_QUALITY = 80
_MAX_PICTURE_BYTES = 6 * 2**20
_SHOWN, _TOLD = 48, 300
_SHOWN_CLASSES = 200


@dataclass(frozen=True)
class Section:
    """One predicted class of the page.

    Attributes:
        class_name: predicted.
        in_archive: rows of the archive that have it.
        rows: drawn from it.
    """

    class_name: str
    in_archive: int
    rows: list[Drawn]


def make_sheet(sample: Sample, planned: pa.Table, limits: Limits, image_column: str | None) -> tuple[bytes, int]:
    """The page as UTF-8, and how many pictures it shows.

    Args:
        sample: what it shows.
        planned: the rows of the plan, ascending.
        limits: as the images were labelled with.
        image_column: of Parquet inputs.
    """
    pictures: dict[int, str] = {}
    used = 0
    capped = False
    for row_id, data in _read_pictures(planned, limits, image_column):
        picture = None if data is None else f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
        if picture is None:
            continue
        used += len(picture)
        if used > _MAX_PICTURE_BYTES:
            capped = True
            break
        pictures[row_id] = picture
    sections = [
        Section(name, sample.rows_by_class[name], list(rows))
        for name, rows in groupby(sample.rows, key=lambda row: row.class_name)
    ]
    page = _load_template().render(
        sample=sample,
        sections=sections,
        pictures=pictures,
        capped=capped,
        form=FORM,
        answer=ANSWER,
        right=RIGHT,
        no_class=NONE,
        shown_classes=_SHOWN_CLASSES,
    )
    return page.encode("utf-8", "replace"), len(pictures)


def _read_pictures(planned: pa.Table, limits: Limits, image_column: str | None) -> Iterator[tuple[int, bytes | None]]:
    """A small JPEG for each row; None where its image cannot be had any more."""
    fetched = read_rows(planned, limits.max_bytes, image_column)
    with Stage("sheet", planned.num_rows) as stage:
        for row_id, answer in zip(planned["row_id"].to_pylist(), fetched, strict=True):
            stage.advance(1)
            yield row_id, make_thumbnail(answer.data, limits) if isinstance(answer.data, bytes) else None


def make_thumbnail(data: bytes, limits: Limits) -> bytes | None:
    """A JPEG of at most 128 px a side in the image's own proportions; None where it cannot be decoded."""
    try:
        pixels, width, height = decode(data, _SIDE_PX, limits)
    except ImageError:
        return None
    scale = min(1.0, _SIDE_PX / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def shorten(text: str, most: int = _SHOWN) -> str:
    """A name as a page can show it: control characters taken out, the middle of a long one left out."""
    plain = "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(sign) in ("Cc", "Cs") else sign for sign in text
    )
    half = (most - 1) // 2
    return plain if len(plain) <= most else f"{plain[:half]}…{plain[-half:]}"


@cache
def _load_template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tlray.audit"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shorten"] = shorten
    environment.filters["tell"] = lambda text: shorten(text, _TOLD)
    return environment.get_template(NAME)
