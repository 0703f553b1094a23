"""The node: what it decides as a table; what a follower and the daemon do in a real directory, over the model store."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from synclib.clock import ManualClock, SeededEntropy, SystemClock
from synclib.core import names
from synclib.core.entry import Entry
from synclib.core.markers import MARKER_BYTES_MAX, Active, Down
from synclib.core.node import RELEASED, Do, Seen, decide, poll_delay
from synclib.core.registration import NodeStatus
from synclib.core.swap import Wish
from synclib.core.trace import Touch
from synclib.disk.held import Held
from synclib.disk.tree import Tree
from synclib.engine import follow, node, restore
from synclib.engine.follow import Follower
from synclib.engine.host import Host
from synclib.engine.node import Node
from synclib.engine.restore import with_first
from synclib.engine.traces import publish_trace
from synclib.errors import BoxlinkError, Conflict, Missing, Unavailable
from synclib.lazy.chain import Chain
from synclib.lazy.run_reader import StoreRuns
from synclib.store.memory import MemoryStore
from synclib.store.meter import Meter, MeteredStore
from tests.kit import Kit, put, read_tree

D5, D6 = "5" * 64, "6" * 64


def down(seq: int = 5, digest: str = D5, **fields: str) -> Down:
    return Down.model_validate({"dataset": "covers", "seq": seq, "digest": digest, "at": "", **fields})


# A dataset that is followed, and where it should be.
SETTLED = Seen(Active(), False, down(), 5, D5, False, True, 5, D5)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, Do.NOTHING),
        # the head has moved, or this process does not know yet what stands here
        ({"target_seq": 6, "target_digest": D6}, Do.RESTORE),
        ({"is_checked": False}, Do.RESTORE),
        ({"local_seq": 0, "local_digest": "", "down": None}, Do.RESTORE),
        ({"target_seq": 0, "target_digest": ""}, Do.NOTHING),
        # the files are right, the answer is not
        ({"down": None}, Do.ANSWER),
        ({"down": down(4)}, Do.ANSWER),
        ({"down": down(5, D6)}, Do.ANSWER),
        ({"down": down(reason=RELEASED)}, Do.ANSWER),
        ({"down": down(mode="publish")}, Do.ANSWER),
        # an answer over files that are being changed goes first, whatever else is asked
        ({"is_restoring": True}, Do.WITHDRAW),
        ({"is_restoring": True, "is_up": True}, Do.WITHDRAW),
        ({"is_restoring": True, "active": None}, Do.WITHDRAW),
        ({"is_restoring": True, "down": None}, Do.RESTORE),
        ({"is_restoring": True, "down": None, "active": None}, Do.NOTHING),
        # synch.up before synch.active
        ({"is_up": True}, Do.PUBLISH),
        ({"is_up": True, "active": None}, Do.PUBLISH),
        ({"is_up": True, "target_seq": 6, "target_digest": D6}, Do.PUBLISH),
        # nobody asks any more
        ({"active": None}, Do.RELEASE),
        ({"active": None, "down": None}, Do.NOTHING),
        ({"active": None, "down": down(reason=RELEASED)}, Do.NOTHING),
        ({"active": None, "down": down(mode="publish")}, Do.NOTHING),
        # an older seq only by name
        ({"active": Active(seq=3), "target_seq": 3, "target_digest": D6}, Do.RESTORE),
        ({"active": Active(seq=5)}, Do.NOTHING),
    ],
)
def test_decisions(change: dict[str, object], expected: Do) -> None:
    assert decide(dataclasses.replace(SETTLED, **change)) is expected  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [(4, D6), (5, D6)])
def test_the_head_never_takes_a_node_back(target: tuple[int, str]) -> None:
    with pytest.raises(Conflict):
        decide(dataclasses.replace(SETTLED, target_seq=target[0], target_digest=target[1]))


def test_nodes_look_at_different_moments() -> None:
    """So that a new seq does not reach a whole fleet, and its store, at once."""
    looks = [poll_delay(10, None, number / 100) for number in range(101)]
    assert (min(looks), max(looks)) == pytest.approx((8, 12))
    assert len(set(looks)) == 101
    soon = [poll_delay(10, 119, number / 100) for number in range(101)]
    assert (min(soon), max(soon)) == pytest.approx((0.8, 1.2))
    assert poll_delay(0.5, 1, 0.5) == 0.5
    assert poll_delay(10, 120, 0.5) == 10


class Silent:
    """A log that keeps its events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def info(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))

    warning = info


