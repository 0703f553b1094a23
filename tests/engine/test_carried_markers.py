"""Markers of a dataset that stands lazily, carried from the overlay of one seq to that of the next."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import pytest

from synclib.engine.lazy_place import LazyPlace, Mounter


class Switch:
    """From slot 1 to slot 2. Nothing is mounted: ``here``, where programs write, is what would be on top."""

    def __init__(self, place: Path) -> None:
        self.here = place / "data/covers"
        self.old, self.new = (place / "data/.boxlink/lazy/covers" / slot / "upper" for slot in "12")
        for path in (self.here, self.old, self.new):
            path.mkdir(parents=True)
        self.place = LazyPlace(place / "data", "covers", cast(Mounter, None))

    def write(self, text: str, *directories: Path) -> None:
        for directory in directories:
            (directory / "synch.active").write_text(text)
            os.utime(directory / "synch.active", ns=(0, self.time_ns))

    time_ns = 1_000

    def asked(self) -> str | None:
        path = self.here / "synch.active"
        return path.read_text() if path.exists() else None


@pytest.fixture
def switch(tmp_path: Path) -> Switch:
    return Switch(tmp_path)


def test_what_comes_into_the_old_one_after_it_was_copied_comes_along(switch: Switch) -> None:
    switch.write("lazy", switch.here, switch.old)
    carried = switch.place._carry_markers(switch.new)
    switch.time_ns += 1
    switch.write("lazy seq=1", switch.old)
    switch.place._carry_late(1, switch.new, carried)
    assert switch.asked() == "lazy seq=1"


def test_what_is_taken_away_after_the_switch_stays_away(switch: Switch) -> None:
    switch.write("lazy", switch.here, switch.old)
    carried = switch.place._carry_markers(switch.new)
    for directory in (switch.here, switch.new):
        (directory / "synch.active").unlink()
    switch.place._carry_late(1, switch.new, carried)
    assert switch.asked() is None


def test_what_is_asked_for_after_the_switch_stands_above_what_came_late(switch: Switch) -> None:
    carried = switch.place._carry_markers(switch.new)
    switch.write("lazy", switch.old)
    switch.time_ns += 1
    switch.write("lazy seq=2", switch.here, switch.new)
    switch.place._carry_late(1, switch.new, carried)
    assert switch.asked() == "lazy seq=2"


def test_a_link_is_carried_as_one_and_a_pipe_is_not(switch: Switch) -> None:
    (switch.here / "synch.active").symlink_to("/etc/hostname")
    os.mkfifo(switch.here / "synch.up")
    switch.place._carry_markers(switch.new)
    assert os.readlink(switch.new / "synch.active") == "/etc/hostname"
    assert not (switch.new / "synch.up").exists()
