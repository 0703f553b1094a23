"""The reference model: a dict of path -> content for each seq. Whatever publishers do, every seq restores exactly.

Two publishers with a directory each, on one store; a follower that is brought along now and then; faults of the store
at any write (error before, error after it was applied). Base semantics are the model's own three-way merge.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from synclib.core.treehash import TreeHash
from synclib.errors import Ambiguous, BoxlinkError, Conflict, Unavailable
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import STORE_KEY
from synclib.lazy.run_reader import StoreRuns
from synclib.store.base import Body, Buffer, Fetched, ObjectInfo
from synclib.store.memory import MemoryStore
from tests.kit import Content, Kit, read_tree

NAMES = [b"a", b"b", b"d", b"d/x", b"d/y", b"d/e", b"d/e/z", b"d!", b"\xff"]
VALUES = [b"", b"1", b"22" * 40, ("link", b"a"), None]


class FaultyStore:
    """Fails the n-th write from now: before it is applied, or after (the answer is lost)."""

    def __init__(self, store: MemoryStore) -> None:
        self.url = store.url
        self.store = store
        self.countdown: int | None = None
        self.is_after = False

    def _write(self, apply: Callable[[], str], is_conditional: bool) -> str:
        if self.countdown is None or self.countdown > 0:
            self.countdown = None if self.countdown is None else self.countdown - 1
            return apply()
        self.countdown = None
        error = Ambiguous("the answer was lost") if is_conditional else Unavailable("broken")
        if self.is_after:
            apply()
        raise error

    def get(self, key: str, *, size_max: int, if_none_match: str | None = None) -> Fetched | None:
        return self.store.get(key, size_max=size_max, if_none_match=if_none_match)

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        return self.store.get_ranges(key, ranges)

    def get_suffix(self, key: str, length: int) -> Fetched:
        return self.store.get_suffix(key, length)

    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        is_conditional = if_absent or if_match is not None
        return self._write(lambda: self.store.put(key, body, if_absent=if_absent, if_match=if_match), is_conditional)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        self.store.delete(key, if_match=if_match)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        return self.store.list(prefix, after=after)


def merge(base: Content, mine: Content, theirs: Content) -> Content:
    """Three-way: what changed between base and mine, laid on theirs; the tree stays a tree."""
    result = dict(theirs)
    changed = {path for path in {*base, *mine} if base.get(path, "absent") != mine.get(path, "absent")}
    for path in sorted(changed):
        if path not in mine:
            result.pop(path, None)
    for path in sorted(changed & set(mine)):
        result[path] = mine[path]
    for path in sorted(result):
        parts = path.split(b"/")
        for depth in range(1, len(parts)):
            parent = b"/".join(parts[:depth])
            if parent in mine and mine[parent] is not None and parent in changed:
                result.pop(path, None)  # mine made a file or link of it: what lay below goes
                break
            result[parent] = None
    return result


class Publisher:
    def __init__(self, place: Path, store: FaultyStore, seed: int) -> None:
        self.kit = Kit(place, store, seed=seed)  # type: ignore[arg-type]
        self.base: Content | None = None


class Chains(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.place = tempfile.TemporaryDirectory()
        top = Path(self.place.name)
        self.memory = MemoryStore()
        self.memory.put(STORE_KEY, b"{}")
        self.store = FaultyStore(self.memory)
        self.publishers = [Publisher(top / str(number), self.store, number) for number in (1, 2)]
        self.history: list[Content] = [{}]
        self.follower = Kit(top / "follower", self.memory, seed=9)
        self.follower_target = top / "follower/out"

    @rule(
        who=st.sampled_from([0, 1]),
        content=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VALUES), max_size=7),
    )
    def write(self, who: int, content: Content) -> None:
        tree: Content = {}
        for path, value in sorted(content.items()):
            parts = path.split(b"/")
            parents = [b"/".join(parts[:depth]) for depth in range(1, len(parts))]
            if all(tree.get(parent, None) is None for parent in parents):
                tree.update(dict.fromkeys(parents))
                tree[path] = value
        kit = self.publishers[who].kit
        kit.write(tree)
        for path, value in tree.items():
            # Equal content has equal times here: a new time alone is a change too, which the model does not know.
            full = os.path.join(os.fsencode(kit.directory), path)
            os.utime(full, (0, zlib.crc32(repr(value).encode())), follow_symlinks=False)

    @rule(who=st.sampled_from([0, 1]), fault=st.none() | st.tuples(st.integers(0, 5), st.booleans()))
    def publish(self, who: int, fault: tuple[int, bool] | None) -> None:
        publisher = self.publishers[who]
        mine = read_tree(publisher.kit.directory)
        before = self.seq()
        self.store.countdown, self.store.is_after = fault if fault is not None else (None, False)
        result = None
        try:
            result = publisher.kit.publish(allow_delete=True)
        except (Unavailable, Conflict):
            assert fault is not None
        except BoxlinkError:
            raise
        finally:
            self.store.countdown = None
        after = self.seq()
        head = self.history[-1]
        base = head if publisher.base is None else publisher.base
        if after > before:
            assert after == before + 1
            self.history.append(merge(base, mine, head))
        else:
            assert result is None or merge(base, mine, head) == head
        if result is not None:
            publisher.base = mine

    @rule(who=st.sampled_from([0, 1]))
    def restore_in_place(self, who: int) -> None:
        """A publisher takes the head: its directory and its base are then the head."""
        publisher = self.publishers[who]
        if self.seq():
            assert publisher.kit.restore(publisher.kit.directory, is_delete=True).problems == []
            publisher.base = self.history[-1]
            assert read_tree(publisher.kit.directory) == self.history[-1]

    @rule(seq=st.integers(1, 8), is_full=st.booleans())
    def follow(self, seq: int, is_full: bool) -> None:
        if seq <= self.seq():
            self.follower.restore(self.follower_target, seq, is_full=is_full)
            assert read_tree(self.follower_target) == self.history[seq]

    @invariant()
    def every_seq_restores_exactly(self) -> None:
        assert len(self.history) == self.seq() + 1
        if self.seq():
            assert self.entries() == self.history[-1].keys()

    def teardown(self) -> None:
        top = Path(self.place.name)
        for seq in range(1, self.seq() + 1):
            kit = Kit(top / f"check{seq}", self.memory, seed=100 + seq)
            manifest = kit.dataset.manifest_at(seq)
            kit.restore(top / f"check{seq}/out", seq)
            assert read_tree(top / f"check{seq}/out") == self.history[seq]
            tree = TreeHash()
            for entry in Chain.of(StoreRuns(self.memory), kit.dataset.root, manifest.runs).entries():
                tree.add(entry)
            assert tree.hexdigest() == manifest.digest
        if self.seq():
            assert self.follower.verify().damage == []
        self.place.cleanup()

    def seq(self) -> int:
        return self.follower.dataset.read_head_or_empty().manifest.seq

    def entries(self) -> set[bytes]:
        runs = self.follower.dataset.read_head().manifest.runs
        chain = Chain.of(StoreRuns(self.memory), "data/covers", runs)
        return {entry.path for entry in chain.entries()}


# No shrinking here: it takes minutes. HYPOTHESIS_PROFILE=deep runs more and shrinks.
PHASES = [phase for phase in Phase if phase is not Phase.shrink and phase is not Phase.explain]
TestChains = Chains.TestCase
TestChains.settings = settings(max_examples=25, stateful_step_count=20, deadline=None, phases=PHASES)
