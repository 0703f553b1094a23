"""Bugs put in on purpose: the simulation finds each within a few seeds, and says what it breaks."""

from __future__ import annotations

import os
from typing import Any

import pytest

from synclib.core import zstd
from synclib.core.entry import ChunkRef, Codec, Kind
from synclib.core.node import Do
from synclib.disk.base import BaseFile
from synclib.disk.tree import Tree as DiskTree
from synclib.engine import commit, fetch_job, follow, head_swap, publish, restore, standing
from synclib.engine.lease import Holder
from synclib.errors import BoxlinkError, Conflict
from synclib.lazy import changes
from synclib.lazy.run_reader import block_id
from synclib.store.base import Body
from synclib.store.retry import RetryStore
from tests.sim.faults import Fault
from tests.sim.history import HEAD
from tests.sim.planted import found
from tests.sim.scale import TINY

Patch = pytest.MonkeyPatch


def test_the_head_is_written_without_a_condition(monkeypatch: Patch) -> None:
    real = RetryStore.put

    def put(store: RetryStore, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        if key == HEAD:
            return real(store, key, body)
        return real(store, key, body, if_absent=if_absent, if_match=if_match)

    monkeypatch.setattr(RetryStore, "put", put)
    found("I5: a head of seq", first=10)


def test_the_base_is_ignored(monkeypatch: Patch) -> None:
    """The dataset becomes the directory: what others added is deleted."""
    monkeypatch.setattr(publish._Publication, "_base_of", lambda *_: None)
    found("I4: seq")


def test_a_directory_goes_though_others_have_put_something_into_it(monkeypatch: Patch) -> None:
    """What a publish deletes is deleted without a look at what the head has there by now."""
    monkeypatch.setattr(commit, "_keeps_others", lambda *_: False)
    found("I4: seq")


def test_a_lost_answer_is_taken_for_a_lost_race(monkeypatch: Patch) -> None:
    """One's own commit is not recognised: its run is deleted, though the head names it."""
    monkeypatch.setattr(commit.Commit, "_find_own", lambda *_: None)
    found("I3:", Fault.OWN_CONFLICT)


def test_a_conditional_write_is_repeated_blindly(monkeypatch: Patch) -> None:
    """As a client library does: its own first try is what the second one meets."""
    real = RetryStore.put

    def put(store: RetryStore, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        for _ in range(3):
            try:
                return real(store, key, body, if_absent=if_absent, if_match=if_match)
            except BoxlinkError as error:
                last = error
        raise last

    monkeypatch.setattr(RetryStore, "put", put)
    monkeypatch.setattr(commit.Commit, "_find_own", lambda *_: None)
    found("I3:", Fault.AFTER)


def test_a_try_that_may_still_arrive_is_forgotten(monkeypatch: Patch) -> None:
    """The run of a write whose answer was lost is deleted, and the write then arrives."""
    real = commit.Commit._find_own

    def find(self: commit.Commit, head: Any) -> Any:
        own = real(self, head)
        if own is None:
            for _, ref in self._tried.values():
                self._dataset.store.delete(ref.key(self._dataset.root))
        return own

    monkeypatch.setattr(commit.Commit, "_find_own", find)
    found("I3:", Fault.LATE)


def test_a_failure_after_the_commit_is_told_as_a_failure(monkeypatch: Patch) -> None:
    """That of the first manifest's object."""
    monkeypatch.setattr(
        commit.Commit,
        "_put_first",
        lambda self, head: head_swap.put_manifest(self._dataset, head.head.manifest),
    )
    found("says that it failed", Fault.REFUSED, first=16)


def test_the_old_head_leaves_no_manifest(monkeypatch: Patch) -> None:
    monkeypatch.setattr(head_swap, "_with_former", lambda _, new: new)
    found("has no manifest")


def test_former_manifests_leave_the_head_before_they_are_objects(monkeypatch: Patch) -> None:
    monkeypatch.setattr(head_swap, "put_manifest", lambda *_: None)
    found("has no manifest")


def test_a_head_of_another_epoch_is_replaced_without_an_intent(monkeypatch: Patch) -> None:
    """What was uploaded is being collected by then."""
    monkeypatch.setattr(Holder, "check_head", lambda *_: None)
    found("I3:", Fault.BURST, Fault.STALL, keepers=2, nodes=0, upkeep="collect", intents="late", first=136)


def test_the_base_is_noted_before_the_commit(monkeypatch: Patch) -> None:
    """A publish that then fails has lost its changes: the next one takes them for published."""
    real = publish._Publication._write

    def write(self: Any, head: Any, head_chain: Any, base_chain: Any, cache: Any, index: Any) -> Any:
        where = BaseFile(self._host.state, self._dataset.store.url, self._dataset.root, self._directory)
        if head.manifest.seq:
            where.write(head.manifest.seq, head.manifest.digest, head.manifest.runs, is_whole=True)
        return real(self, head, head_chain, base_chain, cache, index)

    monkeypatch.setattr(publish._Publication, "_write", write)
    found("base is not what it may be", Fault.BURST, Fault.KILL)


@pytest.mark.parametrize(("fault", "first"), [(Fault.FLIPPED, 2), (Fault.TRUNCATED, 5)])
def test_chunks_are_not_verified(fault: Fault, first: int, monkeypatch: Patch) -> None:
    def trusting(chunk: ChunkRef, stored: bytes | memoryview) -> bytes | memoryview:
        return stored if chunk.codec == Codec.RAW else zstd.decompress(stored, chunk.plain_bytes)

    monkeypatch.setattr(fetch_job, "decode_chunk", trusting)
    found("I6:", fault, first=first)


def test_the_answer_comes_before_the_bytes(monkeypatch: Patch) -> None:
    real = follow.Follower._act

    def act(self: Any, action: Do, seen: Any, target: Any, active: Any) -> None:
        if action is Do.RESTORE:
            self._answer(target.seq, target.digest, active)
        real(self, action, seen, target, active)

    monkeypatch.setattr(follow.Follower, "_act", act)
    found("I1:")


def test_the_answer_stays_while_files_change(monkeypatch: Patch) -> None:
    monkeypatch.setattr(follow.Follower, "_withdraw", lambda _: None)
    monkeypatch.setattr(restore._Restoration, "_withdraw", lambda _: None)
    found("I1:")


def test_a_restore_is_noted_as_done_before_it_is(monkeypatch: Patch) -> None:
    real = standing.Standing.begin

    def begin(self: Any) -> Any:
        abandoned = real(self)
        self.end()
        return abandoned

    monkeypatch.setattr(standing.Standing, "begin", begin)
    found("base is not what it may be", Fault.BURST)


def test_files_are_written_in_place(monkeypatch: Patch) -> None:
    """Bytes come under the final name, and are torn when the second half does not come."""

    def write(self: DiskTree, entry: Any, pieces: Any) -> None:
        parent = self.directory(entry.directory)
        target = os.open(entry.name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=parent)
        try:
            for piece in pieces:
                os.write(target, piece[:1])
                os.link(b"/proc/self/fd/%d" % target, entry.name + b"~", dst_dir_fd=parent)
                os.unlink(entry.name + b"~", dir_fd=parent)
                os.write(target, piece[1:])
            os.fchmod(target, entry.mode)
            os.utime(target, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(target)

    monkeypatch.setattr(DiskTree, "write_file", write)
    found("I6:")


def test_links_are_followed(monkeypatch: Patch) -> None:
    """A directory that was a link out of the dataset is written through."""

    def directory(self: DiskTree, path: bytes) -> int:
        if not path:
            return self._root
        if path not in self._open:
            self._open[path] = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root)
        return self._open[path]

    real_make = DiskTree.make_directory

    def make(self: DiskTree, entry: Any) -> None:
        if entry.kind == Kind.DIRECTORY and os.path.isdir(os.path.join(self.top, entry.path)):
            return
        real_make(self, entry)

    monkeypatch.setattr(DiskTree, "directory", directory)
    monkeypatch.setattr(DiskTree, "make_directory", make)
    found("I9:", nodes=2, first=43)


def test_an_error_ends_following(monkeypatch: Patch) -> None:
    """The pause after an error never ends."""
    monkeypatch.setattr(follow, "_ERROR_DELAY_MAX_S", 1e9)
    monkeypatch.setattr(follow, "_ERROR_DELAY_S", 1e9)
    found("I8:", Fault.BURST, Fault.REFUSED, first=3)


def test_an_older_head_is_believed(monkeypatch: Patch) -> None:
    """A cache on the way answers with the head as it was before the last change."""
    real = follow.decide

    def decide(seen: Any) -> Do:
        try:
            return real(seen)
        except Conflict:
            return Do.RESTORE

    monkeypatch.setattr(follow, "decide", decide)
    found("I2:", Fault.STALE, first=17)


def test_a_pack_is_as_large_as_what_is_published() -> None:
    """It is in memory, all of it, until it is sent."""
    found("I10:", scale=TINY._replace(pack_bytes=1 << 30), first=5)


def test_equal_blocks_are_taken_for_unchanged(monkeypatch: Patch) -> None:
    """Whatever their order: as it once was."""

    def blocks(chain: Any) -> set[bytes]:
        return {block_id(info) for run in chain.runs for info in run.tail.blocks}

    monkeypatch.setattr(changes, "_shared", lambda old, new: blocks(old) & blocks(new))
    found("I1:", first=147)


def test_the_first_try_is_laid_again_in_place_of_the_difference(monkeypatch: Patch) -> None:
    """As it once was: what the head of the first try had already is lost with the second."""
    real = commit.Commit._lay_kept

    def lay(self: Any, ref: Any, *arguments: Any) -> Any:
        delta, self.delta = self.delta, ref
        try:
            return real(self, ref, *arguments)
        finally:
            self.delta = delta

    monkeypatch.setattr(commit.Commit, "_lay_kept", lay)
    found("I4: seq", Fault.LATE, Fault.STALL, Fault.CONFLICT, first=70)
