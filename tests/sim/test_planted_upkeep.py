"""Bugs put into upkeep on purpose: collection, compaction, repacking, reverting, tags, replication."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from synclib.clock import ulid_text
from synclib.core.lease import Lease
from synclib.core.manifest import Head, RunRef
from synclib.core.names import intent_key, pack_key
from synclib.core.runfile import RunBuilder
from synclib.engine import collect, compact, repack, replicate, revert, tags
from synclib.engine.lease import Holder
from synclib.engine.sweep import Sweep
from synclib.lazy.dataset import HeadState
from synclib.lazy.merge import Moves, merge
from tests.sim.faults import Aim, Fault
from tests.sim.planted import found
from tests.sim.scale import TINY

Patch = pytest.MonkeyPatch


def test_leases_are_not_looked_at(monkeypatch: Patch) -> None:
    """Collection by reachability alone."""
    monkeypatch.setattr(collect._Collection, "_leases", lambda _: iter(()))
    found("I3:", keepers=2, nodes=0, upkeep="compact,drop", intents="early", first=70)


def test_leases_are_not_looked_at_again_after_the_condemnation(monkeypatch: Patch) -> None:
    real = collect._Collection._leases

    def leases(self: Any) -> Iterator[Any]:
        if not hasattr(self, "seen"):
            self.seen = list(real(self))
        return iter(self.seen)

    monkeypatch.setattr(collect._Collection, "_leases", leases)
    found("I3:", keepers=2, pinned=2, nodes=0, upkeep="compact,drop", first=20)


def test_the_head_is_not_read_again_after_a_lease_was_written(monkeypatch: Patch) -> None:
    """Its holder does not learn of what was condemned in between."""

    def take(self: Any, head: HeadState, *seqs: int, holds_all: bool = False) -> None:
        self._seqs, self._holds_all = sorted(seqs), holds_all
        self._put(is_new=not self.is_held)

    monkeypatch.setattr(Holder, "take", take)
    found("I3:", keepers=2, pinned=2, nodes=0, upkeep="compact,drop", first=30)


def test_what_is_held_is_taken_off_the_list(monkeypatch: Patch) -> None:
    """A second collector, that sees a lease, spares what the first one is about to delete."""
    real = collect._Collection._clear

    def clear(self: Any, gone: set[bytes]) -> None:
        real(self, {*gone, *self._dataset.read_head().head.condemned})

    monkeypatch.setattr(collect._Collection, "_clear", clear)
    found("no longer condemned", keepers=2, pinned=1, nodes=0, upkeep="compact,drop")


def test_a_commit_does_not_look_whether_its_intent_stands(monkeypatch: Patch) -> None:
    monkeypatch.setattr(Holder, "check", lambda _: None)
    found("I3:", Fault.STALL, keepers=2, nodes=0, upkeep="collect", intents="early", first=13)


def test_an_ended_lease_holds_nothing_any_more(monkeypatch: Patch) -> None:
    """At once, before its holder can know."""
    monkeypatch.setattr(Lease, "protects", lambda self, now_ns: not self.ended_at_ns)
    found("I3:", Fault.STALL, keepers=2, pinned=2, nodes=0, upkeep="compact,drop", first=79)


def test_a_compaction_of_diffs_drops_their_tombstones(monkeypatch: Patch) -> None:
    def merged(runs: Any, builder: Any, packs: Any, *, is_snap: bool) -> None:
        merge(runs, builder, packs, is_snap=True)

    monkeypatch.setattr(compact, "merge", merged)
    found("I4: seq", keepers=1, nodes=0, upkeep="compact")


def test_a_compaction_puts_back_the_chain_that_it_read(monkeypatch: Patch) -> None:
    real, read = compact.with_merged, {}

    def with_merged(state: HeadState, inputs: list[RunRef], run: RunRef) -> Head | None:
        return real(read.setdefault(run.ulid, state), inputs, run)

    monkeypatch.setattr(compact, "with_merged", with_merged)
    found("has no manifest", keepers=2, nodes=0, upkeep="compact", first=70)


def test_a_repack_moves_a_shared_chunk_for_one_file_only(monkeypatch: Patch) -> None:
    told: set[tuple[bytes, int]] = set()

    def moved(self: Moves, entry: Any) -> Any:
        kept = []
        for chunk in entry.chunks:
            place = chunk.pack, chunk.offset
            if place not in told:
                kept.append(self._moved(chunk))
            if chunk.pack in self.victims:
                told.add(place)
        return msgspec.structs.replace(entry, chunks=tuple(kept))

    monkeypatch.setattr(Moves, "moved", moved)
    found("size is not the sum", keepers=1, nodes=0, upkeep="repack")


def test_a_repack_deletes_the_old_packs_itself(monkeypatch: Patch) -> None:
    real = repack._Repacking._build

    def build(self: Any, head: Any, chain: Any, moves: Moves) -> RunRef:
        done = real(self, head, chain, moves)
        for pack in sorted(moves.victims):
            self._dataset.store.delete(pack_key(self._dataset.root, ulid_text(pack)))
        return done

    monkeypatch.setattr(repack._Repacking, "_build", build)
    found("I3:", keepers=1, nodes=0, upkeep="repack")


def test_the_copy_gets_its_head_first(monkeypatch: Patch) -> None:
    real = replicate._Replication._manifests_to_copy

    def manifests(self: Any, there: HeadState, head: HeadState, *others: Any) -> Any:
        self._put_head(there, head, set())
        return real(self, there, head, *others)

    monkeypatch.setattr(replicate._Replication, "_manifests_to_copy", manifests)
    found("I3:", copies=1, nodes=0)


def test_the_copy_relies_on_what_is_condemned_there(monkeypatch: Patch) -> None:
    """As it once was."""
    monkeypatch.setattr(
        replicate._Replication,
        "_manifests_to_copy",
        lambda self, there, head, history, result: [item for found in history.values() for item in found],
    )
    found("I3:", copies=1, nodes=0, upkeep="compact,drop,replicate", first=15)


def test_a_tag_is_set_without_the_head(monkeypatch: Patch) -> None:
    monkeypatch.setattr(tags, "update_head", lambda *_: None)
    found("I3:", keepers=3, nodes=0, upkeep="tag,drop", first=61)


def test_packs_are_deleted_before_the_manifests_that_name_them(monkeypatch: Patch) -> None:
    def backwards(items: Any, key: Any = None) -> list[Any]:
        return sorted(items, key=key, reverse=key is not None)

    monkeypatch.setattr(collect, "sorted", backwards, raising=False)
    found("I3:", keepers=1, nodes=0, upkeep="compact,drop")


def test_a_revert_does_not_hold_the_seq_that_it_brings_back(monkeypatch: Patch) -> None:
    """A collection that does not keep it deletes its packs meanwhile."""

    class HeadOnly(Holder):
        def take(self, head: HeadState, *seqs: int, holds_all: bool = False) -> None:
            super().take(head, head.manifest.seq, holds_all=holds_all)

    monkeypatch.setattr(revert, "intent", lambda dataset, host: HeadOnly(dataset, host, intent_key))
    aim = Aim("keeper", "put", "/run/")
    found("I3: the head", Fault.SLOW, keepers=3, nodes=0, upkeep="compact,revert,drop", aim=aim, first=36)


def test_a_replication_does_not_hold_what_it_brings(monkeypatch: Patch) -> None:
    """The copy's collector finds runs and packs that nothing there leads to yet."""

    class OwnOnly(Holder):
        def take(self, head: HeadState, *seqs: int, holds_all: bool = False) -> None:
            super().take(head, *seqs)

    monkeypatch.setattr(replicate, "intent", lambda dataset, host: OwnOnly(dataset, host, intent_key))
    found("I3:", copies=1, nodes=0, upkeep="drop,replicate", first=6)


