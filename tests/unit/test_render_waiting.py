"""What a render server says while there is nothing to serve."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from render.walls import HeldWall
from synclib.clock import ManualClock
from tools.render_daemon import LONG_S, Plan, Waiting

WALL = cast(HeldWall, object())


class Said:
    def __init__(self) -> None:
        self.lines: list[dict[str, object]] = []

    def __call__(self, event: str, **fields: object) -> None:
        self.lines.append({"event": event, **fields})


def waiting(place: Path) -> tuple[Waiting, ManualClock, Said]:
    clock, said = ManualClock(), Said()
    plan = Plan(place, "covers", "n1", "127.0.0.1", None, 30.0, ("127.0.0.1", 0))
    return Waiting(plan, clock, said), clock, said


def test_of_a_wall_that_is_here_nothing_is_said(tmp_path: Path) -> None:
    wait, _, said = waiting(tmp_path)
    assert wait.is_over(WALL)
    assert said.lines == []


def test_an_ordinary_wait_is_said_once_and_hints_at_no_fault(tmp_path: Path) -> None:
    wait, clock, said = waiting(tmp_path)
    for _ in range(10):
        assert not wait.is_over(None)
        clock.sleep(LONG_S / 10)
    assert wait.is_over(WALL)
    assert said.lines == [{"event": "waiting", "dataset": "covers", "marker": f"{tmp_path}/covers/synch.down"}]


def test_one_that_lasts_says_where_to_look_once(tmp_path: Path) -> None:
    wait, clock, said = waiting(tmp_path)
    for _ in range(5):
        assert not wait.is_over(None)
        clock.sleep(LONG_S)
    assert len(said.lines) == 2
    assert f"boxlink sync --data {tmp_path}" in str(said.lines[1]["hint"])
