"""A replication from a source of which not all is there: it carries what is whole, and says what it left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from synclib.core.retention import Retention
from synclib.engine.collect import CollectResult, collect
from synclib.engine.compact import compact
from synclib.engine.head_swap import archive
from synclib.engine.host import no_progress
from synclib.engine.replicate import ReplicateResult, replicate
from synclib.engine.tags import delete_tag, set_tag, tags
from synclib.errors import Missing
from synclib.lazy.dataset import STORE_KEY
from synclib.store.open import open_store, prepare_store
from tests.kit import Kit, read_tree

ALL, LAST = Retention(), Retention(last=1)


def file_kit(place: Path, seed: int) -> Kit:
    place.mkdir(parents=True)
    url = f"file://{place}/store"
    prepare_store(url, {})
    store, _ = open_store(url, {})
    store.put(STORE_KEY, b"{}")
    return Kit(place, store, seed=seed)


class Pair:
    def __init__(self, place: Path) -> None:
        self.source, self.target = file_kit(place / "source", 1), file_kit(place / "target", 5)

    def publish(self, *contents: bytes) -> list[set[str]]:
        """A seq for each, which has that and the first one; the packs that came with it."""
        came: list[set[str]] = []
        there: set[str] = set()
        for content in contents:
            self.source.write({b"kept": contents[0] * 100, b"own": content * 200})
            self.source.publish()
            packs = {info.key for info in self.source.store.list("data/covers/pack/")}
            came.append(packs - there)
            there = packs
        compact(self.source.dataset, self.source.host, no_progress, is_full=True)
        archive(self.source.dataset, self.source.host, self.source.dataset.read_head())
        return came

    def manifest_objects(self, seq: int) -> dict[str, bytes]:
        found = {}
        for number, key in self.source.dataset.manifests():
            if number == seq:
                fetched = self.source.store.get(key, size_max=1 << 20)
                assert fetched is not None
                found[key] = fetched.data
        return found

    def put_late(self, *seqs: int) -> None:
        """Manifests of seqs that are written when a collection has swept them."""
        late = [self.manifest_objects(seq) for seq in seqs]
        self.gc(LAST)
        assert {seq for seq, _ in self.source.dataset.manifests()}.isdisjoint(seqs)
        for found in late:
            for key, data in found.items():
                self.source.store.put(key, data)

    def gc(self, retention: Retention = ALL) -> CollectResult:
        return collect(self.source.dataset, self.source.host, retention, None, no_progress)

    def replicate(self, *, is_dry_run: bool = False) -> ReplicateResult:
        return replicate(
            self.source.dataset, self.target.dataset, self.source.host, None, no_progress, is_dry_run=is_dry_run
        )

    def whole_seqs(self) -> set[int]:
        found = {seq for seq, _ in self.target.dataset.manifests()}
        for seq in found:
            assert not self.target.verify(seq).damage
        return found

    def lose(self, key: str) -> bytes:
        data = self.source.store.get_suffix(key, 1 << 20).data
        self.source.store.delete(key)
        return data


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    return Pair(tmp_path)


def test_a_manifest_that_came_late_is_left_out(pair: Pair, tmp_path: Path) -> None:
    pair.publish(b"1", b"2")
    pair.put_late(1)
    dry = pair.replicate(is_dry_run=True)
    done = pair.replicate()
    assert done.left_out == dry.left_out
    assert [(left.seq, left.is_damage) for left in done.left_out] == [(1, False)]
    assert "gc clears" in done.left_out[0].why
    assert pair.whole_seqs() == {2}
    pair.target.restore(tmp_path / "out")
    assert read_tree(tmp_path / "out") == {b"kept": b"1" * 100, b"own": b"2" * 200}
    assert pair.gc().kept_seqs == [2]
    assert pair.replicate().left_out == []


def test_several_that_came_late_and_lack_the_same(pair: Pair) -> None:
    """Each of them names what the other names too, and all of that is gone: it is not damage, and gc clears it away."""
    pair.source.write({b"shared": b"s" * 100, b"kept": b"k" * 100})
    pair.source.publish()
    pair.source.write({b"shared": b"s" * 100, b"kept": b"k" * 100, b"more": b"m" * 100})
    pair.source.publish()
    pair.source.write({b"kept": b"k" * 100, b"last": b"l" * 100})
    pair.source.publish(allow_delete=True)
    compact(pair.source.dataset, pair.source.host, no_progress, is_full=True)
    archive(pair.source.dataset, pair.source.host, pair.source.dataset.read_head())
    pair.put_late(1, 2)
    assert [(left.seq, left.is_damage) for left in pair.replicate().left_out] == [(1, False), (2, False)]
    assert pair.whole_seqs() == {3}
    assert pair.gc().kept_seqs == [3]
    assert pair.replicate().left_out == []


def test_an_older_seq_that_is_damaged_is_named_and_the_others_are_carried(pair: Pair) -> None:
    _, second, _ = pair.publish(b"1", b"2", b"3")
    set_tag(pair.source.dataset, pair.source.host, "golden", 2)
    set_tag(pair.source.dataset, pair.source.host, "first", 1)
    (lost,) = second
    data = pair.lose(lost)
    done = pair.replicate()
    assert [(left.seq, left.is_damage) for left in done.left_out] == [(2, True)]
    assert lost in done.left_out[0].why
    assert pair.whole_seqs() == {1, 3}
    assert tags(pair.target.dataset).keys() == {"first"}
    # A collection takes nothing of it, and what is put back is carried.
    assert pair.gc().kept_seqs == [1, 2, 3]
    pair.source.store.put(lost, data)
    assert pair.replicate().left_out == []
    assert pair.whole_seqs() == {1, 2, 3}
    assert tags(pair.target.dataset).keys() == {"first", "golden"}


def test_a_run_that_is_lost_is_named(pair: Pair) -> None:
    """One that two seqs need, of which the second has a run of its own: no collection takes such a one."""
    pair.publish(b"1", b"2", b"3")
    run = pair.source.dataset.manifest_at(1).runs[0].key("data/covers")
    pair.lose(run)
    # The machine that published has a copy of it; another one has not.
    done = replicate(pair.source.dataset, pair.target.dataset, pair.target.host, None, no_progress)
    assert [(left.seq, left.why) for left in done.left_out] == [(1, f"{run} is lost"), (2, f"{run} is lost")]
    assert pair.whole_seqs() == {3}
    with pytest.raises(Missing):
        pair.gc()


def test_what_the_head_needs_has_to_be_there(pair: Pair) -> None:
    first, _ = pair.publish(b"1", b"2")
    (lost,) = first
    data = pair.lose(lost)
    with pytest.raises(Missing) as caught:
        pair.replicate()
    assert caught.value.key == lost
    with pytest.raises(Missing):
        pair.target.dataset.read_head()
    pair.source.store.put(lost, data)
    pair.replicate()
    # What the copy has already it does not need again.
    pair.lose(lost)
    assert not pair.replicate().is_new
    assert pair.whole_seqs() == {1, 2}


def test_what_is_collected_while_it_is_copied_is_left_out(pair: Pair) -> None:
    """It was listed, and is gone when it is to be copied: the replication begins once more."""
    pair.publish(b"1", b"2", b"3")
    # The longer chain of the newest seq, which holds all packs, goes before.
    for seq in (1, 2):
        set_tag(pair.source.dataset, pair.source.host, f"t{seq}", seq)
    pair.gc(LAST)
    for seq in (1, 2):
        delete_tag(pair.source.dataset, f"t{seq}")
    real = pair.target.store.put
    came: list[CollectResult] = []

    def put(key: str, body: object, **conditions: object) -> str:
        if "/pack/" in key and not came:
            came.append(pair.gc(LAST))
        return real(key, body, **conditions)  # type: ignore[arg-type]

    pair.target.store.put = put  # type: ignore[method-assign]
    # From a machine that has no copies of the runs.
    replicate(pair.source.dataset, pair.target.dataset, pair.target.host, None, no_progress)
    assert came[0].dropped_seqs == [1, 2]
    assert pair.whole_seqs() == {3}
