"""Rolling upgrades over a fleet that a clock moves: new nodes that are slow, crash or never get ready; drivers that are
killed at any step; a store that is away; two operators at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from synclib.clock import ManualClock, SeededEntropy
from synclib.core.rollout import (
    REASON_MAX,
    NodeSpec,
    Phase,
    Rollout,
    State,
    Traffic,
    View,
    alarm_of,
    batches,
    parse_rollout,
    rolled_back,
)
from synclib.engine.host import Host
from synclib.engine.rollout import Driver, plan
from synclib.engine.rollout_journal import Entry, Journal
from synclib.errors import BoxlinkError, Conflict, Corrupt, Fenced, Invalid, Missing, Unavailable
from synclib.store.base import Body, Fetched, ObjectInfo
from synclib.store.memory import MemoryStore

READY_S = 60.0
PLAIN = {"node": "a", "role": "render"}


class Killed(BaseException):
    """kill -9 of a driver."""


class Away(MemoryStore):
    """A store that does not answer between two moments, or ends its caller at a call."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self.clock = clock
        self.away = (0.0, 0.0)
        self.calls_left: int | None = None

    def _call(self) -> None:
        if self.away[0] <= self.clock.monotonic() < self.away[1]:
            raise Unavailable("nobody answers")
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise Killed

    def get(self, key: str, *, size_max: int, if_none_match: str | None = None) -> Fetched | None:
        self._call()
        return super().get(key, size_max=size_max, if_none_match=if_none_match)

    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        self._call()
        etag = super().put(key, body, if_absent=if_absent, if_match=if_match)
        self._call()  # or right after it was applied
        return etag


@dataclass
class Fake:
    """A node of the model: when it began to be ready, and when it is gone."""

    ready_at: float
    gone_at: float = float("inf")
    begun_at: float = float("-inf")


@dataclass
class ModelFleet:
    """Nodes get ready ``ready_s`` after their start, and are gone ``drain_s`` after they were asked to."""

    clock: ManualClock
    ready_s: dict[str, float] = field(default_factory=dict)
    drain_s: float = 5.0
    nodes: dict[str, Fake] = field(default_factory=dict)
    figures: Traffic = field(default_factory=lambda: Traffic(0, 0, 1.0))
    starts: list[str] = field(default_factory=list)
    refuses: str = ""
    effects_left: int | None = None
    hidden_s: float = 0.0  # so long what was started is not seen
    looked_at: dict[str, float] = field(default_factory=dict)
    leaves: set[str] = field(default_factory=set)  # what is paid for after they have ended
    fewest: int = 1 << 30

    def serving(self) -> list[str]:
        now = self.clock.monotonic()
        return [name for name, node in self.nodes.items() if node.ready_at <= now and node.gone_at == float("inf")]

    def there(self) -> list[str]:
        now = self.clock.monotonic()
        return sorted(name for name, node in self.nodes.items() if node.gone_at > now)

    def look(self, specs: Sequence[NodeSpec]) -> dict[str, View]:
        self.fewest = min(self.fewest, len(self.serving()))
        serving, now = self.serving(), self.clock.monotonic()
        there = [name for name in self.there() if self.nodes[name].begun_at + self.hidden_s <= now]
        first = {spec.node: self.looked_at.setdefault(spec.node, now) for spec in specs}
        return {
            spec.node: View(True, spec.node in serving, "it loads")
            if spec.node in there
            else View(may_come=now < first[spec.node] + self.hidden_s)
            for spec in specs
        }

    def _effect(self) -> None:
        if self.effects_left is not None:
            self.effects_left -= 1
            if self.effects_left < 0:
                raise Killed

    def start(self, spec: NodeSpec) -> None:
        self._effect()
        if spec.node == self.refuses:
            raise Missing("there is no such release")
        now = self.clock.monotonic()
        if spec.node not in self.there() or self.nodes[spec.node].begun_at + self.hidden_s > now:
            self.starts.append(spec.node)
            self.leaves.add(spec.node)
            self.nodes[spec.node] = Fake(now + self.ready_s.get(spec.node, 2.0), begun_at=now)
        self._effect()

    def drain(self, spec: NodeSpec) -> None:
        self._effect()
        node = self.nodes[spec.node]
        node.gone_at = min(node.gone_at, self.clock.monotonic() + self.drain_s)
        self._effect()

    def traffic(self) -> Traffic | None:
        return self.figures

    def clear(self, specs: Sequence[NodeSpec]) -> list[str]:
        """One at a call: the others are not gone yet."""
        self._effect()
        left = [spec.node for spec in specs if spec.node in self.leaves]
        assert not set(left) & set(self.there()), "only what has ended is cleared"
        self.leaves -= {*left[:1]}
        self._effect()
        return left[1:]


