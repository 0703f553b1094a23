"""Makes book covers: pictures that look like a shelf one wants to browse, and a catalog that names them.

Everything follows from the seed and a cover's number, so two machines make the same covers.
"""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from render.core.text import wrap

WIDTH, HEIGHT = 300, 450
_QUALITY = 80
_PROCESSES_FROM = 500
_SHELVES = ("Mystery", "Science", "History", "Poetry", "Travel", "Cooking", "Music", "Fantasy")
_PALETTES = (
    ("#12355b", "#f4f1de", "#e07a5f", "#81b29a"),
    ("#2b2d42", "#edf2f4", "#ef233c", "#8d99ae"),
    ("#264653", "#e9c46a", "#f4a261", "#e76f51"),
    ("#3d0c11", "#f5e6ca", "#d80032", "#f78ca2"),
    ("#0b3d2e", "#f6f7eb", "#f2c14e", "#5d9e7e"),
    ("#432371", "#faae7b", "#ffe3d8", "#c86b98"),
    ("#1a1a1d", "#f2f2f2", "#c3073f", "#950740"),
    ("#f7f3e3", "#22223b", "#6f9ceb", "#b5179e"),
    ("#fefae0", "#283618", "#dda15e", "#606c38"),
    ("#023047", "#ffffff", "#ffb703", "#219ebc"),
)
_HEADS = ("The", "One", "Our", "Every", "My Last", "Another", "The Long", "The Quiet", "Beyond the", "Under the")
_NOUNS = (
    "Lighthouse", "Orchard", "Winter", "River", "Cartographer", "Garden", "Clockmaker", "Harbour", "Moon", "Letter",
    "Mountain", "Archive", "Storm", "Island", "Violin", "Bridge", "Station", "Forest", "Kitchen", "Comet",
)  # fmt: skip
_TAILS = ("", "", "", "of Salt", "in the Rain", "at Night", "and Other Stories", "of Small Things", "Without a Map")
_FIRST = ("Ada", "Noor", "Elif", "Jonas", "Mira", "Tomas", "Ingrid", "Kofi", "Lena", "Yusuf", "Clara", "Hugo")
_LAST = ("Marlow", "Okafor", "Lindqvist", "Haddad", "Moreau", "Sato", "Novak", "Brennan", "Castillo", "Weiss")

_Draw = ImageDraw.ImageDraw


def make_covers(directory: Path, count: int, seed: int) -> None:
    """Write ``count`` JPEGs (about 300 x 450 pixels, 15 to 25 KB) in a folder a category, and ``catalog.jsonl``."""
    for shelf in _SHELVES:
        (directory / shelf.lower()).mkdir(parents=True, exist_ok=True)
    step = 100
    parts = [(directory, seed, first, min(first + step, count)) for first in range(0, count, step)]
    if count > _PROCESSES_FROM:
        with ProcessPoolExecutor(os.cpu_count()) as processes:
            lines = [line for part in processes.map(_make_part, parts) for line in part]
    else:
        lines = [line for part in map(_make_part, parts) for line in part]
    (directory / "catalog.jsonl").write_text("".join(lines), encoding="utf-8")


def make_cover(number: int, seed: int) -> tuple[bytes, str, dict[str, str]]:
    """(JPEG, its path, its line in the catalog) of one cover."""
    rng = random.Random(f"{seed}:{number}")
    title = " ".join(filter(None, (rng.choice(_HEADS), rng.choice(_NOUNS), rng.choice(_TAILS))))
    author = f"{rng.choice(_FIRST)} {rng.choice(_LAST)}"
    isbn = f"978{rng.randrange(10**9):09}{number % 10}{number:05}"
    path = f"{rng.choice(_SHELVES).lower()}/{isbn}.jpg"
    return _draw_cover(rng, title, author), path, {"id": isbn, "title": title, "author": author}


def _make_part(part: tuple[Path, int, int, int]) -> list[str]:
    directory, seed, first, stop = part
    lines = []
    for number in range(first, stop):
        data, path, line = make_cover(number, seed)
        (directory / path).write_bytes(data)
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return lines


