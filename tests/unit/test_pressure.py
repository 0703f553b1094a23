"""What the kernel tells of how much waits for disks."""

from __future__ import annotations

import pytest

from synclib.disk.pressure import io_pressure, parse_full

TOLD = """some avg10=71.20 avg60=2.95 avg300=13.62 total=2004561105
full avg10=50.05 avg60=0.13 avg300=3.99 total=866346739
"""


def test_the_full_line_of_the_last_ten_seconds() -> None:
    assert parse_full(TOLD) == pytest.approx(0.5005)


@pytest.mark.parametrize("text", ["", "some avg10=1.00", "full avg60=1.00", "full avg10=much", "full x"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_full(text)


def test_here() -> None:
    assert 0.0 <= io_pressure() <= 1.0
