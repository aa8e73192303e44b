"""The jinja2 environment of the pages, and the formatting of names and numbers in them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar

import jinja2
from markupsafe import Markup

from tlray.storage import redact

NAME = "report.html"
"""File name of every page."""

MAX_CLASSES = 30
"""Maximum number of classes in a table or chart; the most frequent are shown."""

NONE = "\N{EN DASH}"
"""Placeholder for a missing number."""

_TITLE_CHARACTERS = 300
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"  # Persian, Indic scripts and emoji need them

Item = TypeVar("Item")


def render(template: str, **values: Any) -> bytes:
    """Render a template as UTF-8."""
    return _open_environment().get_template(template).render(**values).encode()


@cache
def _open_environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tlray.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "name": format_name,
        "file": format_file,
        "whole": format_whole,
        "clean": clean,
        "count": format_count,
        "decimal": format_decimal,
        "percent": format_percent,
        "points": format_points,
        "duration": format_duration,
        "moment": format_moment,
    }
    return environment


def clean(text: str) -> str:
    """Return a text without secrets and without invisible characters that reorder or hide others."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(letter) in _UNSEEN and letter not in _JOINERS else letter
        for letter in redact(text)
    )


def shorten(text: str, width: int) -> str:
    """Return a text cut in its middle if it is wider than `width` columns; East Asian wide characters take two."""
    widths = [2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text]
    if sum(widths) <= width:
        return text
    head, tail = (width - 1) - (width - 1) // 2, (width - 1) // 2
    return f"{_take(text, widths, head)}\N{HORIZONTAL ELLIPSIS}{_take(text[::-1], widths[::-1], tail)[::-1]}"


def _take(text: str, widths: Sequence[int], width: int) -> str:
    taken = 0
    for index, own in enumerate(widths):
        taken += own
        if taken > width:
            return text[:index]
    return text


def format_name(text: str, width: int = 32) -> Markup:
    """Return an untrusted name, isolated from the surrounding text and shortened, with the whole in its title."""
    return _format_shortened(clean(text), width)


def format_file(uri: str, width: int = 20) -> Markup:
    """Return the last part of an address, with the whole in its title."""
    whole = clean(uri)
    return _format_shortened(whole, width, whole.rstrip("/").rpartition("/")[2])


def _format_shortened(whole: str, width: int, shown: str | None = None) -> Markup:
    short = shorten(whole if shown is None else shown, width)
    if short == whole:
        return Markup("<bdi>{}</bdi>").format(whole)
    return Markup('<bdi title="{}">{}</bdi>').format(format_whole(whole), short)


def format_whole(text: str) -> str:
    """Return an untrusted name for a title attribute."""
    return shorten(clean(text), _TITLE_CHARACTERS)


def format_count(value: float) -> str:
    """Format 12345 as 12,345."""
    return f"{value:,.0f}"


def format_decimal(value: float | None, digits: int = 3) -> str:
    """Format a number with fixed digits; a dash for None, NaN and infinity."""
    return NONE if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def format_percent(share: float | None, digits: int = 1) -> str:
    """Format 0.9234 as 92.3%; only exactly 0 and 1 become 0% and 100%."""
    if share is None or not math.isfinite(share):
        return NONE
    text = f"{share * 100:.{digits}f}%"
    least = 10.0**-digits
    if share > 0 and text == f"{0:.{digits}f}%":
        return f"<{least:.{digits}f}%"
    if share < 1 and text == f"{100:.{digits}f}%":
        return f">{100 - least:.{digits}f}%"
    return text


def format_points(share: float) -> str:
    """Format 0.0234 as 2.3 points."""
    return f"{share * 100:.1f} points"


def format_duration(seconds: float) -> str:
    """Format seconds in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"


def format_moment(moment: str) -> str:
    """Format 2026-11-23T06:03:35Z as 2026-11-23 06:03 UTC."""
    return f"{moment[:10]} {moment[11:16]} UTC"


def keep_frequent(items: Sequence[Item], counts: Sequence[float], most: int = MAX_CLASSES) -> list[Item]:
    """Return all items in their order; of more than `most`, the most frequent, in descending order."""
    if len(items) <= most:
        return list(items)
    order = sorted(range(len(items)), key=lambda index: -counts[index])
    return [items[index] for index in order[:most]]
