from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from render.core.captions import LINE_BYTES_MAX, parse_line, split_lines
from render.core.layout import CELL_HEIGHT, CELL_WIDTH, DIRECT_SHRINK_MAX, TILE_PIXELS, Layout, layout_of

counts = st.integers(0, 3000) | st.integers(0, 16 << 20)


@st.composite
def tiles(draw: st.DrawFn, shrink_max: int | None = None) -> tuple[Layout, int, int, int]:
    layout = layout_of(draw(counts))
    lowest = 0 if shrink_max is None else max(0, layout.zoom_max - shrink_max)
    zoom = draw(st.integers(lowest, layout.zoom_max))
    columns, rows = layout.extent(zoom)
    return layout, zoom, draw(st.integers(0, columns - 1)), draw(st.integers(0, rows - 1))


@given(counts)
def test_every_cover_has_one_place_inside(count: int) -> None:
    layout = layout_of(count)
    assert layout.columns * layout.rows >= count > layout.columns * (layout.rows - 1) or count == 0
    assert layout.extent(0) == (1, 1)
    assert layout.extent(layout.zoom_max) == (-(-layout.width // TILE_PIXELS), -(-layout.height // TILE_PIXELS))


@given(tiles(shrink_max=DIRECT_SHRINK_MAX))
def test_the_cells_of_a_tile_cover_it_exactly(tile: tuple[Layout, int, int, int]) -> None:
    layout, zoom, x, y = tile
    shrink = layout.shrink(zoom)
    width, height = CELL_WIDTH >> shrink, CELL_HEIGHT >> shrink
    area = 0
    for cell in layout.cells(zoom, x, y):
        left, top = max(0, cell.left), max(0, cell.top)
        right, bottom = min(TILE_PIXELS, cell.left + width), min(TILE_PIXELS, cell.top + height)
        assert left < right
        assert top < bottom
        area += (right - left) * (bottom - top)
        column, row = (x * TILE_PIXELS + cell.left) // width, (y * TILE_PIXELS + cell.top) // height
        index = row * layout.columns + column
        assert cell.index == (index if index < layout.cover_count else None)
    inside_width = min(TILE_PIXELS, (layout.width >> shrink) - x * TILE_PIXELS)
    inside_height = min(TILE_PIXELS, (layout.height >> shrink) - y * TILE_PIXELS)
    assert area == inside_width * inside_height


@given(tiles())
def test_children_are_the_tiles_whose_parent_this_is(tile: tuple[Layout, int, int, int]) -> None:
    layout, zoom, x, y = tile
    assert layout.has_tile(zoom, x, y)
    children = layout.children(zoom, x, y)
    if zoom == layout.zoom_max:
        assert children == [None] * 4
        return
    assert children[0] is not None
    for number, child in enumerate(children):
        place = (zoom + 1, 2 * x + number % 2, 2 * y + number // 2)
        assert child == (place if layout.has_tile(*place) else None)


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_lines_do_not_depend_on_how_the_bytes_come(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    expected = whole.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert list(split_lines(pieces)) == expected


@given(st.binary(max_size=200))
def test_any_line_parses_or_is_none(text: bytes) -> None:
    line = parse_line(text)
    assert line is None or len(line.name) > 0
    assert len(text) < LINE_BYTES_MAX
