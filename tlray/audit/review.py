"""The page on which a person reviews a sample: one file with its pictures and its script, which keeps the answers."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from tlray.audit import form
from tlray.audit.sample import Drawn, Sample
from tlray.console import Stage
from tlray.images.limits import Limits
from tlray.report.page import clean, render, shorten
from tlray.report.thumbnails import make_thumbnails
from tlray.sources.reading import read_rows
from tlray.storage.cells import disarm
from tlray.version import __version__

NAME = "review.html"
SCRIPTS = ("review_answers.js", "review.js")
"""Parts of the page's script, below the templates: the answers and their CSV, then the view."""

_SIDES_PX = ((1_000, 480), (4_000, 384))
"""Longer side of the pictures, for up to so many of them."""
_SMALLEST_SIDE_PX = 288
_MAX_PICTURE_BYTES = 128 * 2**20
_PER_BLOCK = 48
"""Pictures that the page decodes together."""
_MAX_BUTTONS = 36
"""Classes that have a button and a key; the others are typed."""


def make_review_page(
    sample: Sample,
    drawn: Sequence[Drawn],
    planned: pa.Table,
    limits: Limits,
    image_column: str | None,
    address: str,
    command: str,
) -> tuple[bytes, int]:
    """Return the page as UTF-8, and its number of pictures.

    Args:
        sample: the sample.
        drawn: the rows of one of its rounds.
        planned: these rows of the plan, ascending.
        limits: limits of the prediction run.
        image_column: of Parquet inputs.
        address: of the round's CSV.
        command: that measures the filled-in forms.
    """

    def read(row_ids: Sequence[int]) -> Iterator[bytes | None]:
        fetched = read_rows(planned, limits.max_bytes, image_column)
        with Stage("pictures", len(row_ids)) as stage:
            for answer in fetched:
                stage.advance(1)
                yield answer.data if isinstance(answer.data, bytes) else None

    side_px = next((side for most, side in _SIDES_PX if len(drawn) <= most), _SMALLEST_SIDE_PX)
    pictures = make_thumbnails(planned["row_id"].to_pylist(), read, _MAX_PICTURE_BYTES, side_px, limits)
    uris = [pictures.get(row.row_id) for row in drawn]
    script = "\n".join((files("tlray.report") / "templates" / name).read_text(encoding="utf-8") for name in SCRIPTS)
    page = render(
        NAME,
        title=f"tlray audit: {len(drawn):,} labels to review",
        version=__version__,
        sample=sample,
        rows=drawn,
        form=form.name_form(drawn[0].round),
        address=clean(address),
        command=clean(command),
        data=_embed(_describe(sample, drawn)),
        pictures=[_embed(uris[start : start + _PER_BLOCK]) for start in range(0, len(uris), _PER_BLOCK)],
        missing=uris.count(None),
        script=Markup(script),
        script_hash=_hash_script(script),
    )
    return page, len(pictures.uris)


def _describe(sample: Sample, drawn: Sequence[Drawn]) -> dict[str, Any]:
    """Return what the script works with."""
    number = drawn[0].round
    indices = {name: index for index, name in enumerate(sample.classes)}
    by_rows = sorted(indices.values(), key=lambda index: -sample.rows_by_class.get(sample.classes[index], 0))
    return {
        "key": f"tlray audit {sample.run_id} {number} {_hash_rows(drawn)}",
        "form": form.name_form(number),
        "columns": form.COLUMNS,
        "right": form.RIGHT,
        "none": form.NONE,
        "named_right": form.RIGHT in indices,
        "per_block": _PER_BLOCK,
        "buttons": sorted(by_rows[:_MAX_BUTTONS]),
        "classes": [
            {"name": name, "cell": disarm(name), "shown": shown}
            for name, shown in zip(sample.classes, _list_shown(sample.classes), strict=True)
        ],
        "rows": [
            {
                "id": row.row_id,
                "label": indices[row.class_name],
                "probability": round(row.probability, 4),
                "uri": clean(row.uri),
                "file": shorten(clean(row.uri).rstrip("/").rpartition("/")[2], 60),
                "cells": form.list_cells(row),
            }
            for row in drawn
        ],
    }


def _list_shown(names: Sequence[str]) -> list[str]:
    """List class names as the page shows them; names that look the same get their index."""
    shown = [clean(name) for name in names]
    times = Counter(shown)
    return [f"{name} ({index})" if times[name] > 1 else name for index, name in enumerate(shown)]


def _hash_rows(drawn: Sequence[Drawn]) -> str:
    return hashlib.sha256(",".join(str(row.row_id) for row in drawn).encode()).hexdigest()[:16]


def _embed(value: Any) -> Markup:
    """Return JSON that no script element ends in and that no page reads as markup."""
    return Markup(json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def _hash_script(script: str) -> str:
    """Return the hash by which the page's policy allows this script and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
