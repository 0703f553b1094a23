"""The address space (docs/format/address.md): one content a range, for ever, whoever publishes, compacts or reverts."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from synclib.core.entry import Entry, address_units, content_id
from synclib.engine.compact import compact
from synclib.engine.host import no_progress
from synclib.engine.revert import revert
from synclib.errors import Ambiguous
from synclib.lazy.chain import Chain
from synclib.lazy.run_cache import RunCache
from tests.engine.test_commit_races import LosesAnswers
from tests.kit import Content, Kit


class Space:
    """All seqs of a dataset that two machines publish, and what each address was found to hold."""

    def __init__(self, place: Path) -> None:
        self.store = LosesAnswers()
        self.store.put("boxlink.json", b"{}")
        self.kits = [Kit(place / str(number), self.store, seed=number) for number in (1, 2)]
        self.held: dict[int, tuple[int, bytes]] = {}  # by address: units, content
        self.seen_seq = 0

    def files(self, seq: int) -> dict[bytes, Entry]:
        kit = self.kits[0]
        manifest = kit.dataset.manifest_at(seq)
        cache = RunCache(kit.place / "test-runs", self.store)
        with cache.in_use():
            chain = Chain.of(cache, kit.dataset.root, manifest.runs)
            found = {entry.path: entry for entry in chain.entries() if entry.chunks}
        assert all(entry.address + address_units(entry.size) <= manifest.address_end for entry in found.values())
        return found

    def check(self) -> None:
        """Every address of every seq, the old ones too, means the content it always meant, and ranges never meet."""
        head = self.kits[0].dataset.read_head().manifest
        for seq in range(1, head.seq + 1):
            for path, entry in self.files(seq).items():
                content = (address_units(entry.size), content_id(entry))
                assert entry.address > 0
                assert self.held.setdefault(entry.address, content) == content, (seq, path)
        end = 0
        for address, (units, _) in sorted(self.held.items()):
            assert address >= end
            end = address + units


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_done_an_address_means_one_content(tmp_path: Path, seed: int) -> None:
    space, chance = Space(tmp_path), random.Random(seed)
    content: list[Content] = [{}, {}]
    for kit, tree in zip(space.kits, content, strict=True):
        tree[b"first"] = b"1"
        kit.write(tree)
    space.kits[0].publish()
    for _ in range(12):
        which = chance.randrange(2)
        kit, tree = space.kits[which], content[which]
        match chance.randrange(6):
            case 0:
                revert(kit.dataset, kit.host, chance.randint(1, kit.dataset.read_head().manifest.seq))
            case 1:
                compact(kit.dataset, kit.host, no_progress, is_full=chance.random() < 0.5)
            case 2:
                for path in tree:
                    os.utime(os.path.join(os.fsencode(kit.directory), path), ns=(0, chance.randrange(10**18)))
                kit.publish()
            case _:
                tree[b"f%d" % chance.randrange(12)] = chance.randbytes(chance.choice([1, 4096, 9000]))
                if chance.random() < 0.3:
                    space.store.trouble = _meddle(space.kits[1 - which], content[1 - which], chance)
                kit.write(tree)
                kit.publish()
        space.check()


def _meddle(other: Kit, tree: Content, chance: random.Random) -> Callable[[Callable[[], str]], str]:
    """The other machine commits first; sometimes the answer is lost besides."""

    def meddle(write: Callable[[], str]) -> str:
        is_applied = chance.random() < 0.3
        if is_applied:
            write()
        tree[b"theirs%d" % chance.randrange(3)] = chance.randbytes(5000)
        other.write(tree)
        other.publish()
        if is_applied:
            raise Ambiguous("the answer was lost")
        return write()

    return meddle


def test_content_that_stays_keeps_its_address_and_neighbours_are_neighbours(tmp_path: Path) -> None:
    space = Space(tmp_path)
    kit = space.kits[0]
    kit.write({b"a": None, b"a/1": b"x" * 5000, b"a/2": b"y", b"a/empty": b"", b"b": b"z" * 4096})
    kit.publish()
    first = space.files(1)
    assert {path: entry.address for path, entry in first.items()} == {b"b": 1, b"a/1": 2, b"a/2": 4}
    kit.write({b"a": None, b"a/empty": b"", b"a/1": b"new", b"a/2": b"y", b"b": b"z" * 4096})
    os.chmod(os.path.join(os.fsencode(kit.directory), b"b"), 0o600)
    kit.publish()
    assert {path: entry.address for path, entry in space.files(2).items()} == {b"b": 1, b"a/1": 5, b"a/2": 4}
    revert(kit.dataset, kit.host, 1)
    compact(kit.dataset, kit.host, no_progress, is_full=True)
    assert {path: entry.address for path, entry in space.files(3).items()} == {b"b": 1, b"a/1": 2, b"a/2": 4}
    space.check()


def test_hard_links_share_one_place(tmp_path: Path) -> None:
    space = Space(tmp_path)
    kit = space.kits[0]
    kit.write({b"one": b"1" * 9000})
    os.link(kit.directory / "one", kit.directory / "two")
    kit.publish()
    assert {path: entry.address for path, entry in space.files(1).items()} == {b"one": 1, b"two": 1}
    assert kit.dataset.read_head().manifest.address_end == 4