class Rig:
    """Three nodes that serve, and a store."""

    def __init__(self, tmp_path: Path, count: int = 3) -> None:
        self.clock = ManualClock()
        self.store = Away(self.clock)
        self.host = Host("operator", self.clock, SeededEntropy(1), tmp_path, tmp_path)
        self.fleet = ModelFleet(self.clock)
        self.olds = [NodeSpec(node=f"old-{number}", role="render") for number in range(count)]
        for spec in self.olds:
            self.fleet.start(spec)
        self.clock.advance(100)
        self.fleet.starts.clear()
        self.journal = Journal(self.store, self.host)
        self.said: list[str] = []

    @staticmethod
    def new_of(old: NodeSpec) -> NodeSpec:
        return old.model_copy(update={"node": old.node.replace("old", "new"), "release": "render@2"})

    def begin(self, size: int = 10) -> Entry:
        return self.journal.create(plan(self.journal.find("render").next_id, self.olds, self.new_of, size, ""))

    def driver(self, node: str = "operator") -> Driver:
        host = Host(node, self.clock, SeededEntropy(2), self.host.state, self.host.cache)
        return Driver(
            Journal(self.store, host),
            self.fleet,
            host,
            lambda text, _: self.said.append(text),
            ready_s_max=READY_S,
            bake_s=5,
        )

    def run(self) -> Rollout:
        return self.driver().run(self.begin())

    def goes_on(self) -> Rollout:
        """What the same command does again: begin, or go on with what is open."""
        entry = self.journal.open_of("render")
        if entry is None:
            read = self.journal.read("render-000001") if list(self.store.list("upgrade/")) else None
            return read.rollout if read is not None else self.run()
        driver = self.driver()
        return driver.run(driver.take(entry, state=State.RUNNING if entry.rollout.state is State.PAUSED else None))

    @property
    def names(self) -> tuple[list[str], list[str]]:
        news = [spec.node.replace("old", "new") for spec in self.olds]
        return [spec.node for spec in self.olds], news


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_every_node_is_replaced_and_never_fewer_serve(rig: Rig) -> None:
    assert rig.run().state is State.DONE
    assert rig.fleet.there() == rig.names[1]
    assert rig.fleet.fewest == 3
    assert rig.fleet.starts == ["new-0", "new-1", "new-2"]


