"""What nodes say of themselves, and what is made of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from proxy.core.networks import parse_networks
from proxy.metrics import Counters
from proxy.registry import Registry
from synclib.clock import ManualClock, SeededEntropy, now_text
from synclib.core import zstd
from synclib.core.fleet import Seen, may_follow, row_of
from synclib.core.registration import NODE_STATUS_BYTES_MAX, Channel, NodeStatus, Registration, parse_node_status
from synclib.engine.fleet import fleet_rows, followers
from synclib.engine.fleet_forget import forget_node
from synclib.engine.host import Host
from synclib.engine.report import Identity, MountFigures, Reporter
from synclib.errors import BoxlinkError, Conflict, Corrupt, Invalid, Unavailable
from synclib.store.memory import MemoryStore
from synclib.store.open import open_store
from tests.kit import Kit
from tools.fleet.one_up import note_followed
from tools.fleet_status import row_text

DIGEST = "5" * 64


class Rig:
    def __init__(self, place: Path) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore()
        self.data = place / "data"
        self.directory = self.data / "covers"
        self.directory.mkdir(parents=True)
        self.asked = 0
        host = Host("n1", self.clock, SeededEntropy(1), place / "state", place / "cache")
        self.reporter = Reporter(self.data, self.store, host, Identity("render", "r@2", self._mounts))
        self.errors: dict[str, BoxlinkError | None] = {"covers": None}
        self.held: dict[str, int] = {}
        self.down(3)

    def _mounts(self) -> dict[str, MountFigures]:
        self.asked += 1
        return {"covers": MountFigures(0.5, 100, 0)}

    def down(self, seq: int) -> None:
        text = {"dataset": "covers", "seq": seq, "digest": DIGEST, "mode": "lazy", "reason": "why", "at": ""}
        (self.directory / "synch.down").write_text(json.dumps(text))

    def said(self) -> NodeStatus | None:
        """What was put since the last look."""
        self.reporter.round(self.errors, held=self.held)
        keys = [info.key for info in self.store.list("node/")]
        if not keys:
            return None
        fetched = self.store.get(keys[0], size_max=1 << 20)
        assert fetched is not None
        self.store.delete(keys[0])
        return parse_node_status(fetched.data, keys[0])


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_node_says_how_it_does(rig: Rig) -> None:
    said = rig.said()
    assert said is not None
    assert (said.role, said.release, said.seq, said.mode) == ("render", "r@2", {"covers": 3}, {"covers": "lazy"})
    assert (said.reason, said.hydrated, said.reads) == ({"covers": "why"}, {"covers": 0.5}, 100)
    assert 0 < said.disk_free_bytes <= said.disk_bytes


def test_where_it_is_told_to_stand_is_said_as_well(rig: Rig) -> None:
    said = rig.said()
    assert said is not None
    assert said.held == {}
    rig.held = {"covers": 3}
    rig.clock.advance(5)
    said = rig.said()
    assert said is not None
    assert said.held == {"covers": 3}


def test_which_channels_it_follows(rig: Rig) -> None:
    host = Host("n1", rig.clock, SeededEntropy(1), rig.data, rig.data)
    rig.reporter = Reporter(rig.data, rig.store, host, Identity(), ["canary"])
    (rig.data / ".boxlink").mkdir()
    note_followed(rig.data, "render", "stable")
    said = rig.said()
    assert said is not None
    assert said.channels == ["canary", "stable"]
    note_followed(rig.data, "render", "")
    rig.clock.advance(5)
    said = rig.said()
    assert said is not None
    assert said.channels == ["canary"]


def test_it_says_it_again_when_something_changes_and_each_half_minute(rig: Rig) -> None:
    rig.said()
    rig.clock.advance(5)
    assert rig.said() is None
    rig.down(4)
    rig.clock.advance(5)
    said = rig.said()
    assert said is not None
    assert said.seq == {"covers": 4}
    assert rig.asked == 2, "another seq is another mount"
    rig.errors["covers"] = Unavailable("nobody answers")
    rig.clock.advance(5)
    said = rig.said()
    assert said is not None
    assert said.errors == {"covers": "unavailable: nobody answers"}
    assert rig.asked == 2, "else mounts are asked each half minute"
    rig.clock.advance(31)
    assert rig.said() is not None
    assert rig.asked == 3


def status(**fields: object) -> NodeStatus:
    return NodeStatus.model_validate({"at": "2026-01-01T00:00:00Z", "seq": {"covers": 5}, **fields})


@pytest.mark.parametrize(
    ("seen", "alarm"),
    [
        (Seen("n", status()), ""),
        (Seen("n", None), "never said how it does"),
        (Seen("n", status(), age_s=89), ""),
        (Seen("n", status(), age_s=91), "said nothing for 91 s"),
        (Seen("n", status(), age_s=-89), ""),
        (Seen("n", status(), age_s=-91), "its clock is 91 s ahead"),
        (Seen("n", status(seq={"covers": 2})), "covers is 3 seqs behind"),
        (Seen("n", status(seq={"covers": 3})), ""),
        (Seen("n", status(seq={"unknown": 3})), ""),
        (Seen("n", status(errors={"covers": "full: no space"})), "covers: full: no space"),
        (Seen("n", status(reads=9, failed_reads=1)), "1 of 9 reads"),
        (Seen("n", status(seq={"covers": 1}, held={"covers": 1})), ""),
        (Seen("n", status(seq={"covers": 1}, held={"covers": 4})), "covers is 3 seqs behind"),
        (Seen("n", status(disk_bytes=1000, disk_free_bytes=49)), "4.9 % left"),
        (Seen("n", status(disk_bytes=1000, disk_free_bytes=50)), ""),
        (Seen("n", status(), 0.0, {"proxy/a": Registration(handles=["/"], requests=1000, errors=11)}), "11 of 1000"),
        (Seen("n", status(), 0.0, {"proxy/a": Registration(handles=["/"], requests=1000, errors=10)}), ""),
    ],
)
def test_what_is_an_alarm(seen: Seen, alarm: str) -> None:
    alarms = row_of(seen, {"covers": 5}, lag_max=2).alarms
    assert len(alarms) == bool(alarm)
    assert alarm in "".join(alarms)


def test_a_fleet_is_read_from_the_store(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    for number in range(3):
        kit.write({b"a": b"%d" % number})
        kit.publish()
    clock = ManualClock()
    said = NodeStatus(role="render", seq={"covers": 2}, at=now_text(clock))
    kit.store.put("node/n1", said.model_dump_json().encode())
    kit.store.put("proxy/10.0.0.1.p80", Registration(handles=["/"], node="n1").model_dump_json().encode())
    kit.store.put("proxy/10.0.0.2.p80", b"I handle '/tiles/*'. Cache for 365d")
    # Longer than what is shown of it: it is JSON, and is read before it is cut.
    older, newer = (json.dumps({"text": "x" * 300, "at": f"2026-01-0{day}", "event": "e"}) for day in (1, 2))
    deep = "[" * 100_000
    kit.store.put(f"log/n1/c.log/{0:020}", zstd.compress(f"{deep}\n".encode()))
    kit.store.put(f"log/n1/a.log/{0:020}", zstd.compress(f"{newer}\n".encode()))
    kit.store.put(f"log/n1/b.log/{0:020}", zstd.compress(f"{older}\n".encode()))
    clock.advance(7)
    rows, problems = fleet_rows(kit.store, clock, 10, with_logs=True)
    assert problems == []
    by_name = {row.seen.node: row for row in rows}
    assert set(by_name) == {"n1", "proxy/10.0.0.2.p80"}
    row = by_name["n1"]
    assert (row.lag, row.alarms, round(row.seen.age_s)) == ({"covers": 1}, [], 7)
    assert row.seen.last_line == newer
    shown = row_text(row)
    assert "\n      2026-01-02 e text=xxx" in shown
    assert "{" not in shown
    assert list(row.seen.registrations) == ["proxy/10.0.0.1.p80"]


def test_who_follows_a_channel() -> None:
    channel = Channel(dataset="covers", seq=5, at="")
    assert may_follow(status(channels=["stable"]), "stable", None)
    assert not may_follow(status(channels=[], held={"covers": 5}), "stable", channel)
    assert may_follow(status(held={"covers": 5}), "stable", channel), "it does not say"
    assert not may_follow(status(held={"covers": 4}), "stable", channel)
    programs = Channel(release="fleet", seq=5, at="")
    assert may_follow(status(release="fleet@5"), "stable", programs)
    assert not may_follow(status(release="fleet@4"), "stable", programs)


class Renewing(MemoryStore):
    """What is registered is renewed while it is waited."""

    def again(self) -> None:
        self.put("proxy/10.0.0.1.p80", Registration(handles=["/"], node="n1", renewed=2).model_dump_json().encode())


def test_what_a_node_that_is_gone_left_is_taken_away() -> None:
    store, clock = Renewing(), ManualClock()
    said = NodeStatus(role="render", at=now_text(clock))
    store.put("node/n1", said.model_dump_json().encode())
    store.put("swap/n1", b"{}")
    store.put("log/n1/a.log/0", b"x")
    store.put("proxy/10.0.0.1.p80", Registration(handles=["/"], node="n1").model_dump_json().encode())
    store.put("proxy/10.0.0.2.p80", Registration(handles=["/"]).model_dump_json().encode())
    store.put("node/n2", b"damaged")

    def forget(name: str, *, dry: bool = False) -> list[str]:
        return forget_node(store, clock, name, lambda _: None, is_dry_run=dry)

    clock.advance(80)
    with pytest.raises(Conflict, match="it told 80 s ago how it does"):
        forget("n1")
    clock.advance(11)
    wanted = ["proxy/10.0.0.1.p80", "node/n1"]
    before = [info.key for info in store.list("")]
    assert forget("n1", dry=True) == wanted
    assert [info.key for info in store.list("")] == before
    with pytest.raises(Conflict, match="renews what it wrote"):
        forget_node(store, clock, "n1", lambda _: store.again(), is_dry_run=False)
    assert [info.key for info in store.list("")] == before
    assert forget("n1") == wanted
    assert [info.key for info in store.list("")] == ["log/n1/a.log/0", "node/n2", "proxy/10.0.0.2.p80"]
    assert forget("n1") == [], "once more changes nothing"
    assert forget("n2") == ["node/n2"]
    assert forget("proxy/10.0.0.2.p80") == ["proxy/10.0.0.2.p80"]
    assert [info.key for info in store.list("")] == ["log/n1/a.log/0"]


def test_a_node_whose_clock_was_ahead_is_forgotten_when_it_is_silent() -> None:
    store, clock = Renewing(), ManualClock()
    clock.advance(1_000_000)
    said = NodeStatus(role="render", at=now_text(clock)).model_dump_json().encode()
    clock = ManualClock()

    def says_more(_: str) -> None:
        store.put("node/n1", said + b" ")

    store.put("node/n1", said)
    with pytest.raises(Conflict, match="renews what it wrote"):
        forget_node(store, clock, "n1", says_more, is_dry_run=False)
    assert forget_node(store, clock, "n1", lambda _: None, is_dry_run=False) == ["node/n1"]
    assert list(store.list("")) == []


def silent(store: Renewing, clock: ManualClock, behind_s: int) -> NodeStatus:
    """A node that said just now how it does, by a clock that is behind."""
    slow = ManualClock()
    clock.advance(behind_s)
    said = NodeStatus(role="render", channels=["stable"], at=now_text(slow))
    store.put("node/n1", said.model_dump_json().encode())
    return said


@pytest.mark.parametrize("behind_s", [600, 3600])
def test_a_node_whose_clock_is_behind_is_seen_to_run(behind_s: int) -> None:
    store, clock = Renewing(), ManualClock()
    said = silent(store, clock, behind_s).model_dump_json().encode()
    waited: list[str] = []

    def says_more(text: str) -> None:
        waited.append(text)
        store.put("node/n1", said + b" " * len(waited))

    with pytest.raises(Conflict, match="renews what it wrote"):
        forget_node(store, clock, "n1", says_more, is_dry_run=False)
    assert [info.key for info in store.list("")] == ["node/n1"]
    channel = Channel(dataset="covers", seq=1, at="")

    def who(say: Callable[[str], None], *, is_waited_for: bool = True) -> list[str]:
        return followers(store, clock, "stable", channel, [], say, is_waited_for=is_waited_for)

    assert who(says_more) == ["n1"]
    assert who(says_more, is_waited_for=False) == []
    assert len(waited) == 2
    assert who(waited.append) == [], "it says no more"
    assert len(waited) == 3
    clock.advance(2 * 86400)
    assert who(waited.append) == []
    assert forget_node(store, clock, "n1", waited.append, is_dry_run=False) == ["node/n1"]
    assert len(waited) == 3, "no clock is behind by days"


def test_what_is_damaged_is_forgotten_too() -> None:
    store, clock = MemoryStore(), ManualClock()
    store.put("node/huge", b"x" * (NODE_STATUS_BYTES_MAX + 1))
    store.put("proxy/10.0.0.1.p80", b"damaged")
    store.put("proxy/10.0.0.2.p80", Registration(handles=["/"], node="../../etc").model_dump_json().encode())
    store.put("proxy/10.0.0.3.p80", Registration(handles=["/"], node="\x1b[31m").model_dump_json().encode())

    def forget(name: str) -> list[str]:
        return forget_node(store, clock, name, lambda _: None, is_dry_run=False)

    assert forget("huge") == ["node/huge"]
    assert forget("proxy/10.0.0.1.p80") == ["proxy/10.0.0.1.p80"]
    assert forget("../../etc") == ["proxy/10.0.0.2.p80"]
    assert forget("proxy/10.0.0.3.p80") == ["proxy/10.0.0.3.p80"]
    assert list(store.list("")) == []
    for name in ("../../etc", "a b"):
        with pytest.raises(Invalid):
            forget(name)
    assert forget("proxy/10.0.0.1.p80") == []


def test_a_pipe_where_a_channel_is_noted_stops_nothing(rig: Rig) -> None:
    (rig.data / ".boxlink").mkdir()
    os.mkfifo(rig.data / ".boxlink/up-x.channel")
    said = rig.said()
    assert said is not None
    assert said.channels == []


HUGE = b'{"v":1,"at":"2026-01-01T00:00:00Z","disk_bytes":1' + b"0" * 400 + b"}"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"v":1}',
        b'{"v":1,"at":"yesterday"}',
        b'{"v":1,"at":"","reads":-1}',
        b"\xff",
        b" " * (1 << 20),
        HUGE,
    ],
)
def test_what_is_no_status_is_a_problem_and_no_end(tmp_path: Path, data: bytes) -> None:
    kit = Kit(tmp_path)
    kit.store.put("node/bad", data)
    kit.store.put("node/good", NodeStatus(at="2026-01-01T00:00:00Z").model_dump_json().encode())
    rows, problems = fleet_rows(kit.store, ManualClock(), 10, with_logs=True)
    assert [row.seen.node for row in rows] == ["good"]
    assert len(problems) == 1
    assert problems[0].startswith("node/bad: ")


def test_a_status_names_its_key() -> None:
    with pytest.raises(Corrupt) as caught:
        parse_node_status(b"{}", "node/x")
    assert caught.value.key == "node/x"


def test_one_that_is_no_object_hides_no_other(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store, _ = open_store(f"file://{tmp_path}/store", {})
    store.put("node/good", NodeStatus(at="2026-01-01T00:00:00Z").model_dump_json().encode())
    store.put("proxy/10.0.0.1.p80", Registration(handles=["/"], node="n1").model_dump_json().encode())
    for folder in ("node", "proxy"):
        (tmp_path / "store" / folder / "0").symlink_to("/etc/passwd")
    rows, problems = fleet_rows(store, ManualClock(), 10, with_logs=False)
    assert [row.seen.node for row in rows] == ["good", "n1"]
    assert len(problems) == 2
    assert all("symlink" in problem for problem in problems)
    registry = Registry(store, parse_networks([], "file:///"), ManualClock(), Counters(), structlog.get_logger())
    assert list(registry.poll()) == ["proxy/10.0.0.1.p80"]