class Rig:
    """A publisher, a store that counts, and one dataset's follower whose time stands still until told."""

    def __init__(self, place: Path, *, dataset: str = "covers") -> None:
        self.memory = MemoryStore()
        self.publisher = Kit(place / "publisher", self.memory)
        self.memory.put("boxlink.json", b"{}")
        self.clock = ManualClock(time.time_ns())
        self.meter = Meter()
        self.store = MeteredStore(self.memory, self.meter)
        self.host = Host("n1", self.clock, SeededEntropy(5), place / "state", place / "cache")
        self.directory = place / "data" / dataset
        self.directory.mkdir(parents=True)
        self.log = Silent()
        self.follower = self.start()

    def start(self) -> Follower:
        return Follower(self.directory, self.store, None, self.host, self.log, 10, lambda: False, Meter())

    def publish(self, content: dict[bytes, object]) -> int:
        self.publisher.write(content)  # type: ignore[arg-type]
        return self.publisher.publish(allow_delete=True).seq

    def touch(self, name: str, text: str = "") -> None:
        (self.directory / name).write_text(text)

    def marker(self, name: str) -> dict[str, object] | None:
        path = self.directory / name
        found: dict[str, object] | None = json.loads(path.read_bytes()) if path.exists() else None
        return found

    def later(self) -> BoxlinkError | None:
        """A round after the poll interval."""
        self.clock.advance(61)
        return self.follower.round()


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_marker_that_is_just_being_written_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell's ``echo reader > synch.active`` empties it first."""
    rig = Rig(tmp_path)
    rig.publish({b"a": b"1"})
    sleep = rig.clock.sleep

    def write_meanwhile(seconds: float) -> None:
        sleep(seconds)
        rig.touch("synch.active", "reader")

    with monkeypatch.context() as writing:
        writing.setattr(rig.clock, "sleep", write_meanwhile)
        rig.touch("synch.active")
        assert rig.later() is None
    down = rig.marker("synch.down")
    assert down is not None
    assert down["mode"] == "reader"
    assert not (rig.directory / "a").exists()


def test_asked_restored_answered(rig: Rig) -> None:
    rig.publish({b"a": b"1", b"d": None, b"d/b": b"2"})
    rig.touch(names.ACTIVE)
    assert rig.follower.round() is None
    head = rig.publisher.dataset.read_head().manifest
    answer = rig.marker(names.DOWN)
    assert answer is not None
    assert answer.pop("at")
    assert answer == {"dataset": "covers", "seq": 1, "digest": head.digest, "mode": "eager", "reason": ""}
    assert read_tree(rig.directory) == {b"a": b"1", b"d": None, b"d/b": b"2"}


def test_nothing_is_restored_that_nobody_asks_for(rig: Rig) -> None:
    rig.publish({b"a": b"1"})
    assert rig.follower.round() is None
    assert read_tree(rig.directory) == {}
    assert rig.meter.requests["get"] == 0


