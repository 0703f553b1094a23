"""Text on the wall: labels on the plank, and covers made of text where there is no picture.

The font is the one that Pillow carries, with its simple layout: equal on every machine. It has plain Latin letters,
so marks are left out and other scripts give way to the file's name (the viewer's list shows every name as it is).
"""

from __future__ import annotations

import threading

import numpy as np
from blake3 import blake3
from PIL import Image, ImageDraw, ImageFont

from render.core.captions import Caption
from render.core.cell import LABEL, TEXT_COVER
from render.core.text import drawable, ellipsize, wrap
from render.shelf import LABEL_INK, LABEL_PAPER, Pixels

_CLOTHS = (
    (110, 38, 40),
    (36, 62, 86),
    (44, 76, 58),
    (92, 66, 38),
    (70, 48, 88),
    (28, 78, 84),
    (120, 74, 30),
    (58, 60, 66),
)
_GILT = (226, 202, 146)
_MARGIN = 26


class Lettering:
    """Draws text; safe between threads (a FreeType face is not, hence the lock)."""

    def __init__(self) -> None:
        self._label = _font(15)
        self._titles = tuple(_font(size) for size in (34, 28, 23, 19))
        self._author = _font(19)
        self._lock = threading.Lock()

    def label(self, text: str, stem: str) -> Pixels:
        """A label's paper with one line of text on it (or the file's name), but for the two rows of its edge."""
        image = Image.new("RGB", (LABEL.width, LABEL.height - 2), LABEL_PAPER)
        with self._lock:
            shown = ellipsize(drawable(text, stem), LABEL.width - 16, self._label.getlength)
            ImageDraw.Draw(image).text(
                (LABEL.width // 2, image.height // 2 + 1), shown, LABEL_INK, self._label, anchor="mm"
            )
        return np.asarray(image)

    def text_cover(self, path: bytes, stem: str, caption: Caption) -> Pixels:
        """A cover of cloth and gilt letters, TEXT_COVER's size; its colour follows from the path."""
        width, height = TEXT_COVER.width, TEXT_COVER.height
        cloth = _CLOTHS[blake3(path).digest()[0] % len(_CLOTHS)]
        image = Image.new("RGB", (width, height), cloth)
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, 0, 9, height), tuple(value * 3 // 4 for value in cloth))
        draw.rectangle((18, 12, width - 13, height - 13), outline=_GILT, width=2)
        draw.rectangle((23, 17, width - 18, height - 18), outline=tuple((value + 226) // 2 for value in cloth))
        centre, room = (width + 9) // 2, width - 2 * _MARGIN - 18
        with self._lock:
            font, lines = self._fitted(drawable(caption.title, stem), room)
            step = font.size * 5 // 4
            top = height * 2 // 5 - step * len(lines) // 2
            for number, line in enumerate(lines):
                draw.text((centre, top + number * step), line, _GILT, font, anchor="mt")
            draw.line((centre - 30, height * 3 // 4 - 14, centre + 30, height * 3 // 4 - 14), _GILT, 2)
            for number, line in enumerate(wrap(drawable(caption.author), room, self._author.getlength, 3)):
                draw.text((centre, height * 3 // 4 + 4 + number * 24), line, _GILT, self._author, anchor="mt")
        return np.asarray(image)

    def _fitted(self, title: str, room: int) -> tuple[ImageFont.FreeTypeFont, list[str]]:
        """The largest font that shows the whole title in six lines, else the smallest."""
        for font in self._titles[:-1]:
            lines = wrap(title, room, font.getlength, 6)
            if "".join(lines).replace(" ", "") == title.replace(" ", ""):
                return font, lines
        font = self._titles[-1]
        return font, wrap(title, room, font.getlength, 8)


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
