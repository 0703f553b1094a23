"""Log shipping: whatever happens to files, answers and processes, the segments of a stream put together are what was
written to it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from synclib.clock import ManualClock
from synclib.core import logstream
from synclib.core.logstream import SEGMENT_AGE_S, SEGMENT_BYTES_MAX
from synclib.engine import logship
from synclib.engine.log_reader import LogReader
from synclib.engine.logship import LogShipper, read_segment
from synclib.errors import Ambiguous, Unavailable
from synclib.store.base import Body, Fetched
from synclib.store.memory import MemoryStore
from tests.engine.test_node import Silent


class Wire(MemoryStore):
    """Loses answers of writes: ``before`` nothing was applied, ``after`` it was."""

    def __init__(self) -> None:
        super().__init__()
        self.trouble: list[str] = []
        self.gets: list[str] = []

    def get(self, key: str, *, size_max: int, if_none_match: str | None = None) -> Fetched | None:
        self.gets.append(key)
        return super().get(key, size_max=size_max, if_none_match=if_none_match)

    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        trouble = self.trouble.pop(0) if self.trouble else ""
        if trouble == "down":
            raise Unavailable("the store is away")
        if trouble == "before":
            raise Ambiguous("no answer")
        etag = super().put(key, body, if_absent=if_absent, if_match=if_match)
        if trouble == "after":
            raise Ambiguous("no answer")
        return etag


class Node:
    """A log directory, as a daemon and log rotation leave it, and its shipper."""

    def __init__(self, place: Path, name: str = "r.log") -> None:
        self.place = place
        self.logs = place / "log"
        self.logs.mkdir()
        self.state = place / "state/log.json"
        self.store = Wire()
        self.clock = ManualClock()
        self.log = Silent()
        self.name = name
        self.numbers = itertools.count(1)
        self.written: dict[str, bytes] = {}
        self.start()

    def start(self) -> None:
        """As after a kill: only what the state file says is known."""
        self.shipper = LogShipper(self.logs, self.state, "n1", self.store, self.clock, self.log)

    def line(self, size: int = 0) -> bytes:
        number = next(self.numbers)
        return b"%06d %s\n" % (number, b"x" * size)

    def append(self, count: int = 1, size: int = 0, name: str = "") -> None:
        name = name or self.name
        data = b"".join(self.line(size) for _ in range(count))
        with open(self.logs / name, "ab") as file:
            file.write(data)
        self.written[name] = self.written.get(name, b"") + data

    def rotate(self, kept: int = 4) -> None:
        """As our daemons do: .3 goes, .2 becomes .3 and so on; a new file begins."""
        for number in range(kept - 1, 0, -1):
            older = self.logs / (f"{self.name}.{number - 1}" if number > 1 else self.name)
            if older.exists():
                older.rename(self.logs / f"{self.name}.{number}")
        (self.logs / self.name).touch()

    def copy_and_truncate(self, kept: int = 4) -> None:
        """As logrotate does with copytruncate."""
        for number in range(kept - 1, 1, -1):
            older = self.logs / f"{self.name}.{number - 1}"
            if older.exists():
                older.rename(self.logs / f"{self.name}.{number}")
        if (self.logs / self.name).exists():
            shutil.copy(self.logs / self.name, self.logs / f"{self.name}.1")
            os.truncate(self.logs / self.name, 0)

    def ship(self, *, is_last: bool = True) -> int:
        return self.shipper.round(is_last=is_last)

    def settle(self) -> None:
        """Rounds until nothing is left to send."""
        self.store.trouble = []
        for _ in range(10):
            self.ship()

    def shipped(self, name: str = "") -> bytes:
        """The segments of a stream put together; their keys must be their places."""
        name = name or self.name
        found = b""
        for key, _, file, data in LogReader(self.store, "n1", name).read():
            assert file == name
            assert key == f"log/n1/{name}/{len(found):020}"
            found += data
        return found


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_growth_goes_up_by_size_by_age_and_at_the_end(node: Node) -> None:
    node.append()
    assert node.ship(is_last=False) == 1, "the first bytes of a stream go at once"
    node.append()
    assert node.ship(is_last=False) == 0
    node.clock.advance(SEGMENT_AGE_S - 1)
    assert node.ship(is_last=False) == 0
    node.clock.advance(1)
    assert node.ship(is_last=False) == 1
    node.append(1, SEGMENT_BYTES_MAX)
    assert node.ship(is_last=False) == 1
    assert node.ship() == 1
    assert node.ship() == 0
    assert node.shipped() == node.written["r.log"]


@pytest.mark.parametrize("rotations", [1, 2, 3])
def test_rotations_between_two_rounds(node: Node, rotations: int) -> None:
    node.append(3)
    node.ship()
    for _ in range(rotations):
        node.append(2)
        node.rotate()
    node.append(2)
    node.ship()
    node.append(2)
    node.ship()
    assert node.shipped() == node.written["r.log"]


def test_the_oldest_is_deleted(node: Node) -> None:
    for _ in range(10):
        node.append(5)
        node.ship()
        node.rotate(kept=2)
    node.append()
    node.ship()
    assert node.shipped() == node.written["r.log"]


def test_everything_is_deleted_and_begins_anew(node: Node) -> None:
    """With the same bytes: they were written twice, so they are there twice."""
    for _ in range(3):
        (node.logs / "r.log").write_bytes(b"started\n")
        node.ship()
        os.unlink(node.logs / "r.log")
        node.ship()
    assert node.shipped() == b"started\n" * 3


def test_a_new_file_under_an_old_inode_number(node: Node) -> None:
    """As file systems do that give the number of a deleted file to the next one."""
    node.append(3)
    node.ship()
    with open(node.logs / "r.log", "r+b") as file:
        file.truncate(0)
        file.write(b"something else, and longer than what was there before\n" * 3)
    node.written["r.log"] += b"something else, and longer than what was there before\n" * 3
    node.ship()
    assert node.shipped() == node.written["r.log"]


def test_an_inode_number_that_comes_again_in_a_rotation(node: Node) -> None:
    """The oldest is deleted and the new file gets its inode; both begin alike and the new one is longer."""
    (node.logs / "r.log").write_bytes(b"# header\nfirst\n")
    node.ship()
    data = b"# header\nsecond, which is longer\n"
    inode = os.stat(node.logs / "r.log").st_ino
    with open(node.logs / "r.log", "r+b") as file:
        file.truncate(0)
        file.write(data)
    assert os.stat(node.logs / "r.log").st_ino == inode
    node.ship()
    assert node.shipped() == b"# header\nfirst\n" + data


def test_copy_and_truncate(node: Node) -> None:
    for _ in range(6):
        node.append(3)
        node.ship()
        node.append(2)
        node.copy_and_truncate(kept=3)
        node.ship()
        node.append(1)
    node.settle()
    assert node.shipped() == node.written["r.log"]


def test_a_round_between_copy_and_truncate(node: Node) -> None:
    node.append(5)
    node.ship()
    node.append(5)
    shutil.copy(node.logs / "r.log", node.logs / "r.log.1")
    node.ship()
    os.truncate(node.logs / "r.log", 0)
    node.append(5)
    node.settle()
    assert node.shipped() == node.written["r.log"]


def test_a_copy_that_stays_is_a_file_of_its_own(node: Node) -> None:
    """Nobody truncates: then somebody wrote these bytes twice, and they go up twice rather than never."""
    node.append(5)
    node.ship()
    shutil.copy(node.logs / "r.log", node.logs / "r.log.1")
    node.settle()
    assert node.shipped() == node.written["r.log"] * 2


def test_late_lines_in_a_rotated_file_are_sent_once(node: Node) -> None:
    """A writer that keeps its descriptor: they come after what was sent already."""
    node.append(2)
    node.ship()
    with open(node.logs / "r.log", "ab", buffering=0) as late:
        node.rotate()
        node.append(2)
        node.ship()
        late.write(b"late\n")
    node.ship()
    node.append(1)
    node.ship()
    assert sorted(node.shipped().splitlines()) == sorted([*node.written["r.log"].splitlines(), b"late"])


def test_a_rotation_while_the_directory_is_read(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are listed, then files looked at: what was renamed in between is neither lost nor sent twice."""
    node.append(3)
    node.ship()
    node.append(3)
    node.rotate()
    node.append(3)
    real, countdown = os.lstat, [2]

    def lstat(path: object, **options: object) -> os.stat_result:
        countdown[0] -= 1
        if not countdown[0]:
            node.rotate()
            node.append(3)
        return real(path, **options)  # type: ignore[call-overload, no-any-return]

    real_scandir = os.scandir
    for first in range(1, 6):
        with monkeypatch.context() as patch:
            countdown[0] = first
            patch.setattr(os, "lstat", lstat)
            patch.setattr(os, "scandir", lambda path: _rotating(real_scandir(path), countdown, node))
            node.ship()
        node.ship()
    node.settle()
    assert node.shipped() == node.written["r.log"]


