from __future__ import annotations

import io
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from render.compose import Composer
from render.core.wall import RENDERER_VERSION
from render.decode import Decoder, NotAPicture
from render.metrics import Metrics
from render.tiles import Tiles
from render.walls import HeldWall, load_wall
from synclib.errors import BoxlinkError, Corrupt, Missing, Unavailable
from tests.memory_reader import MemoryReader
from tests.pictures import encoded, no_pictures, odd_pictures, picture, small_wall

GOLDEN = Path(__file__).parent.parent / "golden" / f"wall-v{RENDERER_VERSION}.jpg"
Pixels = npt.NDArray[np.uint8]


def _wall(files: dict[bytes, bytes]) -> tuple[HeldWall, MemoryReader]:
    reader = MemoryReader(files)
    return load_wall(lambda seq: reader, 1, reader.digest), reader


def _pixels(jpeg: bytes) -> Pixels:
    image = Image.open(io.BytesIO(jpeg))
    assert (image.format, image.size, image.mode) == ("JPEG", (256, 256), "RGB")
    return np.asarray(image)


def _level(wall: HeldWall, zoom: int) -> Pixels:
    """All tiles of a zoom, put together."""
    metrics = Metrics()
    tiles = Tiles(Composer(metrics), metrics, 2)
    columns, rows = wall.layout.extent(zoom)
    drawn = [[_pixels(tiles.request(wall, zoom, x, y).result(30).data) for x in range(columns)] for y in range(rows)]
    tiles.close()
    return np.concatenate([np.concatenate(row, axis=1) for row in drawn], axis=0)


def _psnr(first: npt.NDArray[np.generic], second: npt.NDArray[np.generic]) -> float:
    difference = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return float("inf") if difference == 0 else float(10 * np.log10(255**2 / difference))


