"""Where covers stand on the wall: fixed cells in path order, shelf by shelf, cut into tiles by zoom level.

The wall at full resolution is ``columns`` x ``rows`` cells of 320 x 512 pixels. A shelf is two tiles high, and four
cells are five tiles wide, so tile edges and cell edges meet again and again. Zoom ``zoom_max`` is full resolution,
each zoom below it half of that, zoom 0 the whole wall in one tile. ``shrink`` is ``zoom_max - zoom``: the power of
two by which a zoom is smaller than full resolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

TILE_PIXELS = 256
CELL_WIDTH = 320
CELL_HEIGHT = 512
# Tiles shrunk at most this much are drawn from covers (at most 5 x 2 cells), all others from their four children.
DIRECT_SHRINK_MAX = 2
_COLUMNS_ALIGN = 4


@dataclass(frozen=True, slots=True)
class PlacedCell:
    """A cell that a tile shows: the cover's index (None: an empty place), and its corner in the tile's pixels."""

    index: int | None
    left: int
    top: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The grid of a wall of ``cover_count`` covers."""

    cover_count: int
    columns: int
    rows: int
    zoom_max: int

    @property
    def width(self) -> int:
        return self.columns * CELL_WIDTH

    @property
    def height(self) -> int:
        return self.rows * CELL_HEIGHT

    def shrink(self, zoom: int) -> int:
        return self.zoom_max - zoom

    def extent(self, zoom: int) -> tuple[int, int]:
        """(columns, rows) of tiles at a zoom."""
        span = TILE_PIXELS << self.shrink(zoom)
        return -(-self.width // span), -(-self.height // span)

    def has_tile(self, zoom: int, x: int, y: int) -> bool:
        if not 0 <= zoom <= self.zoom_max:
            return False
        columns, rows = self.extent(zoom)
        return 0 <= x < columns and 0 <= y < rows

    def children(self, zoom: int, x: int, y: int) -> list[tuple[int, int, int] | None]:
        """The four tiles (zoom, x, y) that a tile is made of, row by row; None where the wall has ended."""
        places = [(zoom + 1, 2 * x + right, 2 * y + down) for down in (0, 1) for right in (0, 1)]
        return [place if self.has_tile(*place) else None for place in places]

    def cells(self, zoom: int, x: int, y: int) -> Iterator[PlacedCell]:
        """The cells that a tile overlaps, row by row; for zooms with ``shrink`` <= DIRECT_SHRINK_MAX."""
        shrink = self.shrink(zoom)
        width, height = CELL_WIDTH >> shrink, CELL_HEIGHT >> shrink
        left, top = x * TILE_PIXELS, y * TILE_PIXELS
        for row in range(top // height, min(self.rows, -(-(top + TILE_PIXELS) // height))):
            for column in range(left // width, min(self.columns, -(-(left + TILE_PIXELS) // width))):
                index = row * self.columns + column
                shown = index if index < self.cover_count else None
                yield PlacedCell(shown, column * width - left, row * height - top)


def layout_of(cover_count: int) -> Layout:
    """The layout of a wall: as square as whole columns allow; one empty shelf where there is no cover."""
    square = math.isqrt(max(0, cover_count * CELL_HEIGHT // CELL_WIDTH - 1)) + 1
    columns = max(1, min(cover_count, -(-square // _COLUMNS_ALIGN) * _COLUMNS_ALIGN))
    rows = max(1, -(-cover_count // columns))
    zoom_max = 0
    while TILE_PIXELS << zoom_max < max(columns * CELL_WIDTH, rows * CELL_HEIGHT):
        zoom_max += 1
    return Layout(cover_count, columns, rows, zoom_max)