def test_batches_are_one_then_a_tenth_then_as_many_as_asked() -> None:
    assert list(batches(1, 10)) == [0]
    assert list(batches(3, 10)) == [0, 1, 2]
    assert list(batches(40, 10)) == [0] + [1] * 4 + [2] * 10 + [3] * 10 + [4] * 10 + [5] * 5
    assert list(batches(5, 1)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("bad", ["new-0", "new-1", "new-2"])
def test_one_that_never_gets_ready_takes_all_back(rig: Rig, bad: str) -> None:
    rig.fleet.ready_s[bad] = float("inf")
    done = rig.run()
    assert done.state is State.ROLLED_BACK
    assert done.reason == f"{bad} was not ready within 60 s: it loads"
    assert rig.fleet.there() == rig.names[0]
    assert rig.fleet.fewest == 3


def test_a_slow_one_is_waited_for(rig: Rig) -> None:
    rig.fleet.ready_s["new-1"] = READY_S - 5
    assert rig.run().state is State.DONE
    assert rig.fleet.fewest == 3


def test_one_that_cannot_be_started_takes_all_back(rig: Rig) -> None:
    rig.fleet.refuses = "new-1"
    done = rig.run()
    assert (done.state, done.reason) == (State.ROLLED_BACK, "new-1: there is no such release")
    assert rig.fleet.there() == rig.names[0]


def falls(rig: Rig, node: str, seconds: float, *, is_gone: bool) -> None:
    """A new node fails so long after its old one was asked to drain: it is not ready any more, or is gone."""
    real_look, real_drain, due = rig.fleet.look, rig.fleet.drain, [float("inf")]

    def drain(spec: NodeSpec) -> None:
        real_drain(spec)
        if spec.node == node.replace("new", "old") and due[0] == float("inf"):
            due[0] = rig.clock.monotonic() + seconds

    def look(specs: Sequence[NodeSpec]) -> dict[str, View]:
        if rig.clock.monotonic() >= due[0]:
            due[0] = float("-inf")
            if is_gone:
                rig.fleet.nodes[node].gone_at = 0.0
            else:
                rig.fleet.nodes[node].ready_at = float("inf")
            due[0] = float("nan")  # once
        return real_look(specs)

    rig.fleet.drain, rig.fleet.look = drain, look  # type: ignore[method-assign]


@pytest.mark.parametrize("seconds", [1.0, 6.0, 8.0])
@pytest.mark.parametrize("bad", ["new-0", "new-1", "new-2"])
def test_one_that_was_ready_and_is_not_any_more_takes_all_back(rig: Rig, bad: str, seconds: float) -> None:
    """While its old one drains, and while it is watched after that."""
    falls(rig, bad, seconds, is_gone=False)
    done = rig.run()
    assert (done.state, done.reason) == (State.ROLLED_BACK, f"{bad} was ready, and is not any more: it loads")
    assert rig.fleet.there() == rig.names[0]


@pytest.mark.parametrize("bad", ["new-0", "new-2"])
def test_one_that_ends_while_the_upgrade_is_paused_is_started_again(rig: Rig, bad: str) -> None:
    class Ends(list[str]):
        def append(self, text: str) -> None:
            if text == f"{bad.replace('new', 'old')} has ended; {bad} serves":
                raise Killed

    rig.said = Ends()
    with pytest.raises(Killed):
        rig.run()
    rig.said = []
    rig.clock.advance(20)
    rig.fleet.nodes[bad].gone_at = 0.0
    assert rig.goes_on().state is State.DONE
    assert rig.fleet.serving() == rig.names[1]
    assert rig.fleet.starts.count(bad) == 2


def figures_after_drains(rig: Rig, figures: dict[str, Traffic]) -> None:
    """What the proxy has counted once a node was asked to drain, by its name."""
    real = rig.fleet.drain

    def drain(spec: NodeSpec) -> None:
        real(spec)
        rig.fleet.figures = figures.get(spec.node, rig.fleet.figures)

    rig.fleet.drain = drain  # type: ignore[method-assign]


def test_failures_at_the_proxy_take_all_back(rig: Rig) -> None:
    figures_after_drains(rig, {"old-0": Traffic(1000, 400, 1.0)})
    done = rig.run()
    assert (done.state, done.reason) == (State.ROLLED_BACK, "400 of 1000 requests failed at the proxy")
    assert rig.fleet.there() == rig.names[0]


def test_failures_of_a_later_batch_are_not_lost_among_what_went_well(rig: Rig) -> None:
    rig.fleet.figures = Traffic(1_000_000, 0, 1.0)
    figures_after_drains(rig, {"old-0": Traffic(2_000_000, 0, 1.0), "old-1": Traffic(2_001_000, 400, 1.0)})
    done = rig.run()
    assert (done.state, done.reason) == (State.ROLLED_BACK, "400 of 1000 requests failed at the proxy")


def test_who_goes_on_compares_with_what_was_before_any_node_changed(rig: Rig) -> None:
    """The one who began it was killed after the first new node, which is slow, had begun to answer."""
    entry = rig.journal.create(
        plan("render-000001", rig.olds, rig.new_of, 10, "").model_copy(update={"p99_ms_before": 20.0})
    )
    rig.fleet.effects_left = 1
    with pytest.raises(Killed):
        rig.driver().run(entry)
    rig.fleet.effects_left = None
    rig.fleet.figures = Traffic(5000, 0, 1500.0)
    done = rig.goes_on()
    assert done.state is State.ROLLED_BACK
    assert done.reason == "the proxy waits 1500 ms for the slowest hundredth, 20 ms before"
    assert rig.fleet.there() == rig.names[0]


def test_a_proxy_that_was_started_anew_counts_from_nothing(rig: Rig) -> None:
    rig.fleet.figures = Traffic(1_000_000, 0, 1.0)
    figures_after_drains(rig, {"old-0": Traffic(500, 400, 1.0)})
    done = rig.run()
    assert (done.state, done.reason) == (State.ROLLED_BACK, "400 of 500 requests failed at the proxy")


def test_what_nodes_say_is_one_line_of_a_journal(rig: Rig) -> None:
    """Else it would be one that nobody can read."""
    rig.fleet.refuses = "new-1"
    real = rig.fleet.start

    def start(spec: NodeSpec) -> None:
        try:
            real(spec)
        except Missing as error:
            raise Missing("no such\nboxlink: all is well\x1b[2J" + "x" * 2000) from error

    rig.fleet.start = start  # type: ignore[method-assign]
    assert rig.run().state is State.ROLLED_BACK
    read = rig.journal.read("render-000001")
    assert read is not None
    assert read.rollout.reason.startswith("new-1: no such boxlink: all is well\\x1b[2Jxxx")
    assert len(read.rollout.reason) == REASON_MAX


def test_what_is_an_alarm() -> None:
    before = Traffic(1000, 2, 20)
    assert not alarm_of(before, Traffic(2000, 5, 30))
    assert "98 of 1000 requests failed" in alarm_of(before, Traffic(2000, 100, 30))
    assert "waits 2000 ms" in alarm_of(before, Traffic(2000, 2, 2000))


def test_old_nodes_that_do_not_come_back_end_it_as_failed(rig: Rig) -> None:
    rig.fleet.ready_s["new-1"] = float("inf")
    rig.fleet.ready_s["old-0"] = float("inf")  # from now on: it serves since long
    done = rig.run()
    assert done.state is State.FAILED
    assert "old-0 did not come back" in done.reason
    assert "new-0" in rig.fleet.serving(), "what serves in its place stays"


@pytest.mark.parametrize("bad", ["", "new-1"])
@pytest.mark.parametrize("kind", ["store", "effect"])
def test_a_driver_that_is_killed_anywhere_is_followed_by_another(tmp_path: Path, kind: str, bad: str) -> None:
    """At every call of the store, before it and after it was applied, or at every effect; then the same command."""
    for number in range(2000):
        place = tmp_path / str(number)
        place.mkdir()
        rig = Rig(place)
        if bad:
            rig.fleet.ready_s[bad] = float("inf")
        if kind == "store":
            rig.store.calls_left = number
        else:
            rig.fleet.effects_left = number
        try:
            rig.run()
        except Killed:
            pass
        else:
            assert number > 6, "it was killed somewhere"
            return
        rig.store.calls_left = rig.fleet.effects_left = None
        done = rig.goes_on()
        assert done.state is (State.ROLLED_BACK if bad else State.DONE), number
        assert rig.fleet.there() == rig.names[0 if bad else 1], number
        assert rig.fleet.fewest == 3, number
        assert sorted(rig.fleet.leaves) == rig.fleet.there(), f"{number}: nothing is paid for that has ended"
        assert bad or len(set(rig.fleet.starts)) == len(rig.fleet.starts), "nothing was started twice"
    raise AssertionError("it takes more steps than that?")


def test_what_cannot_be_taken_away_is_said_and_holds_nothing_up(rig: Rig) -> None:
    rig.fleet.clear = lambda specs: [f"volume of {spec.node}" for spec in specs]  # type: ignore[method-assign]
    assert rig.run().state is State.DONE
    assert rig.said[-2].startswith("left behind, see that it goes: volume of old-0; volume of old-1")

    def refused(specs: Sequence[NodeSpec]) -> list[str]:
        raise Invalid("no right to delete")

    rig.fleet.clear = refused  # type: ignore[method-assign]
    rig.olds = [rig.new_of(spec) for spec in rig.olds]
    rig.new_of = lambda old: old.model_copy(update={"node": f"{old.node}-2"})  # type: ignore[method-assign]
    before = rig.clock.monotonic()
    assert rig.run().state is State.DONE
    assert "no right to delete" in rig.said[-2]
    assert rig.clock.monotonic() - before < 60, "nothing is asked for in vain"


def test_a_store_that_is_away_for_a_while_stops_nothing(rig: Rig) -> None:
    rig.store.away = (rig.clock.monotonic() + 3, rig.clock.monotonic() + 13)
    assert rig.run().state is State.DONE
    assert any("the store does not answer" in text for text in rig.said)
    assert rig.fleet.there() == rig.names[1]


def test_who_is_overtaken_ends(rig: Rig) -> None:
    first = rig.begin()
    second = rig.driver("another")
    taken = second.take(first)
    with pytest.raises(Fenced, match="another drives"):
        rig.driver().run(first)
    assert second.run(taken).state is State.DONE


@pytest.mark.parametrize("bad", [False, True])
def test_what_was_asked_for_and_is_not_seen_yet_is_not_asked_for_twice(rig: Rig, bad: bool) -> None:
    """Whoever was killed had asked for it: a cloud lists it only after a while, and would start another one."""
    rig.fleet.hidden_s = 30.0
    if bad:
        rig.fleet.ready_s["new-1"] = float("inf")
    entry = rig.begin(size=1)
    for number in range(40):
        # Killed right after it was asked for, at first.
        rig.fleet.effects_left = 1 if number < 18 else None
        rig.fleet.looked_at.clear()  # the next one knows nothing
        try:
            driver = rig.driver()
            opened = rig.journal.open_of("render")
            done = driver.run(entry if opened is None else driver.take(opened))
            break
        except Killed:
            rig.clock.advance(1)
    else:
        raise AssertionError("it takes more drivers than that?")
    assert done.state is (State.ROLLED_BACK if bad else State.DONE)
    assert len(rig.fleet.starts) == len(set(rig.fleet.starts)), rig.fleet.starts


def test_two_who_begin_at_once(rig: Rig) -> None:
    rollout = plan(rig.journal.find("render").next_id, rig.olds, rig.new_of, 10, "")
    rig.journal.create(rollout)
    other = rollout.model_copy(update={"driver": "other"})
    with pytest.raises(Conflict):
        rig.journal.create(other)


class Between(Away):
    """Something happens before its call number ``at``, or right after the last one."""

    at: int = -1
    happens: Callable[[], None] = staticmethod(lambda: None)
    calls: int = 0

    def _call(self) -> None:
        super()._call()
        number, self.calls = self.calls, self.calls + 1
        if number == self.at:
            self.happens()

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        self._call()
        return super().list(prefix, after=after)


@pytest.mark.parametrize("until", ["begun", "ended"])
@pytest.mark.parametrize("former", [False, True])
def test_two_who_begin_at_any_moment_of_each_other(tmp_path: Path, former: bool, until: str) -> None:
    """A second operator does all of it before each store call of the first, up to the journal or to the end: whoever
    began later is told, and what was begun is never taken for one's own."""
    told = 0
    for number in range(2000):
        rig = Rig(tmp_path)
        if former:
            done = rig.run()
            assert done.state is State.DONE
        rig.store.__class__ = Between
        seen: list[str] = []

        def begin(rig: Rig, node: str, seen: list[str]) -> Entry | None:
            """What `boxlink upgrade` does until it has a journal; None where it goes on with another's."""
            found = rig.journal.find("render")
            if found.opened is not None:
                seen.append(f"{node} goes on with {found.opened.rollout.driver}'s")
                return None
            rollout = plan(found.next_id, rig.olds, rig.new_of, 10, "")
            try:
                return rig.journal.create(rollout.model_copy(update={"driver": node}))
            except Conflict as error:
                seen.append(f"{node} is told of {'first' if 'begun by first' in error.message else 'second'}'s")
                return None

        def second(rig: Rig = rig, seen: list[str] = seen) -> None:
            entry = begin(rig, "second", seen)
            if entry is not None and until == "ended":
                rig.journal.replace(entry, entry.rollout.model_copy(update={"state": State.DONE}))

        assert isinstance(rig.store, Between)
        rig.store.at, rig.store.happens = rig.store.calls + number, second
        entry = begin(rig, "first", seen)
        if rig.store.calls <= rig.store.at:
            assert number > 2, "it happened somewhere"
            assert told, "they met somewhere"
            return
        journals = [rig.journal.read(info.key.removeprefix("upgrade/")) for info in rig.store.list("upgrade/")]
        began = [one.rollout.driver for one in journals if one is not None and one.rollout.driver]
        if until == "begun" or entry is None:
            assert len(began) == 1, (number, seen)
            assert len(seen) == 1, (number, seen)
            assert f"{began[0]}'s" in seen[0], (number, seen)
        told += "is told of" in "".join(seen)
    raise AssertionError("it takes more steps than that?")


def test_paused_it_stands_still_and_goes_on(rig: Rig) -> None:
    entry = rig.begin()
    real = rig.fleet.drain

    def drain(spec: NodeSpec) -> None:
        real(spec)
        read = rig.journal.read(entry.rollout.id)
        if spec.node == "old-0" and read is not None and read.rollout.state is State.RUNNING:
            rig.journal.replace(read, read.rollout.model_copy(update={"state": State.PAUSED}))

    rig.fleet.drain = drain  # type: ignore[method-assign]
    assert rig.driver().run(entry).state is State.PAUSED
    assert rig.fleet.starts == ["new-0"]
    rig.fleet.drain = real  # type: ignore[method-assign]
    assert rig.goes_on().state is State.DONE
    assert rig.fleet.there() == rig.names[1]


def test_aborted_in_the_middle_all_is_as_before(rig: Rig) -> None:
    rig.fleet.ready_s["new-1"] = 50.0
    entry = rig.begin()
    rig.fleet.effects_left = 5
    with pytest.raises(Killed):
        rig.driver().run(entry)
    rig.fleet.effects_left = None
    opened = rig.journal.open_of("render")
    assert opened is not None
    driver = rig.driver()
    done = driver.run(driver.take(opened, state=State.ROLLING_BACK, reason="an operator said so"))
    assert (done.state, done.reason) == (State.ROLLED_BACK, "an operator said so")
    assert rig.fleet.there() == rig.names[0]
    assert rig.fleet.fewest == 3
    assert rig.journal.open_of("render") is None


def test_a_rollout_at_its_end_does_not_turn_round(rig: Rig) -> None:
    done = rig.run()
    assert rolled_back(done, "too late") == done


@pytest.mark.parametrize(
    "change",
    [
        b"",
        b"{",
        b'{"v":1}',
        b'{"v":1,"id":"x","role":"r","steps":[],"at":""}',
        b'{"v":1,"id":"x","role":"r","steps":[{"old":{},"new":{},"batch":0}],"at":""}',
    ],
)
def test_what_is_no_journal_is_refused_by_name(rig: Rig, change: bytes) -> None:
    with pytest.raises(Corrupt) as caught:
        parse_rollout(change, "upgrade/render-000001")
    assert caught.value.key == "upgrade/render-000001"
    rig.store.put("upgrade/render-000001", change)
    with pytest.raises(BoxlinkError):
        rig.journal.open_of("render")


@pytest.mark.parametrize(
    "change",
    [
        {"role": "nodes/n/data/covers/evil.toml"},
        {"id": "render-000002"},
        {"swap": "../x"},
        {"steps": [{"old": {**PLAIN, "snapshot": "x"}, "new": PLAIN, "batch": 0}]},
        {"steps": [{"old": {**PLAIN, "pins": {"x": 0}}, "new": PLAIN, "batch": 0}]},
        {"steps": [{"old": {**PLAIN, "pins": {"../x": 1}}, "new": PLAIN, "batch": 0}]},
        {
            "steps": [
                {"old": {"node": "a", "role": "nodes/evil.toml"}, "new": {"node": "b", "role": "render"}, "batch": 0}
            ]
        },
        {"steps": [{"old": {"node": "a", "role": "proxy"}, "new": {"node": "b", "role": "render"}, "batch": 0}]},
    ],
)
def test_a_journal_names_roles_and_is_its_keys(rig: Rig, change: dict[str, object]) -> None:
    """Whoever can write to the store does not say which file is run."""
    rollout = plan("render-000001", rig.olds, rig.new_of, 10, "").model_dump(mode="json")
    data = json.dumps({**rollout, **change}).encode()
    with pytest.raises(Corrupt):
        parse_rollout(data, "upgrade/render-000001")


def test_a_journal_with_the_last_number_hides_nothing(rig: Rig) -> None:
    assert rig.run().state is State.DONE
    entry = rig.journal.read("render-000001")
    assert entry is not None
    last = f"render-{'9' * 18}"
    rig.store.put(f"upgrade/{last}", entry.rollout.model_copy(update={"id": last}).model_dump_json().encode())
    with pytest.raises(Corrupt, match="the last number that there is"):
        rig.journal.find("render")


def test_a_damaged_journal_hides_no_other_role(rig: Rig) -> None:
    rig.fleet.ready_s["new-0"] = float("inf")
    assert rig.run().state is State.ROLLED_BACK
    rig.store.put("upgrade/a-000001", b"{}")
    with pytest.raises(Corrupt):
        list(rig.journal.newest())
    problems: list[Corrupt] = []
    assert [found.id for found in rig.journal.newest(problems.append)] == ["render-000001"]
    assert [error.key for error in problems] == ["upgrade/a-000001"]


def test_a_journal_that_goes_on_and_back_at_once_is_damaged(rig: Rig) -> None:
    entry = rig.begin()
    body = json.loads(entry.rollout.model_dump_json())
    body["steps"][0]["phase"] = "undone"
    with pytest.raises(Corrupt, match="on and back at once"):
        parse_rollout(json.dumps(body).encode(), "upgrade/render-000001")


def test_a_text_of_a_journal_is_one_line(rig: Rig) -> None:
    rollout = plan("render-000001", rig.olds, rig.new_of, 10, "").model_dump(mode="json")
    hostile = {"reason": "x\nboxlink: done", "driver": "\x1b[2J", "place": "h:/a  b\u2028 ", "proxy": "h:1"}
    found = parse_rollout(json.dumps({**rollout, **hostile}).encode(), "upgrade/render-000001")
    assert (found.reason, found.driver, found.place, found.proxy) == (
        "x\\nboxlink: done", "\\x1b[2J", "h:/a  b\\u2028 ", "h:1",
    )  # fmt: skip


def test_names_that_only_look_like_numbers_are_strangers(rig: Rig) -> None:
    rig.store.put("upgrade/render-²", b"x")
    rig.store.put("upgrade/render-x", b"x")
    assert rig.journal.open_of("render") is None
    assert rig.journal.find("render").next_id == "render-000001"


def test_nothing_to_replace_is_said(rig: Rig) -> None:
    with pytest.raises(Missing, match="no node of that role"):
        plan("render-000001", [], rig.new_of, 10, "")


def test_phases_are_journaled_before_they_are_carried_out(rig: Rig) -> None:
    entry = rig.begin()
    real = rig.fleet.start

    def start(spec: NodeSpec) -> None:
        read = rig.journal.read(entry.rollout.id)
        assert read is not None
        (step,) = (step for step in read.rollout.steps if step.new.node == spec.node)
        assert step.phase is Phase.STARTING
        real(spec)

    rig.fleet.start = start  # type: ignore[method-assign]
    assert rig.driver().run(entry).state is State.DONE
