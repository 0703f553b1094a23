"""Where a cover stands in its cell: upright on the plank, in the middle, its aspect kept."""

from __future__ import annotations

from dataclasses import dataclass

from render.core.layout import CELL_WIDTH

# The size that most catalogs serve: such a cover is shown pixel for pixel.
COVER_WIDTH_MAX = 300
COVER_HEIGHT_MAX = 450
STAND = 464  # the line that covers stand on: the upper edge of the plank
PLANK_STOP = 504
LABEL_TOP, LABEL_WIDTH, LABEL_HEIGHT = 472, 248, 24  # whole pixels at half size too
SHADOW = 8
ENLARGE_MAX = 2  # small pictures are enlarged at most this much: a thumbnail is not blown up to a blur


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of pixels in a cell."""

    left: int
    top: int
    width: int
    height: int

    def shrunk(self, shrink: int) -> Box:
        """The box at 1/2^shrink; never empty."""
        half = (1 << shrink) >> 1
        left, top, right, bottom = (
            edge + half >> shrink for edge in (self.left, self.top, self.left + self.width, self.top + self.height)
        )
        left, top = min(left, right - 1), min(top, bottom - 1)
        return Box(left, top, right - left, bottom - top)


def cover_box(width: int, height: int) -> Box:
    """The box at full resolution of a picture of ``width`` x ``height`` pixels (both at least 1).

    Integers only, so that every machine finds the same box.
    """
    # (numerator, denominator) of the smallest of the three scales.
    scales = ((COVER_WIDTH_MAX, width), (COVER_HEIGHT_MAX, height), (ENLARGE_MAX, 1))
    number, divisor = scales[0]
    for other_number, other_divisor in scales[1:]:
        if other_number * divisor < number * other_divisor:
            number, divisor = other_number, other_divisor
    shown_width = max(1, (width * number + divisor // 2) // divisor)
    shown_height = max(1, (height * number + divisor // 2) // divisor)
    return Box((CELL_WIDTH - shown_width) // 2, STAND - shown_height, shown_width, shown_height)


TEXT_COVER = Box((CELL_WIDTH - 280) // 2, STAND - 448, 280, 448)
LABEL = Box((CELL_WIDTH - LABEL_WIDTH) // 2, LABEL_TOP, LABEL_WIDTH, LABEL_HEIGHT)