class _rotating:  # noqa: N801 - stands in for what scandir returns
    """A listing during which a rotation comes."""

    def __init__(self, listing: object, countdown: list[int], node: Node) -> None:
        self.listing, self.countdown, self.node = listing, countdown, node

    def __enter__(self) -> _rotating:
        return self

    def __exit__(self, *_: object) -> None:
        self.listing.close()  # type: ignore[attr-defined]

    def __iter__(self) -> _rotating:
        return self

    def __next__(self) -> object:
        item = next(self.listing)  # type: ignore[call-overload]
        self.countdown[0] -= 1
        if not self.countdown[0]:
            self.node.rotate()
            self.node.append(3)
        return item


@pytest.mark.parametrize("count", [1, 2, 5])
def test_killed_between_writing_and_noting(node: Node, count: int) -> None:
    """The state file is an older one: what was written since is found in the store, and not sent again."""
    node.append(3)
    node.ship()
    before = node.state.read_bytes()
    for _ in range(count):
        node.append(2)
        node.ship()
    node.append(2)
    node.rotate()
    node.append(2)
    node.state.write_bytes(before)
    node.start()
    node.ship()
    assert node.shipped() == node.written["r.log"]


def test_killed_and_the_file_is_gone_meanwhile(node: Node) -> None:
    """What was written and not noted stands in the way: the stream goes on behind it."""
    node.append(3)
    node.ship()
    before = node.state.read_bytes()
    node.append(2)
    node.ship()
    os.unlink(node.logs / "r.log")
    node.append(3)
    node.state.write_bytes(before)
    node.start()
    node.ship()
    assert node.shipped() == node.written["r.log"]


