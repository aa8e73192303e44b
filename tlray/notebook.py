"""Returned objects as text in one line, and in a notebook as a small card."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from markupsafe import Markup

from tlray.errors import TlrayError

_MAX_CLASSES = 12
_MAX_LINE = 200
_CELL = Markup('<td style="text-align:left;padding:.15em .8em .15em 0;border:0;vertical-align:top">{}</td>')
_SOFT = Markup('<span style="opacity:.65">{}</span>')
_BAR = Markup(
    '<span style="display:inline-block;height:.6em;background:currentColor;opacity:.45;margin-right:.5em;'
    'width:{:.2f}em"></span>{:.1%}'
)
_BAR_EM = 8
_STRIP = Markup('<div style="display:flex;flex-wrap:wrap;gap:.6em;margin-top:.6em">{}</div>')
_SHOT = Markup(
    '<figure style="margin:0;width:6em"><img src="{}" alt="" style="max-width:6em;max-height:6em">'
    '<figcaption style="font-size:.8em;overflow-wrap:anywhere">{}</figcaption></figure>'
)


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, and what stands below it."""

    uri: str
    caption: str


@dataclass(frozen=True)
class Card:
    """The title, figures and shares that an object shows.

    Attributes:
        title: what it is.
        figures: names and values, the most important first.
        shares: share of the images by class.
    """

    title: str
    figures: Sequence[tuple[str, str]]
    shares: Mapping[str, float] = field(default_factory=dict)

    def format_line(self) -> str:
        """Return the title and as many figures as fit in a line."""
        text = self.title
        for index, (name, value) in enumerate(self.figures):
            longer = f"{text}{', ' if index else ': '}{name} {value}"
            if len(longer) > _MAX_LINE:
                break
            text = longer
        return f"<{text}>"

    def draw(self, pictures: Sequence[Picture] = ()) -> str:
        """Return the card as HTML that takes the notebook's fonts and colours."""
        parts = [Markup("<strong>{}</strong>").format(self.title), _draw_table(self.figures)]
        if self.shares:
            names = sorted(self.shares, key=lambda name: -self.shares[name])
            most = max(self.shares[names[0]], 1e-9)
            shown = names[:_MAX_CLASSES]
            bars = [_BAR.format(_BAR_EM * self.shares[name] / most, self.shares[name]) for name in shown]
            parts.append(_draw_table(list(zip(shown, bars, strict=True))))
            if len(names) > len(shown):
                parts.append(_SOFT.format(f"and {len(names) - len(shown):,} more classes"))
        if pictures:
            shots = [_SHOT.format(picture.uri, picture.caption) for picture in pictures]
            parts.append(_STRIP.format(Markup("").join(shots)))
        return str(Markup("<div>{}</div>").format(Markup("").join(parts)))


def _draw_table(rows: Sequence[tuple[str, str]]) -> Markup:
    cells = [(_CELL.format(_SOFT.format(name)), _CELL.format(value)) for name, value in rows]
    lines = [Markup("<tr>{}{}</tr>").format(*pair) for pair in cells]
    return Markup("<table>{}</table>").format(Markup("").join(lines))


class Shown:
    """An object that shows itself by its card."""

    def describe(self) -> Card:
        """Return what the object shows."""
        raise NotImplementedError

    def read_shares(self) -> dict[str, float]:
        """Read shares by class to show below the card; may raise a `TlrayError` or `OSError`."""
        return {}

    def read_pictures(self) -> list[Picture]:
        """Read a few images to show below the card; may raise a `TlrayError` or `OSError`."""
        return []

    def __repr__(self) -> str:
        return self.describe().format_line()

    def _repr_html_(self) -> str:
        card, pictures = self.describe(), []
        with contextlib.suppress(TlrayError, OSError):  # what cannot be reached any more is left out
            card = replace(card, shares={**card.shares, **self.read_shares()})
            pictures = self.read_pictures()
        return card.draw(pictures)


def name_classes(classes: Sequence[str]) -> str:
    """Return the number of classes and the first of them."""
    first = ", ".join(classes[:4])
    return f"{len(classes):,} ({first}{', ...' if len(classes) > 4 else ''})"