def _reference(files: dict[bytes, bytes], columns: int, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """The covers where they must stand, placed by plain arithmetic, and a mask of them: no code of the renderer."""
    wall, mask = Image.new("RGB", size), Image.new("L", size)
    covers = sorted(path for path in files if path.endswith(b".jpg"))
    for number, path in enumerate(covers):
        cover = Image.open(io.BytesIO(files[path]))
        scale = min(300 / cover.width, 450 / cover.height, 2)
        width, height = round(cover.width * scale), round(cover.height * scale)
        left = number % columns * 320 + (320 - width) // 2
        top = number // columns * 512 + 464 - height
        wall.paste(cover.resize((width, height), Image.Resampling.LANCZOS), (left, top))
        mask.paste(255, (left, top, left + width, top + height))
    return wall, mask


def test_pixels_are_those_of_an_independent_composition() -> None:
    files = small_wall()
    wall, _ = _wall(files)
    layout = wall.layout
    full, full_mask = _reference(files, layout.columns, (layout.width, layout.height))
    for zoom in range(layout.zoom_max + 1):
        factor = 2 ** layout.shrink(zoom)
        drawn = _level(wall, zoom)
        expected = np.asarray(full.reduce(factor))
        # Pixels wholly inside a cover: an edge may fall on either side.
        inside = np.asarray(full_mask.reduce(factor)) == 255
        drawn = drawn[: expected.shape[0], : expected.shape[1]]
        quality = _psnr(drawn[inside], expected[inside])
        assert quality > {1: 38, 2: 35, 4: 32, 8: 29, 16: 25}[factor], (zoom, quality)
        assert inside.sum() > 0


def test_a_parent_shows_what_its_children_show() -> None:
    wall, _ = _wall(small_wall())
    levels = [_level(wall, zoom) for zoom in range(wall.layout.zoom_max + 1)]
    for above, below in itertools.pairwise(levels):
        half = np.asarray(Image.fromarray(below).reduce(2))
        height, width = min(half.shape[0], above.shape[0]), min(half.shape[1], above.shape[1])
        assert _psnr(half[:height, :width], above[:height, :width]) > 27


def test_a_golden_tile_stays_as_it_is() -> None:
    """A picture that changes needs a new RENDERER_VERSION: tiles are kept for a year under the wall's name."""
    wall, _ = _wall({**small_wall(5), b"shelf/005.jpg": b"no picture"})
    tile = _pixels(Composer(Metrics()).from_covers(wall, wall.layout.zoom_max - 2, 0, 0))
    assert _psnr(tile, np.asarray(Image.open(GOLDEN))) > 40


_DIGEST_OF_TILES = """
from blake3 import blake3
from render.compose import Composer
from render.metrics import Metrics
from render.tiles import Tiles
from render.walls import load_wall
from tests.memory_reader import MemoryReader
from tests.pictures import no_pictures, odd_pictures, small_wall
odd = {name: data for name, data in odd_pictures().items() if "huge" not in name}
files = small_wall(9) | {b"odd/%s.jpg" % name.encode(): data for name, data in odd.items()}
files |= {b"bad/%s.jpg" % name.encode(): data for name, (data, _) in no_pictures().items()}
reader = MemoryReader(files)
wall = load_wall(lambda seq: reader, 1, reader.digest)
metrics = Metrics()
tiles = Tiles(Composer(metrics), metrics, 3)
sums = blake3(wall.id.encode())
for zoom in range(wall.layout.zoom_max + 1):
    columns, rows = wall.layout.extent(zoom)
    for y in range(rows):
        for x in range(columns):
            sums.update(tiles.request(wall, zoom, x, y).result(30).data)
print(sums.hexdigest())
"""


def test_two_processes_draw_the_same_bytes() -> None:
    root = Path(__file__).parent.parent.parent
    runs = [
        subprocess.run(
            [sys.executable, "-c", _DIGEST_OF_TILES],
            cwd=root, env={"PYTHONHASHSEED": seed, "PATH": ""}, capture_output=True, text=True, timeout=60, check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert len(runs[0]) == 65
    assert runs[0] == runs[1]


@pytest.mark.parametrize(("name", "case"), no_pictures().items(), ids=no_pictures())
def test_what_is_no_picture_becomes_a_text_cover(name: str, case: tuple[bytes, str]) -> None:
    data, reason = case
    wall, _ = _wall({b"cover.jpg": data})
    metrics = Metrics()
    composer = Composer(metrics)
    for shrink in (0, 1):
        tile = _pixels(composer.from_covers(wall, wall.layout.zoom_max - shrink, 0, 0))
        assert metrics.value("boxlink_render_text_covers_total", reason=reason) == shrink + 1
        # Cloth with letters on it: neither one colour nor the bare shelf.
        assert tile[100:200, 60:120].std() > 0
    assert wall.caption(0).title == "cover"


def test_a_file_beyond_the_limit_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("render.compose.COVER_BYTES_MAX", 1000)
    wall, reader = _wall({b"cover.jpg": encoded(picture(1))})
    metrics = Metrics()
    Composer(metrics).from_covers(wall, wall.layout.zoom_max, 0, 0)
    assert metrics.value("boxlink_render_text_covers_total", reason="too_many_bytes") == 1
    assert reader.read_paths == []


@pytest.mark.parametrize(("name", "data"), odd_pictures().items(), ids=odd_pictures())
def test_odd_pictures_are_shown(name: str, data: bytes) -> None:
    for shrink in (0, 1, 2):
        pixels, box = Decoder().decode(data, shrink)
        assert pixels.shape == (box.height, box.width, 3)
        assert abs(box.width * 3 - box.height * 2) <= 4 * box.height // box.width
        dark = pixels[: box.height // 2 - 4, : box.width // 2 - 4]
        light = pixels[box.height // 2 + 4 :, box.width // 2 + 4 :]
        assert dark.mean() < 60, (name, shrink)
        assert light.mean() > 190, (name, shrink)


def test_every_cut_of_a_picture_is_a_picture_or_a_finding() -> None:
    for data in (encoded(picture(1, 40, 60)), encoded(picture(1, 40, 60), "PNG"), encoded(picture(1, 40, 60), "WEBP")):
        for stop in range(0, len(data), 37):
            flipped = bytearray(data)
            flipped[stop] ^= 0xFF
            for hostile in (data[:stop], bytes(flipped)):
                try:
                    pixels, box = Decoder().decode(hostile, 1)
                except NotAPicture:
                    continue
                assert pixels.shape == (box.height, box.width, 3)


@pytest.mark.parametrize("error", [Unavailable("x"), Corrupt("x"), Missing("x")])
def test_a_cover_that_cannot_be_read_is_never_a_picture(error: BoxlinkError) -> None:
    wall, reader = _wall({b"cover.jpg": encoded(picture(1))})
    reader.failures[b"cover.jpg"] = error
    metrics = Metrics()
    composer = Composer(metrics)
    with pytest.raises(type(error)):
        composer.from_covers(wall, wall.layout.zoom_max, 0, 0)
    reader.failures.clear()
    assert _pixels(composer.from_covers(wall, wall.layout.zoom_max, 0, 0)).std() > 0
    assert "text_covers_total{" not in metrics.text().decode()
