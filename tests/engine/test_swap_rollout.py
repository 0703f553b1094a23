"""Swaps of volumes driven to their end, whatever happens to the driver: nodes as a model, all the rest real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from synclib.clock import ManualClock, SeededEntropy
from synclib.core.names import node_key, swap_key
from synclib.core.registration import NodeStatus
from synclib.core.rollout import NodeSpec, Rollout, State, View
from synclib.core.swap import WISH_BYTES_MAX, Wish, parse_wish
from synclib.engine.host import Host
from synclib.engine.rollout import Driver, plan
from synclib.engine.rollout_journal import Entry, Journal
from synclib.errors import Conflict, Missing
from synclib.store.memory import MemoryStore
from tests.engine.test_rollout import READY_S, Away, Killed
from tools.fleet.readiness import Readiness
from tools.fleet.swap_fleet import SwapFleet, keep, standing

OLD, NEW = "snap-0001", "snap-0002"
SWAP_S = 3.0


class Nodes:
    """They see wishes when they are looked at, and have carried them out some seconds later. ``broken``: who cannot
    attach a volume of the new snapshot, goes on with the old one, and says so."""

    def __init__(self, store: Away, names: Sequence[str]) -> None:
        self.store, self.names, self.broken = store, names, set[str]()
        self.asked: list[tuple[str, str]] = []
        self._since: dict[str, tuple[str, float]] = {}
        for name in names:
            self._say(name, "", OLD)

    def look(self, specs: Sequence[NodeSpec]) -> Mapping[str, View]:
        for name in self.names:
            self._react(name)
        return {spec.node: View(is_there=True, is_ready=True, why="") for spec in specs}

    def stands_on(self) -> list[str]:
        return [standing(self.store, NodeSpec(node=name, role="render"), "covers").snapshot for name in self.names]

    def _react(self, name: str) -> None:
        try:
            found = MemoryStore.get(self.store, swap_key(name), size_max=WISH_BYTES_MAX)
        except Missing:
            return
        assert found is not None
        wish, now = parse_wish(found.data, swap_key(name)), self.store.clock.monotonic()
        former, since = self._since.get(name, ("", 0.0))
        if former != wish.id:
            self._since[name] = wish.id, now
            self.asked.append((name, wish.snapshot))
        elif now - since > SWAP_S:
            is_broken = wish.snapshot == NEW and name in self.broken
            error = "corrupt: the volume holds something else" if is_broken else ""
            self._say(name, wish.id, OLD if is_broken else wish.snapshot, error)

    def _say(self, name: str, swap: str, snapshot: str, error: str = "") -> None:
        seq = 1 if snapshot == OLD else 2
        status = NodeStatus(
            swap=swap,
            seq={"covers": seq},
            reason={"covers": f"from snapshot {snapshot}, seq {seq}"},
            errors={"covers": error} if error else {},
            at="",
        )
        MemoryStore.put(self.store, node_key(name), status.model_dump_json().encode())


class Rig:
    def __init__(self, place: Path) -> None:
        self.clock = ManualClock()
        self.store = Away(self.clock)
        self.host = Host("operator", self.clock, SeededEntropy(1), place, place)
        self.nodes = Nodes(self.store, ["n1", "n2", "n3"])
        self.journal = Journal(self.store, self.host)

    def begin(self) -> Entry:
        olds = [
            standing(self.store, NodeSpec(node=name, role="render", pins={"covers": 1}), "covers")
            for name in self.nodes.names
        ]

        def new_of(old: NodeSpec) -> NodeSpec:
            return old.model_copy(update={"pins": {"covers": 2}, "snapshot": NEW})

        return self.journal.create(plan(self.journal.find("render").next_id, olds, new_of, 1, "", "", "covers"))

    def run(self, entry: Entry | None = None) -> Rollout:
        """To its end, as `boxlink upgrade` does; ``entry``: one that somebody else began."""
        is_new = entry is None
        entry = entry or self.begin()
        readiness = Readiness(self.store, None)
        fleet = SwapFleet(entry.rollout.id, "covers", self.store, readiness, self.nodes.look, self.clock)
        driver = Driver(self.journal, fleet, self.host, lambda *_: None, ready_s_max=READY_S, bake_s=0)
        done = driver.run(entry if is_new else driver.take(entry))
        fleet.keep(done)
        return done

    def goes_on(self) -> Rollout:
        """What the same command does again."""
        entry = self.journal.open_of("render")
        if entry is not None or not list(self.store.list("upgrade/")):
            return self.run(entry)
        for name in self.nodes.names:
            keep(self.store, name, "render-000001")
        last = self.journal.read("render-000001")
        assert last is not None
        return last.rollout

    def is_kept(self) -> list[bool]:
        keys = [info.key for info in self.store.list("swap/")]
        found = [self.store.get(key, size_max=WISH_BYTES_MAX) for key in keys]
        return [parse_wish(one.data, "").is_kept for one in found if one is not None]


def test_one_after_the_other(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    done = rig.run()
    assert done.state is State.DONE
    assert rig.nodes.asked == [("n1", NEW), ("n2", NEW), ("n3", NEW)]
    assert rig.nodes.stands_on() == [NEW] * 3
    assert rig.is_kept() == [True] * 3, "the former volumes may go"
    assert [step.downtime_ms for step in done.steps] == [None] * 3, "nobody knew where to ask"


def test_one_that_cannot_takes_all_back(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.nodes.broken.add("n2")
    done = rig.run()
    assert done.state is State.ROLLED_BACK
    assert "n2 did not go on with the new volume: corrupt: the volume holds something else" in done.reason
    assert rig.nodes.asked == [("n1", NEW), ("n2", NEW), ("n2", OLD), ("n1", OLD)]
    assert rig.nodes.stands_on() == [OLD] * 3


@pytest.mark.parametrize("broken", ["", "n2"])
def test_a_driver_that_is_killed_anywhere_is_followed_by_another(tmp_path: Path, broken: str) -> None:
    """At every call of the store, before it and after it was applied; then the same command."""
    for number in range(2000):
        rig = Rig(tmp_path)
        rig.nodes.broken |= {broken} - {""}
        rig.store.calls_left = number
        try:
            rig.run()
        except Killed:
            pass
        else:
            assert number > 20, "it was killed somewhere"
            return
        rig.store.calls_left = None
        done = rig.goes_on()
        rig.nodes.look([])
        assert done.state is (State.ROLLED_BACK if broken else State.DONE), number
        assert rig.nodes.stands_on() == [OLD if broken else NEW] * 3, number
        assert all(rig.is_kept()), number
        asked = [name for name, snapshot in rig.nodes.asked if snapshot == NEW]
        assert len(set(asked)) == len(asked), "nobody was asked twice"
    raise AssertionError("it takes more steps than that?")


def test_a_node_that_is_asked_for_something_else_meanwhile_takes_all_back(tmp_path: Path) -> None:
    """Whoever asked it is named; what another asked is never marked as kept."""
    rig = Rig(tmp_path)
    entry = rig.begin()
    other = Wish(id="render-000009:snap-0003:3", dataset="covers", seq=3, snapshot="snap-0003")
    real = rig.nodes.look

    def look(specs: Sequence[NodeSpec]) -> Mapping[str, View]:
        if ("n1", NEW) in rig.nodes.asked and len(rig.nodes.asked) == 1:
            MemoryStore.put(rig.store, swap_key("n1"), other.model_dump_json().encode())
        return real(specs)

    rig.nodes.look = look  # type: ignore[method-assign]
    done = rig.run(entry)
    assert done.state is State.ROLLED_BACK
    assert done.reason == f"n1: it was asked for something else meanwhile: {other.id}"
    assert rig.nodes.stands_on() == [OLD] * 3


def test_what_another_asked_is_not_kept_by_an_earlier_one(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.run()
    other = Wish(id="render-000002:snap-0003:3", dataset="covers", seq=3, snapshot="snap-0003")
    rig.store.put(swap_key("n1"), other.model_dump_json().encode())
    keep(rig.store, "n1", "render-000001")
    assert rig.is_kept() == [False, True, True]
    keep(rig.store, "n1", "render-000002")
    assert rig.is_kept() == [True] * 3


def test_a_node_without_a_volume_is_refused(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    status = NodeStatus(seq={"covers": 1}, reason={"covers": "from the store: no"}, at="")
    rig.store.put(node_key("n2"), status.model_dump_json().encode())
    with pytest.raises(Conflict, match="n2 takes the bytes of covers from no volume"):
        rig.begin()
