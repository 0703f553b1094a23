"""Lines of text that fit a width, whatever the font: measuring is an argument."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

Measure = Callable[[str], float]  # the width of a text in pixels


# What the font that Pillow carries can draw beyond ASCII.
_DRAWN = frozenset("©«°±´·»‘’“”…‹›⁄™")
# Letters that do not decompose into a plain one and its marks.
_PLAIN = str.maketrans(
    {"ß": "ss", "Æ": "AE", "æ": "ae", "Œ": "OE", "œ": "oe", "Ø": "O", "ø": "o", "Ł": "L", "ł": "l", "Đ": "D", "đ": "d",
     "Ð": "D", "ð": "d", "Þ": "Th", "þ": "th", "ı": "i", "–": "-", "—": "-", "‐": "-", "\u00a0": " "}
)  # fmt: skip
_UNKNOWN = "·"


def drawable(text: str, otherwise: str = "") -> str:
    """``text`` in letters that the font has: marks are left out, other scripts become dots.

    Where more would be dots than letters, ``otherwise``, drawn the same way, is more telling.
    """
    plain = unicodedata.normalize("NFKD", text.translate(_PLAIN))
    shown = "".join(
        character if character.isascii() or character in _DRAWN else _UNKNOWN
        for character in plain
        if not unicodedata.combining(character)
    )
    if otherwise and shown.count(_UNKNOWN) * 2 > len(shown):
        return drawable(otherwise)
    return shown


def ellipsize(text: str, width: float, measure: Measure) -> str:
    """``text``, cut with an ellipsis where it is wider than ``width``."""
    if measure(text) <= width:
        return text
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if measure(text[:middle].rstrip() + "…") <= width:
            fits = middle
        else:
            too_long = middle
    return text[:fits].rstrip() + "…"


def wrap(text: str, width: float, measure: Measure, line_count_max: int) -> list[str]:
    """At most ``line_count_max`` lines, broken at spaces, or inside a word that is wider than a line.

    What has no room is cut with an ellipsis at the end of the last line.
    """
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < line_count_max:
        if len(lines) == line_count_max - 1:
            lines.append(ellipsize(" ".join(words), width, measure))
            break
        line = words.pop(0)
        if measure(line) > width:
            length = max(1, len(ellipsize(line, width, measure)) - 1)
            line, rest = line[:length], line[length:]
            words.insert(0, rest)
        else:
            while words and measure(f"{line} {words[0]}") <= width:
                line = f"{line} {words.pop(0)}"
        lines.append(line)
    return lines
