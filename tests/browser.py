"""A headless Chromium, in which tests look at pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

WIDE, PHONE = (1280, 900), (390, 800)


@contextmanager
def start_browser() -> Iterator[Browser]:
    """Start the browser; skip the test where there is none."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@contextmanager
def visit(
    browser: Browser, path: Path, size: tuple[int, int] = WIDE, **options: Any
) -> Iterator[tuple[Page, list[str]]]:
    """Open a page's file; yield it with the messages that it writes to its console, and the requests that it makes."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    try:
        page.goto(path.as_uri())
        yield page, said
    finally:
        context.close()
