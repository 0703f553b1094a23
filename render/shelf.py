"""The wood: a cell's background, drawn once from integers alone, so that every machine draws the same.

The grain repeats after one cell's width and meets itself there, so shelves run on without seams.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from render.core.cell import LABEL, PLANK_STOP, SHADOW, STAND, Box
from render.core.layout import CELL_HEIGHT, CELL_WIDTH, DIRECT_SHRINK_MAX

Pixels = npt.NDArray[np.uint8]  # [height, width, 3], RGB

OUTSIDE = (27, 20, 15)  # around the wall; the page's background is the same
LABEL_PAPER = (216, 200, 168)
LABEL_INK = (62, 44, 29)
_PANEL = (83, 56, 36)
_PLANK = (146, 101, 62)


class Shelf:
    """Backgrounds of a cell by shrink 0, 1, 2: with a label's paper on the plank, and empty."""

    def __init__(self) -> None:
        empty = _cell()
        labelled = empty.copy()
        _draw_label(labelled)
        self.empty = tuple(reduce_pixels(empty, shrink) for shrink in range(DIRECT_SHRINK_MAX + 1))
        self.labelled = tuple(reduce_pixels(labelled, shrink) for shrink in range(DIRECT_SHRINK_MAX + 1))


def reduce_pixels(pixels: Pixels, shrink: int) -> Pixels:
    """Each 2^shrink x 2^shrink block's mean; the sides are multiples of that."""
    if shrink == 0:
        return pixels
    side = 1 << shrink
    height, width, _ = pixels.shape
    blocks = pixels.reshape(height // side, side, width // side, side, 3).astype(np.uint32)
    mean: Pixels = ((blocks.sum(axis=(1, 3)) + side * side // 2) >> 2 * shrink).astype(np.uint8)
    return mean


def draw_shadow(pixels: Pixels, box: Box, shrink: int) -> None:
    """Darken what a cover at ``box`` (in these pixels) keeps the light from: right of it, and the plank below it."""
    depth = max(1, SHADOW >> shrink)
    right, bottom = box.left + box.width, box.top + box.height
    for step in range(depth):
        # Each strip is one pixel narrower and begins one higher: a soft edge, of integers.
        strip = pixels[box.top + depth - step : bottom, right : right + depth - step]
        strip[:] = strip.astype(np.uint16) * (16 * depth - 4) // (16 * depth)
    foot = pixels[bottom : bottom + depth, box.left : right + depth]
    foot[:] = foot.astype(np.uint16) * 11 // 16


def _cell() -> Pixels:
    grain = _grain(CELL_HEIGHT, CELL_WIDTH, 1)
    cell = np.empty((CELL_HEIGHT, CELL_WIDTH, 3), np.int32)
    rows = np.arange(CELL_HEIGHT, dtype=np.int32)[:, None]
    for channel in range(3):
        # Back panel: darkest right under the plank above, lighter towards the covers' feet.
        shade = 128 + rows * 112 // STAND
        cell[..., channel] = _PANEL[channel] * shade // 256 + grain * _PANEL[channel] // 640
    plank = cell[STAND:PLANK_STOP]
    plank_rows = rows[: PLANK_STOP - STAND]
    plank_grain = _grain(PLANK_STOP - STAND, CELL_WIDTH, 2)
    for channel in range(3):
        shade = 272 - plank_rows * 96 // (PLANK_STOP - STAND)
        plank[..., channel] = _PLANK[channel] * shade // 256 + plank_grain * _PLANK[channel] // 480
    plank[:3] = plank[:3] * 5 // 4  # the edge that catches the light
    plank[-2:] = plank[-2:] // 2
    below = cell[PLANK_STOP:]  # the plank's own shadow, that goes on at the next shelf's top
    below[:] = below * 2 // 5
    fade = 102 + np.minimum(rows[:40], 39) * 154 // 40
    cell[:40] = cell[:40] * fade[..., None] // 256
    return np.clip(cell, 0, 255).astype(np.uint8)


def _draw_label(cell: Pixels) -> None:
    paper = cell[LABEL.top : LABEL.top + LABEL.height, LABEL.left : LABEL.left + LABEL.width]
    paper[:] = LABEL_PAPER
    paper[-2:] = (178, 160, 126)
    below = cell[LABEL.top + LABEL.height : LABEL.top + LABEL.height + 2, LABEL.left + 1 : LABEL.left + LABEL.width + 1]
    below[:] = below.astype(np.uint16) * 5 // 8


def _grain(height: int, width: int, seed: int) -> npt.NDArray[np.int32]:
    """Long horizontal fibres, about -32 to 32, that repeat after ``width``."""
    ys, xs = np.mgrid[0:height, 0:width].astype(np.uint32)
    noise = _hash(xs + ys * np.uint32(width) + np.uint32(seed * 7919)).astype(np.int32) & 255
    streak = _hash(ys + np.uint32(seed * 104729)).astype(np.int32) & 255
    # A moving mean along the fibre, around the edge: 64 pixels of it leave slow changes only.
    summed = sum(np.roll(noise, shift, axis=1) for shift in range(64))
    fibres = (np.asarray(summed, np.int32) // 64 - 128) * 3
    fine = (noise - 128) // 16
    grain: npt.NDArray[np.int32] = fibres + fine + (streak - 128) // 8
    return grain


def _hash(values: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """A 32-bit mixer (xor, shift, multiply); wraps as unsigned integers do."""
    values = (values ^ (values >> np.uint32(16))) * np.uint32(0x7FEB352D)
    values = (values ^ (values >> np.uint32(15))) * np.uint32(0x846CA68B)
    return values ^ (values >> np.uint32(16))
