from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
import structlog
from structlog.testing import CapturingLogger

from render.follow import Follower, ask, wake_on_change
from synclib.clock import ManualClock
from synclib.core.markers import MARKER_BYTES_MAX, Down
from synclib.errors import Corrupt, Invalid, Unavailable


def _log() -> tuple[structlog.typing.FilteringBoundLogger, CapturingLogger]:
    lines = CapturingLogger()
    return structlog.wrap_logger(lines, wrapper_class=structlog.make_filtering_bound_logger(0), processors=[]), lines


def _write_down(directory: Path, seq: int) -> None:
    text = json.dumps({"dataset": directory.name, "seq": seq, "digest": f"{seq:064}", "at": "2026-11-24T00:00:00Z"})
    (directory / "down.new").write_text(text)
    os.replace(directory / "down.new", directory / "synch.down")


class Wall:
    """Takes what is down, or fails as it is told."""

    def __init__(self) -> None:
        self.seqs: list[int] = []
        self.failures: list[Exception] = []

    def load(self, down: Down) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.seqs.append(down.seq)


def test_asking_makes_the_marker_once_and_leaves_another_alone(tmp_path: Path) -> None:
    directory = tmp_path / "data" / "covers"
    assert ask(directory)
    assert (directory / "synch.active").read_bytes() == b""
    (directory / "synch.active").write_text("lazy seq=3")
    assert not ask(directory)
    assert (directory / "synch.active").read_text() == "lazy seq=3"


def test_asking_where_nothing_can_be_made_is_invalid(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(Invalid):
        ask(tmp_path / "data" / "covers")


def test_each_new_marker_loads_once(tmp_path: Path) -> None:
    wall, (log, _) = Wall(), _log()
    follower = Follower(tmp_path, wall.load, ManualClock(), log)
    follower.step()
    assert wall.seqs == []
    for seq in (1, 2, 2, 5):
        _write_down(tmp_path, seq)
        follower.step()
        follower.step()
    assert wall.seqs == [1, 2, 2, 5]
    (tmp_path / "synch.down").unlink()
    follower.step()
    _write_down(tmp_path, 6)
    follower.step()
    assert wall.seqs[-1] == 6


def test_a_wall_that_fails_is_tried_again_and_not_at_once(tmp_path: Path) -> None:
    wall, clock, (log, lines) = Wall(), ManualClock(), _log()
    follower = Follower(tmp_path, wall.load, clock, log)
    _write_down(tmp_path, 4)
    wall.failures = [Unavailable("away"), Corrupt("odd")]
    for _ in range(5):
        follower.step()
    assert len(lines.calls) == 1
    for _ in range(8):
        clock.advance(1)
        follower.step()
    assert wall.seqs == [4]
    assert len(lines.calls) == 2


@pytest.mark.parametrize("text", ["", "{", '{"dataset":"covers"}', "x" * 70_000])
def test_a_marker_that_does_not_parse_stops_nothing(tmp_path: Path, text: str) -> None:
    wall, clock, (log, lines) = Wall(), ManualClock(), _log()
    follower = Follower(tmp_path, wall.load, clock, log)
    (tmp_path / "synch.down").write_text(text)
    follower.step()
    assert lines.calls[0].kwargs["kind"] == ("invalid" if len(text) > MARKER_BYTES_MAX else "corrupt")
    clock.advance(60)
    _write_down(tmp_path, 1)
    follower.step()
    assert wall.seqs == [1]


def test_a_bug_is_no_error_of_the_world(tmp_path: Path) -> None:
    wall, (log, _) = Wall(), _log()
    wall.failures = [ZeroDivisionError()]
    _write_down(tmp_path, 1)
    with pytest.raises(ZeroDivisionError):
        Follower(tmp_path, wall.load, ManualClock(), log).step()


def test_why_nothing_comes_is_said_once(tmp_path: Path) -> None:
    wall, (log, lines) = Wall(), _log()
    follower = Follower(tmp_path, wall.load, ManualClock(), log)
    (tmp_path / "synch.error").write_text('{"kind": "full"}')
    follower.step()
    follower.step()
    assert [call.kwargs["text"] for call in lines.calls] == ['{"kind": "full"}']


def test_a_changed_marker_wakes(tmp_path: Path) -> None:
    wake, (log, _) = threading.Event(), _log()
    with wake_on_change(tmp_path, wake, log):
        _write_down(tmp_path, 1)
        assert wake.wait(10)


@pytest.mark.parametrize("kind", ["large", "symlink", "fifo"])
def test_markers_that_are_no_plain_files_are_not_read(tmp_path: Path, kind: str) -> None:
    """Not even waited for; a server that runs goes on."""
    wall, clock, (log, lines) = Wall(), ManualClock(), _log()
    follower = Follower(tmp_path, wall.load, clock, log)
    (tmp_path / "secret").write_text("secret")
    for marker in (tmp_path / "synch.error", tmp_path / "synch.down"):
        if kind == "large":
            marker.write_bytes(b"secret" * 20_000)
        elif kind == "fifo":
            os.mkfifo(marker)
        else:
            marker.symlink_to("secret")
    follower.step()
    assert len(lines.calls) == 2
    assert "secret" not in repr(lines.calls)
    _write_down(tmp_path, 7)
    clock.advance(60)
    follower.step()
    assert wall.seqs == [7]
