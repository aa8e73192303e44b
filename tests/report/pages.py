"""Readers of images for pages, and a strict look at a page's HTML."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from typing import Any

from PIL import Image

VOID = {"meta", "img", "br", "input"}


class Parser(HTMLParser):
    """The tags, attributes and text of a page; fails where tags are not balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


def parse(page: bytes) -> tuple[Parser, str]:
    """Check that a page is small, well-formed, without scripts, addresses or dead links; return parts and words."""
    text = page.decode()
    assert len(page) < 5_000_000
    parser = Parser()
    parser.feed(text)
    parser.close()
    assert not parser.open
    assert "script" not in parser.tags
    assert "<script" not in text
    assert "http:" not in text
    assert "https:" not in text
    assert not any(name.startswith("on") for name, _ in parser.attributes)
    for name, value in parser.attributes:
        if name in ("src", "href"):
            assert value is not None
            assert value.startswith(("data:image/jpeg;base64,", "#"))
        if name in ("title", "aria-label", "alt"):
            assert len(value or "") < 1000
    ids = {value for name, value in parser.attributes if name == "id"}
    links = {value[1:] for name, value in parser.attributes if name == "href" and value is not None}
    assert links <= ids, f"links that lead nowhere: {links - ids}"
    words = " ".join("".join(parser.text).split())
    assert not set(words) & {"\N{RIGHT-TO-LEFT OVERRIDE}", "\x00", "\x07", "\x1b"}
    return parser, words


def make_jpeg(width: int = 320, height: int = 120, colour: tuple[int, int, int] = (200, 90, 20)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def read_nothing(keys: Sequence[Any]) -> Iterator[bytes | None]:
    return iter([None] * len(keys))


def read_jpegs(keys: Sequence[Any]) -> Iterator[bytes | None]:
    for _ in keys:
        yield make_jpeg()
