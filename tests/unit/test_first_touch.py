"""How long a volume that is slow at first touch takes, on a clock that stands still but for its waits."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from synclib.clock import ManualClock
from synclib.volume.base import BLOCK_BYTES
from synclib.volume.first_touch import SlowImage

TOUCH_S = 0.035


class Slow:
    """An image of four blocks and a bit, and what each read of it takes."""

    def __init__(self, place: Path) -> None:
        self.data = random.Random(1).randbytes(4 * BLOCK_BYTES + 1000)
        path = place / "image"
        path.write_bytes(self.data)
        self.clock = ManualClock()
        self._image = SlowImage(path, TOUCH_S, self.clock)

    def waits(self, position: int, length: int) -> int:
        """How many first touches a read of these bytes, which must be right, waits for."""
        began = self.clock.monotonic()
        assert self._image.read(position, length) == self.data[position : position + length]
        return round((self.clock.monotonic() - began) / TOUCH_S)


@pytest.fixture
def slow(tmp_path: Path) -> Slow:
    return Slow(tmp_path)


def test_a_block_is_waited_for_once(slow: Slow) -> None:
    assert slow.waits(100, 4096) == 1
    assert slow.clock.monotonic() == TOUCH_S
    assert slow.waits(BLOCK_BYTES - 1, 1) == 0, "the same block, another place of it"
    assert slow.waits(0, BLOCK_BYTES) == 0


def test_a_read_over_three_blocks_waits_for_each(slow: Slow) -> None:
    assert slow.waits(BLOCK_BYTES - 1, BLOCK_BYTES + 2) == 3
    assert slow.waits(0, 4 * BLOCK_BYTES) == 1, "the three are there, the fourth is not"


def test_a_boundary_belongs_to_one_block(slow: Slow) -> None:
    assert slow.waits(BLOCK_BYTES, BLOCK_BYTES) == 1
    assert slow.waits(0, BLOCK_BYTES) == 1
    assert slow.waits(2 * BLOCK_BYTES, 1) == 1


def test_the_last_block_may_be_short(slow: Slow) -> None:
    assert slow.waits(4 * BLOCK_BYTES, 1000) == 1
    assert slow.waits(4 * BLOCK_BYTES + 999, 1) == 0


def test_what_is_attached_anew_is_cold_anew(tmp_path: Path) -> None:
    assert [Slow(tmp_path).waits(0, 1) for _ in range(2)] == [1, 1]
