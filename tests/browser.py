"""Debian's Chromium on the wall: what a visit sees, and what goes wrong on its page."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

needs_chromium = [
    pytest.mark.browser,
    pytest.mark.skipif(not os.path.exists(CHROMIUM), reason=f"{CHROMIUM} is not installed: apt-get install chromium"),
]


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """A page, and what went wrong on it."""

    def __init__(self, browser: Browser, port: int, fragment: str = "") -> None:
        self.page: Page = browser.new_page(viewport={"width": 1000, "height": 700})
        self.page.set_default_timeout(20_000)
        self.troubles: list[str] = []
        self.page.on("console", lambda message: self._note(message.type in ("error", "warning"), message.text))
        self.page.on("pageerror", lambda error: self._note(True, str(error)))
        self.page.on("requestfailed", lambda request: self._note(True, f"{request.url} {request.failure}"))
        self.page.on("response", lambda reply: self._note(reply.status >= 400, f"{reply.status} {reply.url}"))
        self.page.goto(f"http://127.0.0.1:{port}/{fragment}")

    def _note(self, is_trouble: bool, text: str) -> None:
        if is_trouble:
            self.troubles.append(text)

    def settle(self, **attributes: object) -> dict[str, str]:
        """Waits until all tiles wanted are drawn (and the body's data has these values); the body's data."""
        wanted = "".join(f'[data-{name}="{value}"]' for name, value in {"settled": "true", **attributes}.items())
        self.page.wait_for_selector(f"body{wanted}")
        found: dict[str, str] = self.page.evaluate("({...document.body.dataset})")
        return found

    def wait_for_zoom(self, zoom: float) -> None:
        """Waits until it is that near, or nearer, and settled."""
        self.page.wait_for_function("(zoom) => Number(document.body.dataset.zoom) >= zoom", arg=zoom - 0.01)
        self.settle()

    def ask_for_the_wall(self) -> None:
        """What the page does each few seconds, and when it comes back into view."""
        self.page.evaluate("dispatchEvent(new Event('visibilitychange'))")

    def pixels(self) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(self.page.locator("#wall").screenshot())).convert("RGB"))


def colour_count(pixels: np.ndarray) -> int:
    """Colours, 32 steps apart, that cover at least a thousandth of the picture."""
    steps = (pixels // 32).reshape(-1, 3).astype(np.int64) @ np.array([64, 8, 1])
    return int((np.bincount(steps) > len(steps) / 1000).sum())


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """How far two pictures of one size are apart: the mean over all pixels and channels, 0 to 255."""
    return float(np.abs(one.astype(int) - other.astype(int)).mean())
