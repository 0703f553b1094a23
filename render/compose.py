"""Tiles from covers, and tiles from tiles. The same wall gives the same bytes in every process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import simplejpeg

from render.byte_cache import ByteCache
from render.core.cell import LABEL, TEXT_COVER
from render.core.layout import TILE_PIXELS, PlacedCell
from render.decode import COVER_BYTES_MAX, Decoder, NotAPicture
from render.lettering import Lettering
from render.metrics import Metrics
from render.shelf import OUTSIDE, Pixels, Shelf, draw_shadow, reduce_pixels
from render.walls import HeldWall
from synclib.errors import Corrupt

QUALITY = 80
_CELLS_BYTES_MAX = 96 << 20
# Labels are drawn with text while that can be read, with bare paper below.
_LETTERS_SHRINK_MAX = 1


class Composer:
    """Draws tiles; safe between threads. Keeps cells drawn lately: a cover reaches into four tiles or more."""

    def __init__(self, metrics: Metrics, cells_bytes_max: int = _CELLS_BYTES_MAX) -> None:
        self._metrics = metrics
        self._shelf = Shelf()
        self._lettering = Lettering()
        self._decoder = Decoder()
        self._cells: ByteCache[tuple[str, int, int], Pixels] = ByteCache(cells_bytes_max, lambda cell: cell.nbytes)

    def from_covers(self, wall: HeldWall, zoom: int, x: int, y: int) -> bytes:
        """A tile with shrink <= DIRECT_SHRINK_MAX, as JPEG.

        Unavailable, Corrupt or Missing where a cover cannot be read: a tile is whole or not at all.
        """
        shrink = wall.layout.shrink(zoom)
        tile = np.empty((TILE_PIXELS, TILE_PIXELS, 3), np.uint8)
        tile[:] = OUTSIDE
        for place in wall.layout.cells(zoom, x, y):
            cell = self._shelf.empty[shrink] if place.index is None else self._cell(wall, place.index, shrink)
            _paste(tile, cell, place)
        return _encode(tile)

    def from_children(self, children: Sequence[bytes | None]) -> bytes:
        """A tile from the four tiles below it, row by row; None where the wall has ended."""
        tile = np.empty((TILE_PIXELS, TILE_PIXELS, 3), np.uint8)
        tile[:] = OUTSIDE
        half = TILE_PIXELS // 2
        for number, child in enumerate(children):
            if child is not None:
                down, right = divmod(number, 2)
                # The decoder halves as it decodes: a child costs a quarter of a tile.
                tile[down * half :, right * half :][:half, :half] = simplejpeg.decode_jpeg(
                    child, "RGB", min_height=half, min_width=half
                )
        return _encode(tile)

    def _cell(self, wall: HeldWall, index: int, shrink: int) -> Pixels:
        key = (wall.id, index, shrink)
        cell = self._cells.get(key)
        if cell is None:
            cell = self._draw_cell(wall, index, shrink)
            self._cells.put(key, cell)
        return cell

    def _draw_cell(self, wall: HeldWall, index: int, shrink: int) -> Pixels:
        cell = self._background(wall, index, shrink)
        try:
            cover, box = self._decoder.decode(_read_cover(wall, index), shrink)
        except NotAPicture as finding:
            caption = wall.caption(index)
            self._metrics.text_cover(finding.reason)
            box = TEXT_COVER.shrunk(shrink)
            cover = reduce_pixels(
                self._lettering.text_cover(wall.covers.path(index), wall.stem(index), caption), shrink
            )
        draw_shadow(cell, box, shrink)
        cell[box.top : box.top + box.height, box.left : box.left + box.width] = cover
        return cell

    def _background(self, wall: HeldWall, index: int, shrink: int) -> Pixels:
        background = self._shelf.labelled[shrink].copy()
        if shrink <= _LETTERS_SHRINK_MAX:
            paper = reduce_pixels(self._lettering.label(wall.caption(index).title, wall.stem(index)), shrink)
            height, width, _ = paper.shape
            box = LABEL.shrunk(shrink)
            background[box.top : box.top + height, box.left : box.left + width] = paper
        return background


def _read_cover(wall: HeldWall, index: int) -> bytes:
    """All bytes of a cover, verified by the reader."""
    path = wall.covers.path(index)
    file = wall.reader.open(path)
    try:
        size = file.entry.size
        if size > COVER_BYTES_MAX:
            raise NotAPicture("too_many_bytes")
        data = file.pread(0, size)
    finally:
        file.close()
    if len(data) != size:
        raise Corrupt(f"{len(data)} bytes were read of {size}", path=repr(path))
    return data


def _paste(tile: Pixels, cell: Pixels, place: PlacedCell) -> None:
    """Copy the part of a cell that lies on the tile."""
    height, width, _ = cell.shape
    top, left = max(0, place.top), max(0, place.left)
    bottom, right = min(TILE_PIXELS, place.top + height), min(TILE_PIXELS, place.left + width)
    tile[top:bottom, left:right] = cell[top - place.top : bottom - place.top, left - place.left : right - place.left]


def _encode(tile: Pixels) -> bytes:
    # The accurate DCT: the fast one saves a quarter of 0.2 ms and differs between processors.
    data: bytes = simplejpeg.encode_jpeg(tile, quality=QUALITY, colorspace="RGB", colorsubsampling="420", fastdct=False)
    return data