@pytest.mark.parametrize(
    "second",
    [
        {b"a": b"2", b"c": b"3"},
        {b"a": b"1"},
        {b"a": ("link", b"c"), b"b": None},
    ],
)
def test_the_answer_is_away_while_files_change(
    rig: Rig, second: dict[bytes, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.publish({b"a": b"1", b"b": b"1"})
    rig.touch(names.ACTIVE)
    rig.follower.round()
    seen = Watch(rig, monkeypatch)
    rig.publish(second)
    assert rig.later() is None
    assert seen.changes > 0
    answer = rig.marker(names.DOWN)
    assert answer is not None
    assert answer["seq"] == 2
    assert read_tree(rig.directory) == second


@pytest.mark.parametrize("what", ["mode", "time"])
def test_the_answer_is_away_while_modes_and_times_change(rig: Rig, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seq names modes and times too: files that have those of the next one are not this seq's."""
    rig.publish({b"a": b"1"})
    rig.touch(names.ACTIVE)
    rig.follower.round()
    seen = Watch(rig, monkeypatch)
    if what == "mode":
        os.chmod(rig.publisher.directory / "a", 0o600)
    else:
        os.utime(rig.publisher.directory / "a", (5, 5))
    assert rig.publisher.publish().seq == 2
    assert rig.later() is None
    assert seen.changes > 0
    found = os.stat(rig.directory / "a")
    wanted = os.stat(rig.publisher.directory / "a")
    assert (found.st_mode, found.st_mtime_ns) == (wanted.st_mode, wanted.st_mtime_ns)
    assert rig.marker(names.DOWN) is not None


class Watch:
    """Wraps the system calls that change a tree: none may happen under the dataset while synch.down stands."""

    def __init__(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.changes = 0
        own = (b".boxlink", b"synch.", b".synch.")

        def wrap(name: str) -> None:
            real: Callable[..., object] = getattr(os, name)

            def wrapped(*args: object, **kwargs: object) -> object:
                place = kwargs.get("dst_dir_fd", kwargs.get("dir_fd"))
                target = args[1] if name == "rename" else args[0]
                if isinstance(target, int):
                    path = os.readlink(f"/proc/self/fd/{target}").encode()
                elif isinstance(place, int):
                    path = os.path.join(os.readlink(f"/proc/self/fd/{place}").encode(), os.fsencode(target))  # type: ignore[arg-type]
                else:
                    path = os.fsencode(target)  # type: ignore[arg-type]
                top = os.fsencode(rig.directory) + b"/"
                if path.startswith(top) and not path[len(top) :].startswith(own):
                    self.changes += 1
                    assert not (rig.directory / names.DOWN).exists(), (name, path)
                return real(*args, **kwargs)

            monkeypatch.setattr(os, name, wrapped)

        for name in ("rename", "unlink", "rmdir", "mkdir", "symlink", "utime", "fchmod", "chmod"):
            wrap(name)


def test_a_restore_by_hand_takes_the_answer_away_too(rig: Rig) -> None:
    rig.publish({b"a": b"1"})
    rig.publish({b"a": b"2"})
    rig.touch(names.ACTIVE)
    rig.follower.round()
    rig.publisher.restore(rig.directory, 1)
    assert rig.marker(names.DOWN) is None


def test_what_a_restore_by_hand_did_not_flush_is_flushed_before_the_answer(rig: Rig) -> None:
    rig.publish({b"a": b"1"})
    rig.publisher.restore(rig.directory)
    state = Held(rig.directory).read()
    assert state is not None
    assert state.unsynced is not None
    rig.touch(names.ACTIVE)
    assert rig.follower.round() is None
    state = Held(rig.directory).read()
    assert state is not None
    assert state.unsynced is None
    assert rig.marker(names.DOWN) is not None


def test_a_restore_that_did_not_end_has_no_answer(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a killed program left synch.down behind: it is withdrawn before anything else."""
    rig.publish({b"a": b"1"})
    rig.touch(names.ACTIVE)
    rig.follower.round()
    answer = (rig.directory / names.DOWN).read_bytes()
    rig.publish({b"a": b"2", b"b": b"3"})
    monkeypatch.setattr("synclib.engine.place.fetch_files", _fail)
    assert rig.later() is not None
    assert rig.marker(names.DOWN) is None
    (rig.directory / names.DOWN).write_bytes(answer)
    os.unlink(rig.directory / names.ACTIVE)
    assert rig.follower.round() is None
    assert rig.marker(names.DOWN) is None


def _fail(*_: object) -> None:
    raise Unavailable("the store went away", hint="try again")


def test_up_is_published_answered_and_removed(rig: Rig) -> None:
    put(rig.directory, b"mine", b"1")
    rig.touch(names.UP)
    assert rig.follower.round() is None
    head = rig.publisher.dataset.read_head().manifest
    answer = rig.marker(names.DOWN)
    assert answer is not None
    assert (answer["seq"], answer["digest"], answer["mode"]) == (1, head.digest, "publish")
    assert not (rig.directory / names.UP).exists()
    rig.publisher.restore(rig.publisher.place / "out")
    assert read_tree(rig.publisher.place / "out") == {b"mine": b"1"}


def test_an_up_that_comes_while_one_is_published_is_not_lost(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    put(rig.directory, b"a", b"1")
    rig.touch(names.UP)
    real = follow.publish
    asked = []

    def publish(*args: object) -> object:
        done = real(*args)  # type: ignore[arg-type]
        if not asked:
            asked.append(True)
            put(rig.directory, b"a", b"22")
            os.unlink(rig.directory / names.UP)
            rig.touch(names.UP)
        return done

    monkeypatch.setattr(follow, "publish", publish)
    assert rig.follower.round() is None
    assert rig.follower.round() is None
    assert not (rig.directory / names.UP).exists()
    answer = rig.marker(names.DOWN)
    assert answer is not None
    assert answer["seq"] == 2


def test_both_at_once_publishes_then_follows(rig: Rig) -> None:
    rig.publish({b"theirs": b"1"})
    rig.touch(names.ACTIVE)
    rig.follower.round()
    rig.publish({b"theirs": b"1", b"more": b"2"})
    put(rig.directory, b"mine", b"3")
    rig.touch(names.UP)
    assert rig.follower.round() is None
    assert not (rig.directory / names.UP).exists()
    answer = rig.marker(names.DOWN)
    assert answer is not None
    assert (answer["seq"], answer["mode"]) == (3, "eager")
    assert read_tree(rig.directory) == {b"theirs": b"1", b"more": b"2", b"mine": b"3"}


def test_skipped_files_are_named_beside_the_answer(rig: Rig) -> None:
    put(rig.directory, b"a", b"1")
    os.mkfifo(rig.directory / "pipe")
    rig.touch(names.UP)
    error = rig.follower.round()
    assert error is not None
    assert error.kind == "partial"
    answer = rig.marker(names.DOWN)
    assert answer is not None
    assert answer["reason"] == "1 paths were skipped"


def test_a_publish_over_others_changes_is_not_answered_as_whole(rig: Rig) -> None:
    """The seq has a file that is not here: no synch.down may say that it is (I1), until it was brought."""
    put(rig.directory, b"mine", b"1")
    rig.touch(names.UP)
    assert rig.follower.round() is None
    rig.publisher.restore(rig.publisher.directory)
    rig.publish({b"mine": b"1", b"theirs": b"2"})
    put(rig.directory, b"more", b"3")
    rig.touch(names.UP)
    error = rig.follower.round()
    assert error is not None
    assert error.kind == "partial"
    assert rig.marker(names.DOWN) is None
    assert not (rig.directory / names.UP).exists()
    # It is told until something else is done, not until the next look.
    assert rig.later() is None
    assert rig.marker(names.ERROR) is not None
    rig.touch(names.ACTIVE)
    assert rig.later() is None
    answer = rig.marker(names.DOWN)
    assert answer is not None
    assert answer["seq"] == rig.publisher.dataset.read_head().manifest.seq == 3
    assert read_tree(rig.directory) == {b"mine": b"1", b"theirs": b"2", b"more": b"3"}
    assert rig.marker(names.ERROR) is None


@pytest.mark.parametrize("is_alone", [True, False])
def test_a_seq_by_name_is_answered_only_when_it_stands_again_after_a_publish(rig: Rig, is_alone: bool) -> None:
    """What was published is another seq; the one that is asked for comes back first (I1)."""
    rig.publish({b"a": b"1"})
    rig.touch(names.ACTIVE, "seq=1")
    rig.follower.round()
    if not is_alone:
        rig.publish({b"a": b"1", b"theirs": b"2"})
    put(rig.directory, b"a", b"edited")
    rig.touch(names.UP)
    assert rig.later() is None
    answer = rig.marker(names.DOWN)
    assert answer is not None
    assert answer["seq"] == 1
    assert read_tree(rig.directory) == {b"a": b"1"}
    assert rig.publisher.dataset.read_head().manifest.seq == (2 if is_alone else 3)


def test_a_kept_back_file_is_not_answered_as_whole(rig: Rig) -> None:
    """A pipe took a file's place: the seq still has the file, the directory has not."""
    put(rig.directory, b"a", b"1")
    put(rig.directory, b"b", b"2")
    rig.touch(names.UP)
    assert rig.follower.round() is None
    os.unlink(rig.directory / "b")
    os.mkfifo(rig.directory / "b")
    put(rig.directory, b"a", b"3")
    rig.touch(names.UP)
    assert rig.follower.round() is not None
    assert rig.marker(names.DOWN) is None


def test_up_in_an_empty_directory_is_said(rig: Rig) -> None:
    rig.directory.mkdir(parents=True, exist_ok=True)
    rig.touch(names.UP)
    error = rig.follower.round()
    assert error is not None
    assert error.kind == "invalid"


def test_no_longer_asked_for_files_stay_and_it_is_said(rig: Rig) -> None:
    rig.publish({b"a": b"1"})
    rig.touch(names.ACTIVE)
    rig.follower.round()
    os.unlink(rig.directory / names.ACTIVE)
    assert rig.follower.is_due()
    assert rig.follower.round() is None
    rig.publish({b"a": b"2"})
    assert rig.later() is None
    answer = rig.marker(names.DOWN)
    assert answer is not None
    assert (answer["seq"], answer["reason"]) == (1, RELEASED)
    assert read_tree(rig.directory) == {b"a": b"1"}
    rig.touch(names.ACTIVE)
    assert rig.later() is None
    answer = rig.marker(names.DOWN)
    assert answer is not None
    assert (answer["seq"], answer["reason"]) == (2, "")


def test_an_older_seq_by_name_and_back(rig: Rig) -> None:
    states = [{b"a": b"%d" % number} for number in range(1, 6)]
    for state in states:
        rig.publish(state)
    rig.touch(names.ACTIVE)
    for text, seq in (("", 5), ("seq=1", 1), ("seq=4 eager", 4), ("", 5)):
        rig.touch(names.ACTIVE, text)
        assert rig.later() is None
        answer = rig.marker(names.DOWN)
        assert answer is not None
        assert answer["seq"] == seq
        assert read_tree(rig.directory) == states[seq - 1]
        assert rig.follower.held_at == (None if seq == 5 else seq)
    rig.touch(names.ACTIVE, "seq=9")
    error = rig.later()
    assert error is not None
    assert error.kind == "missing"
    answer = rig.marker(names.DOWN)
    assert answer is not None
    assert answer["seq"] == 5


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_store_that_went_back_does_not_take_the_node_back(rig: Rig, is_restarted: bool) -> None:
    rig.publish({b"a": b"1"})
    old = rig.memory.get("data/covers/head", size_max=1 << 20)
    assert old is not None
    rig.publish({b"a": b"2"})
    rig.touch(names.ACTIVE)
    rig.follower.round()
    rig.memory.put("data/covers/head", old.data)
    if is_restarted:
        rig.follower = rig.start()
    error = rig.later()
    assert error is not None
    assert error.kind == "conflict"
    said = rig.marker(names.ERROR)
    assert said is not None
    assert (said["kind"], bool(said["message"]), bool(said["hint"])) == ("conflict", True, True)
    answer = rig.marker(names.DOWN)
    assert answer is not None
    assert answer["seq"] == 2
    assert read_tree(rig.directory) == {b"a": b"2"}
    # By name it goes.
    rig.touch(names.ACTIVE, "seq=1")
    assert rig.later() is None
    assert read_tree(rig.directory) == {b"a": b"1"}
    assert rig.marker(names.ERROR) is None


def test_an_error_is_written_and_goes_away(rig: Rig) -> None:
    rig.touch(names.ACTIVE)
    assert rig.follower.round() is not None
    said = rig.marker(names.ERROR)
    assert said is not None
    assert said.pop("at")
    assert (said["dataset"], said["kind"]) == ("covers", "missing")
    assert said["message"]
    assert said["hint"]
    rig.publish({b"a": b"1"})
    assert rig.later() is None
    assert rig.marker(names.ERROR) is None


BAD_WORDS = [b"seq=0", b"seq=x", b"now please", b"\xff\xfe", b"x" * 100_000, b"seq=" + b"9" * 5000]


@pytest.mark.parametrize("text", BAD_WORDS)
def test_an_active_that_is_not_understood(rig: Rig, text: bytes) -> None:
    rig.publish({b"a": b"1"})
    (rig.directory / names.ACTIVE).write_bytes(text)
    error = rig.follower.round()
    assert error is not None
    said = rig.marker(names.ERROR)
    assert said is not None
    assert said["kind"] == "invalid"
    assert read_tree(rig.directory) == {}
    # Also when a daemon that never saw the error finds it corrected: the words do not stand for ever.
    rig.follower = rig.start()
    os.unlink(rig.directory / names.ACTIVE)
    assert rig.later() is None
    assert rig.marker(names.ERROR) is None


def test_an_active_that_is_a_directory_costs_no_descriptors(rig: Rig) -> None:
    (rig.directory / names.ACTIVE).mkdir()
    assert rig.later() is not None
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        assert rig.later() is not None
    assert len(os.listdir("/proc/self/fd")) == before


def test_names_that_are_no_text_can_be_told_in_an_error(rig: Rig) -> None:
    rig.publish({b"b\xff": b"1"})
    put(rig.directory, b"b\xff/in the way", b"1")
    rig.touch(names.ACTIVE)
    error = rig.follower.round()
    assert error is not None
    assert error.kind == "partial"
    said = rig.marker(names.ERROR)
    assert said is not None
    assert "b\\" in str(said["message"])


def test_the_disk_of_the_markers_is_full(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that cannot even be written is no reason to end."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    rig.publish({b"a": b"1"})
    rig.touch(names.ACTIVE)
    monkeypatch.setattr("synclib.disk.markers.write_atomic", full)
    error = rig.follower.round()
    assert error is not None
    assert error.kind == "full"
    monkeypatch.undo()
    assert rig.later() is None
    assert rig.marker(names.DOWN) is not None


def test_an_idle_poll_is_one_get(rig: Rig) -> None:
    rig.publish({b"a": b"1", b"b": b"2"})
    rig.touch(names.ACTIVE)
    rig.follower.round()
    for _ in range(3):
        rig.meter.take()
        assert not rig.follower.is_due()
        rig.clock.advance(13)
        assert rig.follower.is_due()
        assert rig.follower.round() is None
        assert rig.meter.requests == {"get": 1, "put": 0, "list": 0, "delete": 0}
        assert rig.meter.bytes_down == 0


def test_a_marker_touched_during_a_round_is_noticed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only at the next poll: what a round did not see is due at once."""
    rig.publish({b"a": b"1"})
    rig.touch(names.ACTIVE)
    rig.follower.round()
    real = follow.decide

    def decide_then_touch(seen: Seen) -> Do:
        found = real(seen)
        if found is Do.NOTHING:
            rig.touch(names.ACTIVE, "seq=1")
        return found

    monkeypatch.setattr(follow, "decide", decide_then_touch)
    rig.later()
    monkeypatch.undo()
    assert rig.follower.is_due()


def test_a_killed_writer_of_markers_leaves_nothing_to_publish(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    rig.publish({b"a": b"1"})
    rig.touch(names.ACTIVE)
    with monkeypatch.context() as patch:
        # As kill -9 between writing and renaming: nothing is cleaned up either.
        patch.setattr(os, "rename", killed)
        patch.setattr(os, "unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            follow.Markers(rig.directory).write_down(down())
    put(rig.directory, b"a", b"1")
    rig.touch(names.UP)
    assert any(name.endswith(".tmp") for name in os.listdir(rig.directory))
    assert rig.follower.round() is None
    assert rig.publisher.restore(rig.publisher.place / "out").files == 1
    assert sorted(read_tree(rig.publisher.place / "out")) == [b"a"]
    rig.start()
    assert not any(name.endswith(".tmp") for name in os.listdir(rig.directory))


def test_a_killed_writer_of_manifests_does_not_stop_later_restores(rig: Rig) -> None:
    rig.publish({b"a": b"1"})
    rig.touch(names.ACTIVE)
    rig.follower.round()
    (rig.directory / f".boxlink/manifest/{1:020}-0000.abc.tmp").write_bytes(b"half a mani")
    rig.publish({b"a": b"2"})
    assert rig.later() is None
    assert read_tree(rig.directory) == {b"a": b"2"}


class Daemon:
    """A node in a thread, with what it needs to wait for conditions."""

    def __init__(self, place: Path, store: MeteredStore, poll_s: float) -> None:
        self.data = place / "data"
        self.data.mkdir(exist_ok=True)
        self.log = Silent()
        host = Host("n1", SystemClock(), SeededEntropy(3), place / "state", place / "cache")
        self.node = Node(self.data, store, None, host, self.log, poll_s, Meter())
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.node.run()
        except BaseException as error:
            self.error = error

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert self.error is None, self.error
            assert time.monotonic() < deadline, self.log.events
            time.sleep(0.01)


@contextmanager
def running(place: Path, store: MeteredStore, poll_s: float = 3600) -> Iterator[Daemon]:
    daemon = Daemon(place, store, poll_s)
    daemon.thread.start()
    try:
        yield daemon
    finally:
        daemon.node.stop()
        daemon.thread.join(30)
        assert not daemon.thread.is_alive()
    assert daemon.error is None, daemon.error


def test_the_daemon_wakes_by_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a scan only once an hour it is file events that bring each answer."""
    monkeypatch.setattr(node, "_SCAN_S", 3600.0)
    publisher = Kit(tmp_path / "publisher")
    publisher.write({b"a": b"1"})
    publisher.publish()
    with running(tmp_path, MeteredStore(publisher.store, Meter())) as daemon:
        daemon.wait(lambda: daemon.node._watched != set())
        directory = daemon.data / "covers"
        directory.mkdir()
        daemon.wait(lambda: str(directory) in daemon.node._watched)
        (directory / names.ACTIVE).touch()
        daemon.wait((directory / names.DOWN).exists)
        assert read_tree(directory) == {b"a": b"1"}
        os.unlink(directory / names.ACTIVE)
        daemon.wait(lambda: RELEASED in (directory / names.DOWN).read_text())


@pytest.mark.parametrize("name", ["covers", "never"])
def test_a_dataset_whose_directory_is_taken_away_is_no_alarm(tmp_path: Path, name: str) -> None:
    publisher = Kit(tmp_path / "publisher")
    publisher.write({b"a": b"1"})
    publisher.publish()

    def told() -> NodeStatus:
        found = publisher.store.get(names.node_key("n1"), size_max=1 << 20)
        assert found is not None
        return NodeStatus.model_validate_json(found.data)

    with running(tmp_path, MeteredStore(publisher.store, Meter()), poll_s=0.1) as daemon:
        directory = daemon.data / name
        directory.mkdir()
        (directory / names.ACTIVE).touch()
        daemon.wait((directory / (names.DOWN if name == "covers" else names.ERROR)).exists)
        daemon.wait(lambda: bool(told().errors if name == "never" else told().seq))
        daemon.wait(lambda: shutil.rmtree(directory, ignore_errors=True) or not directory.exists())
        daemon.wait(lambda: not told().errors and not told().seq)
        assert daemon.node.figures().datasets == {}
        # Asked for again it is there again.
        directory.mkdir()
        (directory / names.ACTIVE).touch()
        daemon.wait((directory / (names.DOWN if name == "covers" else names.ERROR)).exists)


def test_a_swap_is_reported_however_often_its_dataset_has_its_turn(tmp_path: Path) -> None:
    """With such a poll it is always due, or at work."""
    publisher = Kit(tmp_path / "publisher")
    publisher.write({b"a": b"1"})
    publisher.publish()
    directory = tmp_path / "data/covers"
    directory.mkdir(parents=True)
    (directory / names.ACTIVE).touch()
    noted = tmp_path / "data" / names.STATE_DIRECTORY / "swap.json"
    noted.parent.mkdir()
    noted.write_text(Wish(id="w", dataset="covers", seq=1).model_dump_json())

    def reported() -> str:
        try:
            found = publisher.store.get(names.node_key("n1"), size_max=1 << 20)
        except Missing:
            return ""
        assert found is not None
        return NodeStatus.model_validate_json(found.data).swap

    with running(tmp_path, MeteredStore(publisher.store, Meter()), poll_s=0) as daemon:
        daemon.wait(lambda: reported() == "w")
        assert (directory / names.DOWN).exists(), "it has had its turn"


def test_bad_names_are_refused_and_the_others_served(tmp_path: Path) -> None:
    publisher = Kit(tmp_path / "publisher")
    publisher.write({b"a": b"1"})
    publisher.publish()
    with running(tmp_path, MeteredStore(publisher.store, Meter())) as daemon:
        bad = [b"two words", b"log", b"bad\xff", b"-dash", "größe".encode(), b"line\nbreak"]
        for name in [*bad, b"covers"]:
            directory = os.path.join(os.fsencode(daemon.data), name)
            os.makedirs(directory, exist_ok=True)
            Path(os.fsdecode(directory), names.ACTIVE).touch()
        daemon.wait((daemon.data / "covers" / names.DOWN).exists)
        for name in bad:
            error = Path(os.fsdecode(os.path.join(os.fsencode(daemon.data), name)), names.ERROR)
            daemon.wait(error.exists)
            assert json.loads(error.read_bytes())["kind"] == "invalid"
        for number in range(3):
            publisher.write({b"a": b"%d" % number})
            publisher.publish()


def test_the_data_directory_goes_and_comes_back(tmp_path: Path) -> None:
    publisher = Kit(tmp_path / "publisher")
    publisher.write({b"a": b"1"})
    publisher.publish()
    with running(tmp_path, MeteredStore(publisher.store, Meter())) as daemon:
        daemon.wait(lambda: daemon.node._watched != set())
        os.rename(daemon.data, tmp_path / "elsewhere")
        daemon.wait(lambda: any("data directory" in event for event, _ in daemon.log.events))
        os.rename(tmp_path / "elsewhere", daemon.data)
        directory = daemon.data / "covers"
        directory.mkdir()
        (directory / names.ACTIVE).touch()
        daemon.wait((directory / names.DOWN).exists)


def test_one_dataset_in_trouble_does_not_hold_up_another(tmp_path: Path) -> None:
    publisher = Kit(tmp_path / "publisher")
    publisher.write({b"a": b"1"})
    publisher.publish()
    (tmp_path / "data/never").mkdir(parents=True)
    (tmp_path / "data/never" / names.ACTIVE).touch()
    (tmp_path / "data/covers").mkdir()
    (tmp_path / "data/covers" / names.ACTIVE).touch()
    host = Host("n1", SystemClock(), SeededEntropy(3), tmp_path / "state", tmp_path / "cache")
    daemon = Node(tmp_path / "data", publisher.store, None, host, Silent(), 10, Meter())
    errors = daemon.run_once()
    assert {name: error.kind for name, error in errors.items()} == {"never": "missing"}
    assert (tmp_path / "data/covers" / names.DOWN).exists()


def test_for_readers_the_answer_comes_without_files(rig: Rig) -> None:
    rig.publish({b"a": b"1"})
    rig.touch(names.ACTIVE, "reader")
    assert rig.follower.round() is None
    answer = rig.marker(names.DOWN)
    assert answer is not None
    assert (answer["seq"], answer["mode"]) == (1, "reader")
    assert read_tree(rig.directory) == {}
    rig.publish({b"a": b"2"})
    assert rig.later() is None
    answer = rig.marker(names.DOWN)
    assert answer is not None
    assert answer["seq"] == 2
    # A daemon that starts anew finds it done, and does not write it again.
    before = os.stat(rig.directory / names.DOWN).st_mtime_ns
    rig.follower = rig.start()
    assert rig.follower.round() is None
    assert os.stat(rig.directory / names.DOWN).st_mtime_ns == before
    # Files, once they are asked for.
    rig.touch(names.ACTIVE, "eager")
    assert rig.later() is None
    answer = rig.marker(names.DOWN)
    assert answer is not None
    assert answer["mode"] == "eager"
    assert read_tree(rig.directory) == {b"a": b"2"}
    # What is restored is followed as it is.
    rig.touch(names.ACTIVE, "reader")
    rig.publish({b"a": b"3"})
    assert rig.later() is None
    assert read_tree(rig.directory) == {b"a": b"3"}


def test_where_nothing_can_be_mounted_what_start_ups_need_comes_first(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.publish({b"a": b"1", b"m/n": b"2", b"z/y": b"3", b"m": None, b"z": None})
    touches = [Touch(b"z/y", 0, 1, 5), Touch(b"gone", 0, 1, 6), Touch(b"m/n", 0, 1, 7)]
    publish_trace(rig.publisher.dataset, rig.publisher.host, 1, touches)
    made: list[bytes] = []
    whole = Tree.write_file

    def write_file(tree: Tree, entry: Entry, plain: Iterator[bytes]) -> None:
        made.append(entry.path)
        whole(tree, entry, plain)

    monkeypatch.setattr(Tree, "write_file", write_file)
    ordered: list[bytes] = []
    monkeypatch.setattr(restore, "with_first", lambda paths, chain: _noted(with_first(paths, chain), ordered))
    rig.touch(names.ACTIVE, "lazy")
    assert rig.follower.round() is None
    assert ordered == [b"z", b"z/y", b"m", b"m/n", b"a"]
    assert sorted(made) == [b"a", b"m/n", b"z/y"]
    answer = rig.marker(names.DOWN)
    assert answer is not None
    assert str(answer["reason"]).startswith("restored eagerly")


def _noted(entries: Iterator[Entry], paths: list[bytes]) -> Iterator[Entry]:
    for entry in entries:
        paths.append(entry.path)
        yield entry


def test_those_that_come_first_come_once_whatever_is_named(rig: Rig) -> None:
    content: dict[bytes, object] = {b"d": None, b"d/e": None, b"d/e/f": b"1", b"g": b"2"}
    rig.publish(content)
    chain = Chain.of(
        StoreRuns(rig.memory, None), rig.publisher.dataset.root, rig.publisher.dataset.read_head().manifest.runs
    )
    for paths in ([], [b"g"], [b"d/e/f", b"d/e/f", b"d"], [b"g/x", b"", b"/", b"..", b"d//e", b"\0", b"d/e/f/g"]):
        found = [entry.path for entry in with_first(paths, chain)]
        assert sorted(found) == sorted(content)
        for path in found:
            parent = path.rpartition(b"/")[0]
            assert not parent or found.index(parent) < found.index(path)


@pytest.mark.parametrize("kind", ["symlink", "loop", "fifo", "socket", "directory"])
def test_an_active_marker_that_is_no_plain_file_is_neither_read_nor_quoted(rig: Rig, kind: str, tmp_path: Path) -> None:
    """Whoever may put a marker may perhaps not read what a link leads to, and everybody may read synch.error."""
    secret = tmp_path / "secret"
    secret.write_text("root:secret")
    marker = rig.directory / names.ACTIVE
    bound = socket.socket(socket.AF_UNIX)
    with bound:
        {
            "symlink": lambda: marker.symlink_to(secret),
            "loop": lambda: marker.symlink_to(marker),
            "fifo": lambda: os.mkfifo(marker),
            "socket": lambda: bound.bind(str(marker)),
            "directory": marker.mkdir,
        }[kind]()
        rig.publish({b"a": b"1"})
        error = rig.follower.round()
    assert error is not None
    told = rig.marker(names.ERROR)
    assert told is not None
    assert told["kind"] == "invalid"
    assert ("symlink" if kind in ("symlink", "loop") else "no plain file") in str(told["message"])
    assert told["hint"]
    assert "secret" not in (rig.directory / names.ERROR).read_text()
    assert read_tree(rig.directory) == {}
    marker.rmdir() if kind == "directory" else marker.unlink()
    rig.touch(names.ACTIVE)
    assert rig.later() is None
    assert read_tree(rig.directory) == {b"a": b"1"}


@pytest.mark.parametrize("name", [names.DOWN, names.ERROR])
@pytest.mark.parametrize("kind", ["large", "symlink", "fifo"])
def test_answers_that_others_have_put_there_are_replaced(rig: Rig, name: str, kind: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("{}")
    marker = rig.directory / name
    {
        "large": lambda: marker.write_bytes(bytes(MARKER_BYTES_MAX + 1)),
        "symlink": lambda: marker.symlink_to(other),
        "fifo": lambda: os.mkfifo(marker),
    }[kind]()
    rig.publish({b"a": b"1"})
    rig.touch(names.ACTIVE, "nonsense")
    assert rig.follower.round() is not None
    told = rig.marker(names.ERROR)
    assert told is not None
    assert "nonsense" in str(told["message"])
    rig.touch(names.ACTIVE)
    assert rig.later() is None
    answer = rig.marker(names.DOWN)
    assert answer is not None
    assert answer["seq"] == 1
    assert not (rig.directory / names.ERROR).exists()
    assert other.read_text() == "{}"