def test_the_whole_state_is_lost(node: Node) -> None:
    """Nothing is overwritten; what still stands is known again, also where the beginning is gone."""
    for _ in range(3):
        node.append(3)
        node.ship()
        node.rotate(kept=5)
    node.append(1)
    os.unlink(node.state)
    node.start()
    node.ship()
    assert node.shipped() == node.written["r.log"]
    os.unlink(node.logs / "r.log.3")
    os.unlink(node.state)
    node.start()
    node.append(1)
    node.ship()
    assert node.shipped() == node.written["r.log"]


def test_the_whole_state_is_lost_far_behind(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """What still stands goes up again, behind all that is there: rather twice than never."""
    monkeypatch.setattr(logship, "WALK_SEGMENTS_MAX", 3)
    for _ in range(8):
        node.append(1)
        node.ship()
        node.rotate(kept=3)
    still = b"".join((node.logs / name).read_bytes() for name in ("r.log.2", "r.log.1", "r.log"))
    assert still
    os.unlink(node.state)
    node.start()
    node.ship()
    assert node.shipped() == node.written["r.log"] + still


@pytest.mark.parametrize("trouble", [["after"], ["before"], ["down"], ["after", "after", "before", "down", "after"]])
def test_lost_answers(node: Node, trouble: list[str]) -> None:
    for _ in range(4):
        node.append(2)
        node.store.trouble = list(trouble)
        for _ in range(len(trouble) + 1):
            with contextlib.suppress(Unavailable):
                node.ship()
        node.rotate()
    node.settle()
    assert node.shipped() == node.written["r.log"]


def test_a_full_disk_for_the_state(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    node.append(2)
    with monkeypatch.context() as patch:
        patch.setattr(logship, "write_atomic", full)
        for _ in range(3):
            with pytest.raises(OSError, match="No space"):
                node.ship()
            node.append(1)
    node.start()
    node.ship()
    assert node.shipped() == node.written["r.log"]


def test_the_backlog_is_bounded_and_counted(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all files of the node; the oldest bytes go first, and none of what is kept is lost or sent twice."""
    monkeypatch.setattr(logship, "BACKLOG_BYTES_MAX", 1000)
    node.append(1)
    node.ship()
    for step in range(8):
        node.append(20, 8)
        os.utime(node.logs / "r.log", (step, step))
        node.rotate(kept=20)
    node.append(20, 8, "other.log")
    os.utime(node.logs / "other.log", (100, 100))
    written = len(node.written["r.log"]) + len(node.written["other.log"])
    node.store.trouble = ["down"]
    with pytest.raises(Unavailable):
        node.ship()
    node.start()
    node.settle()
    segments = {name: b"".join(data for *_, data in LogReader(node.store, "n1", name).read()) for name in node.written}
    assert node.shipper.dropped_bytes == written - sum(map(len, segments.values()))
    for name, found in segments.items():
        first = len(b"000001 \n") if name == "r.log" else 0
        assert node.written[name].endswith(found[first:])
        assert sorted(found.splitlines()) == sorted(set(found.splitlines()))
    assert segments["other.log"] == node.written["other.log"]
    assert len(segments["r.log"]) + len(segments["other.log"]) <= 1000 + 20
    before = node.shipper.dropped_bytes
    for _ in range(3):
        node.append(5)
        node.rotate(kept=20)
        node.settle()
    assert node.shipper.dropped_bytes == before
    assert node.written["r.log"].endswith(
        b"".join(data for *_, data in LogReader(node.store, "n1", "r.log").read())[-200:]
    )


def test_two_files_and_names_that_are_not_shipped(node: Node) -> None:
    for name in ("r.log", "render-17.log"):
        node.append(2, name=name)
    for name in ("two words.log", "größe.log", ".hidden", "synch.error", "-dash.log"):
        (node.logs / name).write_bytes(b"x\n")
    (node.logs / "directory.log").mkdir()
    os.symlink("/etc/passwd", node.logs / "link.log")
    os.mkfifo(node.logs / "pipe.log")
    node.ship()
    node.ship()
    for name in ("r.log", "render-17.log"):
        assert node.shipped(name) == node.written[name]
    assert {key.split("/")[2] for key, *_ in LogReader(node.store).read()} == {"r.log", "render-17.log"}
    told = [fields["file"] for event, fields in node.log.events if "not shipped" in event]
    assert sorted(map(str, told)) == ["-dash.log", "größe.log", "two words.log"]


@pytest.mark.parametrize("garbage", [b"", b"no zstd", b"\x28\xb5\x2f\xfd\x00\x00"])
def test_an_object_of_a_strangers_where_a_segment_belongs(node: Node, garbage: bytes) -> None:
    """It is neither overwritten nor does it hold up this stream or another."""
    MemoryStore.put(node.store, f"log/n1/r.log/{0:020}", garbage)
    MemoryStore.put(node.store, "log/n1/r.log/no-number", garbage)
    node.append(2)
    node.append(2, name="z.log")
    node.settle()
    assert node.shipped("z.log") == node.written["z.log"]
    fetched = node.store.get(f"log/n1/r.log/{0:020}", size_max=100)
    assert fetched is not None
    assert fetched.data == garbage
    keys = [info.key for info in node.store.list("log/n1/r.log/") if info.key[-1].isdigit()]
    assert b"".join(read_segment(node.store, key) for key in keys[1:]) == node.written["r.log"]


def test_what_boxlink_logs_shows(node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tools.cli.logs import command

    url = f"file://{tmp_path}/store"
    (tmp_path / "store").mkdir()
    from synclib.store.open import open_store

    store = open_store(url, {})[0]
    shipper = LogShipper(node.logs, node.state, "n1", store, node.clock, node.log)
    lines = [json.dumps({"at": f"2026-11-24T08:0{number}:00Z", "n": number}) for number in range(3)]
    (node.logs / "r.log").write_text("".join(f"{line}\n" for line in lines) + "cut")
    shipper.round(is_last=True)
    runner = CliRunner()
    shown = runner.invoke(command, ["n1", "--store", url]).stdout
    assert shown.splitlines() == [f"n1/r.log: {line}" for line in [*lines, "cut"]]
    shown = runner.invoke(command, ["--since", "2026-11-24T08:01:00Z", "--store", url]).stdout
    assert shown.splitlines() == [f"n1/r.log: {line}" for line in [*lines[1:], "cut"]]
    assert runner.invoke(command, ["n2", "--store", url]).stdout == ""


class Streams(RuleBasedStateMachine):
    """Any order of growth, rotation, copying, rounds, lost answers and kills."""

    def __init__(self) -> None:
        super().__init__()
        self.place = tempfile.TemporaryDirectory()
        self.node = Node(Path(self.place.name))
        self.older: list[bytes] = []

    @initialize()
    def begin(self) -> None:
        self.node.append()

    @rule(count=st.integers(1, 4), size=st.sampled_from([0, 0, 30, 400]))
    def append(self, count: int, size: int) -> None:
        self.node.append(count, size)

    def _save_the_oldest(self) -> None:
        """What is deleted before it was sent is lost, and nobody says otherwise: so it is sent first."""
        if (self.node.logs / "r.log.3").exists():
            self.node.settle()

    @rule()
    def rotate(self) -> None:
        self._save_the_oldest()
        self.node.rotate()

    @rule()
    def copy_and_truncate(self) -> None:
        self._save_the_oldest()
        self.node.copy_and_truncate()

    @precondition(lambda self: (self.node.logs / "r.log").exists())
    @rule()
    def delete_all(self) -> None:
        self.node.settle()
        for path in self.node.logs.iterdir():
            path.unlink()
        self.node.append()

    @rule(
        is_last=st.booleans(),
        seconds=st.sampled_from([0, 1, 40]),
        trouble=st.lists(st.sampled_from(["", "after", "before", "down"]), max_size=3),
    )
    def ship(self, is_last: bool, seconds: int, trouble: Sequence[str]) -> None:
        if self.node.state.exists():
            self.older.append(self.node.state.read_bytes())
        self.node.clock.advance(seconds)
        self.node.store.trouble = list(trouble)
        with contextlib.suppress(Unavailable):
            self.node.ship(is_last=is_last)
        self.node.store.trouble = []

    @rule(is_older=st.booleans())
    def kill(self, is_older: bool) -> None:
        """Either between two rounds, or so that the last round's segments were not noted."""
        if is_older and self.older:
            self.node.state.write_bytes(self.older.pop())
        self.older.clear()
        self.node.start()

    @invariant()
    def nothing_is_out_of_order(self) -> None:
        assert self.node.written["r.log"].startswith(self.node.shipped())

    def teardown(self) -> None:
        self.node.settle()
        assert self.node.shipped() == self.node.written["r.log"]
        self.place.cleanup()


TestStreams = Streams.TestCase
TestStreams.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_constants_are_those_of_the_design() -> None:
    assert (logstream.SEGMENT_BYTES_MAX, logstream.SEGMENT_AGE_S, logstream.BACKLOG_BYTES_MAX) == (1 << 20, 30, 1 << 30)


def test_each_segment_is_read_once_and_damage_hides_nothing(node: Node) -> None:
    node.append(2)
    node.ship()
    node.store.put("log/n0/a.log/00000000000000000000", b"no segment")
    node.store.put("log/n0/stranger", b"x")
    reader = LogReader(node.store)
    gets = len(node.store.gets)
    assert b"".join(data for *_, data in reader.read()) == node.written["r.log"]
    assert sorted(error.key or "" for error in reader.failed) == [
        "log/n0/a.log/00000000000000000000", "log/n0/stranger",
    ]  # fmt: skip
    asked = len(node.store.gets) - gets
    assert asked == 2
    assert list(reader.read()) == []
    assert len(node.store.gets) - gets == asked, "what was read, or cannot be, is not asked for again"
    node.append(2)
    node.ship()
    assert b"".join(data for *_, data in reader.read()) in node.written["r.log"]
    assert len(reader.failed) == 2
