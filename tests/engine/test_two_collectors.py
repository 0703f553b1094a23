"""Two collectors of one copy, of which one sleeps amid its sweep, and replications that bring back what is deleted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from synclib.clock import ManualClock, SeededEntropy
from synclib.core.lease import LEASE_S
from synclib.core.retention import Retention
from synclib.engine.collect import CollectResult, collect
from synclib.engine.compact import compact
from synclib.engine.head_swap import archive
from synclib.engine.host import Host, no_progress
from synclib.engine.replicate import ReplicateResult, replicate
from synclib.errors import Conflict, Fenced, Unavailable
from synclib.store.base import Body
from tests.kit import Kit

ALL, LAST = Retention(), Retention(last=1)
SLEEP_S = LEASE_S + 3600.0


class Copy:
    """A source with three seqs of which only the last needs what is newest, and a copy of it."""

    def __init__(self, place: Path) -> None:
        self.clock = ManualClock(1_800_000_000_000_000_000)
        self.source, self.target = Kit(place / "source"), Kit(place / "target", seed=5)
        for kit in (self.source, self.target):
            kit.host = self.host(place, "n1")
        for seq in range(1, 4):
            self.source.write({b"changing": b"%d" % seq * 100})
            self.source.publish()
        compact(self.source.dataset, self.source.host, no_progress, is_full=True)
        archive(self.source.dataset, self.source.host, self.source.dataset.read_head())
        self.collectors = [self.host(place, f"gc{number}") for number in range(2)]
        self.real_delete = self.target.store.delete

    def host(self, place: Path, name: str) -> Host:
        seed = sum(name.encode())
        return Host(name, self.clock, SeededEntropy(seed), place / name / "state", place / name / "cache")

    def gc(self, number: int, retention: Retention = LAST) -> CollectResult:
        return collect(self.target.dataset, self.collectors[number], retention, None, no_progress)

    def replicate(self) -> ReplicateResult:
        return replicate(self.source.dataset, self.target.dataset, self.source.host, None, no_progress)

    def at_first_delete(self, of: str, act: Callable[[], object], *, is_sent_first: bool = False) -> list[str]:
        """Before (or after) the first object of a kind is deleted ``act`` happens, once."""
        came: list[str] = []

        def delete(key: str, *, if_match: str | None = None) -> None:
            is_first = f"/{of}/" in key and not came
            if is_first:
                came.append(key)
            if is_first and not is_sent_first:
                act()
            self.real_delete(key, if_match=if_match)
            if is_first and is_sent_first:
                act()

        self.target.store.delete = delete  # type: ignore[method-assign]
        return came

    def whole_seqs(self) -> set[int]:
        """The seqs of the copy, each of which must be whole."""
        found = {seq for seq, _ in self.target.dataset.manifests()}
        for seq in found:
            assert not self.target.verify(seq).damage
        return found


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    copy = Copy(tmp_path)
    copy.replicate()
    assert copy.whole_seqs() == {1, 2, 3}
    return copy


@pytest.mark.parametrize("kind", ["manifest", "run", "pack"])
def test_what_a_sleeper_has_in_hand_does_not_come_back(copy: Copy, kind: str) -> None:
    """While it sleeps another one sweeps the same and ends; then the dataset is replicated."""

    def others() -> None:
        done = copy.gc(1)
        assert any(number for number, _ in done.swept.values())
        assert len(done.sweeping) == 1
        copy.replicate()
        assert copy.whole_seqs() == {3}

    came = copy.at_first_delete(kind, others)
    assert copy.gc(0).sweeping == []
    assert came
    assert copy.whole_seqs() == {3}
    assert copy.target.dataset.read_head().head.condemned == []
    copy.replicate()
    assert copy.whole_seqs() == {1, 2, 3}


def test_a_sleeper_finds_that_it_was_ended(copy: Copy) -> None:
    """Two days later, when all that it would still delete is back."""

    def others() -> None:
        for _ in range(3):
            copy.clock.advance(SLEEP_S)
            done = copy.gc(1)
        assert done.sweeping == []
        copy.replicate()
        assert copy.whole_seqs() == {1, 2, 3}

    copy.at_first_delete("manifest", others, is_sent_first=True)
    before = {info.key for info in copy.target.store.list("data/")}
    with pytest.raises(Fenced) as caught:
        copy.gc(0)
    assert "replicate into it" in caught.value.hint
    after = {info.key for info in copy.target.store.list("data/")}
    assert {key for key in before - after if "/intent/" not in key} == set()
    assert copy.whole_seqs() == {1, 2, 3}


class Killed(BaseException):
    pass


def test_a_sweep_that_came_between_the_look_and_the_clearing_is_seen(copy: Copy) -> None:
    """It takes its lease when the other has looked for sweeps already: the head has changed then."""
    real_put, came = copy.target.store.put, []

    def put(key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        # The second head of a collection is that with a list which is cleared.
        if key.endswith("/head"):
            came.append(key)
            if len(came) == 2:
                copy.target.store.put = real_put  # type: ignore[method-assign]
                sweep_until_killed(copy)
        return real_put(key, body, if_absent=if_absent, if_match=if_match)

    copy.target.store.put = put  # type: ignore[method-assign]
    done = copy.gc(0)
    assert len(came) == 2
    assert len(done.sweeping) == 1
    assert copy.target.dataset.read_head().head.condemned != []


def sweep_until_killed(copy: Copy) -> None:
    """A collection that is killed when it has said that it sweeps, and has replaced the head after that."""
    real = copy.target.store.put

    def put(key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        done = real(key, body, if_absent=if_absent, if_match=if_match)
        if key.endswith("/head"):
            raise Killed
        return done

    def delete(key: str, *, if_match: str | None = None) -> None:
        raise Killed

    copy.target.store.put, copy.target.store.delete = put, delete  # type: ignore[method-assign]
    try:
        with pytest.raises(Killed):
            copy.gc(1)
    finally:
        copy.target.store.put, copy.target.store.delete = real, copy.real_delete  # type: ignore[method-assign]


def test_a_delete_that_failed_may_still_arrive(copy: Copy) -> None:
    """So the sweep is not over with the command that sent it."""

    def lose() -> None:
        raise Unavailable("no answer")

    copy.at_first_delete("manifest", lose)
    with pytest.raises(Unavailable):
        copy.gc(0)
    copy.target.store.delete = copy.real_delete  # type: ignore[method-assign]
    assert len(copy.gc(1).sweeping) == 1
    copy.replicate()
    assert copy.whole_seqs() == {3}
    for _ in range(2):
        copy.clock.advance(SLEEP_S)
        done = copy.gc(1)
    assert done.sweeping == []
    copy.replicate()
    assert copy.whole_seqs() == {1, 2, 3}


@pytest.fixture
def begun(tmp_path: Path) -> Copy:
    """A copy of which the first replication was killed before any manifest."""
    copy = Copy(tmp_path)
    real = copy.target.store.put

    def put(key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        if "/manifest/" in key:
            raise Killed
        return real(key, body, if_absent=if_absent, if_match=if_match)

    copy.target.store.put = put  # type: ignore[method-assign]
    with pytest.raises(Killed):
        copy.replicate()
    copy.target.store.put = real  # type: ignore[method-assign]
    return copy


def test_a_first_replication_does_not_rely_on_what_is_being_swept(begun: Copy) -> None:
    def replicate_now() -> None:
        with pytest.raises(Conflict, match="being collected") as caught:
            begun.replicate()
        assert "/intent/" in caught.value.key

    came = begun.at_first_delete("pack", replicate_now)
    assert begun.gc(0).swept["packs"][0]
    assert came
    begun.replicate()
    assert begun.whole_seqs() == {1, 2, 3}


def test_a_first_replication_that_ended_before_the_sweep_is_seen(begun: Copy) -> None:
    """The collector has read that there is no head; then it sleeps, until there is one and no lease any more."""
    real, came = begun.target.store.put, []

    def put(key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        if "/intent/" in key and not came:
            came.append(key)
            begun.replicate()
        return real(key, body, if_absent=if_absent, if_match=if_match)

    begun.target.store.put = put  # type: ignore[method-assign]
    begun.gc(0, ALL)
    assert came
    assert begun.whole_seqs() == {1, 2, 3}