def test_a_replication_does_not_look_whether_its_claim_stands(monkeypatch: Patch) -> None:
    class Trusting(Holder):
        def check(self) -> None:
            """Nobody can have ended it."""

    monkeypatch.setattr(replicate, "intent", lambda dataset, host: Trusting(dataset, host, intent_key))
    aim = Aim("replicator", "put", "/run/")
    found("I3:", Fault.STALL, copies=1, nodes=0, upkeep="drop,replicate", aim=aim)


def test_a_copied_block_keeps_the_pack_numbers_of_its_former_run(monkeypatch: Patch) -> None:
    real = RunBuilder.copy

    def copy(self: Any, info: Any, packs: Any, stored: Any, hashes: Any) -> None:
        real(self, info, packs, stored, hashes)
        numbers = [number for number in info.packs if number < len(self._table.infos)]
        if len(numbers) == len(info.packs):
            self._blocks[-1] = msgspec.structs.replace(self._blocks[-1], packs=numbers)

    monkeypatch.setattr(RunBuilder, "copy", copy)
    found("a chunk", keepers=1, nodes=0, upkeep="compact", scale=TINY)


def test_a_run_that_ends_with_a_copied_block_ends_where_that_begins(monkeypatch: Patch) -> None:
    """What comes after the block's first key is not found in it."""
    monkeypatch.setattr(RunBuilder, "end_at", lambda *_: None)
    found("the blocks of a run overlap", keepers=1, nodes=0, upkeep="compact", scale=TINY)


def test_what_another_one_still_sweeps_leaves_the_list(monkeypatch: Patch) -> None:
    """As it once was: a replication brings it back, and the other, who was slow, deletes it."""
    monkeypatch.setattr(Sweep, "others", lambda _: [])
    aim = Aim("copykeeper", "delete", "/")
    found("I3:", Fault.SLOW, copies=1, copykeepers=2, nodes=0, upkeep="drop,replicate", aim=aim, first=16)
