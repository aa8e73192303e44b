"""The one jinja2 environment of the pages, and how numbers and names are written in them."""

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
"""What every page is called."""

MAX_CLASSES = 30
"""Classes that a table or chart shows; of more, the most frequent."""

NONE = "\N{EN DASH}"
"""What stands where there is no number."""

_TITLE_CHARACTERS = 300
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"  # Persian, Indic scripts and emoji need them

Item = TypeVar("Item")


def render(template: str, **values: Any) -> bytes:
    """One page as UTF-8."""
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
    """A text without secrets, and without characters that are not seen but reorder or hide others."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(letter) in _UNSEEN and letter not in _JOINERS else letter
        for letter in redact(text)
    )


def shorten(text: str, width: int) -> str:
    """A text cut in its middle where it is wider than `width` columns; East Asian letters take two."""
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
    """A name from outside: apart from the text around it, shortened, the whole in its title."""
    return _format_shortened(clean(text), width)


def format_file(uri: str, width: int = 20) -> Markup:
    """The last part of an address, the whole in its title."""
    whole = clean(uri)
    return _format_shortened(whole, width, whole.rstrip("/").rpartition("/")[2])


def _format_shortened(whole: str, width: int, shown: str | None = None) -> Markup:
    short = shorten(whole if shown is None else shown, width)
    if short == whole:
        return Markup("<bdi>{}</bdi>").format(whole)
    return Markup('<bdi title="{}">{}</bdi>').format(format_whole(whole), short)


def format_whole(text: str) -> str:
    """A name from outside for a title."""
    return shorten(clean(text), _TITLE_CHARACTERS)


def format_count(value: float) -> str:
    """12345 -> 12,345."""
    return f"{value:,.0f}"


def format_decimal(value: float | None, digits: int = 3) -> str:
    """A number with fixed digits; a dash where there is none."""
    return NONE if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def format_percent(share: float | None, digits: int = 1) -> str:
    """0.9234 -> 92.3%; what is not all or nothing is never rounded to it."""
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
    """0.0234 -> 2.3 points."""
    return f"{share * 100:.1f} points"


def format_duration(seconds: float) -> str:
    """Seconds in the unit that people would say."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"


def format_moment(moment: str) -> str:
    """2026-11-23T06:03:35Z -> 2026-11-23 06:03 UTC."""
    return f"{moment[:10]} {moment[11:16]} UTC"


def keep_frequent(items: Sequence[Item], counts: Sequence[float], most: int = MAX_CLASSES) -> list[Item]:
    """All items in their order, or of too many the most frequent, those first."""
    if len(items) <= most:
        return list(items)
    order = sorted(range(len(items)), key=lambda index: -counts[index])
    return [items[index] for index in order[:most]]