def _draw_cover(rng: random.Random, title: str, author: str) -> bytes:
    height = HEIGHT + rng.choice((-50, -20, 0, 0, 0, 10))
    ground, ink, accent, second = rng.choice(_PALETTES)
    image = Image.new("RGB", (WIDTH, height), ground)
    design = rng.choice(_DESIGNS)
    design(ImageDraw.Draw(image), rng, height, (ink, accent, second))
    image = _aged(image, rng)
    _set_type(ImageDraw.Draw(image), rng, height, title, author, (ground, ink))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def _aged(image: Image.Image, rng: random.Random) -> Image.Image:
    """Light from one corner and the grain of print: what a photographed cover has, and what costs bytes."""
    noise = np.random.default_rng(rng.randrange(1 << 30))
    pixels = np.asarray(image).astype(np.int16)
    rows, columns = np.mgrid[0 : image.height, 0 : image.width]
    light = 18 - (rows * 26 // image.height + columns * 14 // image.width)
    grain = noise.integers(-3, 4, pixels.shape[:2])
    return Image.fromarray(np.clip(pixels + (light + grain)[..., None], 0, 255).astype(np.uint8))


def _set_type(draw: _Draw, rng: random.Random, height: int, title: str, author: str, inks: tuple[str, str]) -> None:
    ground, ink = inks
    size = rng.choice((34, 38, 42))
    title = title.upper() if rng.random() < 0.5 else title
    while max(map(ImageFont.load_default(size).getlength, title.split())) > WIDTH - 50:
        size -= 2
    font, small = ImageFont.load_default(size), ImageFont.load_default(20)
    lines = wrap(title, WIDTH - 50, font.getlength, 4)
    top = rng.choice((28, height // 2 - 60, height - 110 - size * 5 // 4 * len(lines)))
    band = (0, top - 14, WIDTH, top + len(lines) * size * 5 // 4 + 10)
    draw.rectangle(band, ground)
    draw.line((24, band[1] + 4, WIDTH - 24, band[1] + 4), ink, 2)
    draw.line((24, band[3] - 4, WIDTH - 24, band[3] - 4), ink, 2)
    for number, line in enumerate(lines):
        draw.text((WIDTH // 2, top + number * size * 5 // 4), line, ink, font, anchor="ma")
    draw.rectangle((0, height - 44, WIDTH, height), ground)
    draw.text((WIDTH // 2, height - 34), author, ink, small, anchor="ma")


def _bands(draw: _Draw, rng: random.Random, height: int, colours: tuple[str, str, str]) -> None:
    top = 0
    while top < height:
        depth = rng.randrange(14, 70)
        draw.rectangle((0, top, WIDTH, top + depth), rng.choice(colours))
        top += depth + rng.randrange(6, 40)


def _suns(draw: _Draw, rng: random.Random, height: int, colours: tuple[str, str, str]) -> None:
    x, y = rng.randrange(60, 240), rng.randrange(90, height - 120)
    for number, radius in enumerate(range(rng.randrange(120, 230), 8, -rng.randrange(14, 30))):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), colours[number % 3])


def _hills(draw: _Draw, rng: random.Random, height: int, colours: tuple[str, str, str]) -> None:
    radius = rng.randrange(26, 60)
    x, y = rng.randrange(60, 240), rng.randrange(70, 150)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), colours[0])
    for number in range(4):
        base = height * (4 + number) // 9
        points = [(x, base + rng.randrange(-46, 46)) for x in range(-20, WIDTH + 60, 40)]
        draw.polygon([(-20, height), *points, (WIDTH + 40, height)], colours[(number + 1) % 3])


def _shards(draw: _Draw, rng: random.Random, height: int, colours: tuple[str, str, str]) -> None:
    for _ in range(rng.randrange(10, 24)):
        x, y, side = rng.randrange(WIDTH), rng.randrange(height), rng.randrange(30, 130)
        points = [(x + rng.randrange(-side, side), y + rng.randrange(-side, side)) for _ in range(3)]
        draw.polygon(points, rng.choice(colours))


def _grid(draw: _Draw, rng: random.Random, height: int, colours: tuple[str, str, str]) -> None:
    side = rng.choice((25, 30, 50, 60))
    for top in range(0, height, side):
        for left in range(0, WIDTH, side):
            start = 90 * rng.randrange(4)
            draw.pieslice((left - side, top - side, left + side, top + side), start, start + 90, rng.choice(colours))


_DESIGNS: tuple[Callable[[_Draw, random.Random, int, tuple[str, str, str]], None], ...] = (
    _bands, _suns, _hills, _shards, _grid,
)  # fmt: skip
