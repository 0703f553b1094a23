"""What a mount needs of a seq: fetched where the snap has it, with the diffs laid over it; else made from the chain.
Either way it says the same."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from synclib.core.entry import ADDRESS_UNIT, Kind
from synclib.engine.attach import attach
from synclib.engine.compact import compact
from synclib.engine.host import no_progress
from synclib.engine.mount import Prepared, opened, prepare
from synclib.engine.repack import RepackOptions, repack_dataset
from synclib.lazy.chain import Chain
from synclib.lazy.metadata import settle
from synclib.lazy.run_reader import StoreRuns
from synclib.store.base import Buffer
from synclib.store.memory import MemoryStore
from tests.kit import Kit, put


class Counting(MemoryStore):
    """Counts what is read, by kind of object."""

    def __init__(self) -> None:
        super().__init__()
        self.put("boxlink.json", b"{}")
        self.reads: Counter[str] = Counter()

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        self.reads[key.split("/")[2]] += 1
        return super().get_ranges(key, ranges)


class Node:
    """A publisher's dataset with three diffs on a snap with attachments, and nodes that prepare it."""

    def __init__(self, place: Path) -> None:
        self.place, self.store = place, Counting()
        self.kit = Kit(place / "publisher", self.store)
        chance = random.Random(5)
        self.files = {b"d%02d/f%d" % (n % 20, n): chance.randbytes(chance.choice([0, 10, 9000])) for n in range(400)}
        self.files[b"large"] = chance.randbytes(3_000_000)
        self._there: dict[bytes, bytes] = {}
        self.publish()
        attach(self.kit.dataset, self.kit.host, no_progress, entries_min=1)
        for round_ in range(3):
            for path in chance.sample(sorted(self.files), 20):
                del self.files[path]
            for path in chance.sample(sorted(self.files), 20):
                self.files[path] = chance.randbytes(5000)
            self.files |= {b"new%d/deep/n%d" % (round_, n): b"%d" % n for n in range(10)}
            self.publish()

    def publish(self) -> None:
        """Make the source hold the files; directories stay."""
        for path in self._there.keys() - self.files.keys():
            os.unlink(os.path.join(os.fsencode(self.kit.directory), path))
        for path, data in self.files.items():
            if self._there.get(path) != data:
                put(self.kit.directory, path, data)
        self._there = dict(self.files)
        self.kit.publish()

    def prepare(self, name: str) -> Prepared:
        self.store.reads.clear()
        host = Kit(self.place / name, self.store).host
        return prepare(self.kit.dataset, host, self.kit.dataset.manifest_at(None))

    def check_extents(self, prepared: Prepared) -> None:
        """Every file's bytes, where its address says."""
        chain = Chain.of(StoreRuns(self.store), prepared.root, self.kit.dataset.manifest_at(None).runs)
        with opened(prepared, self.store) as (extents, _):
            walked = {extent.position: extent for page in extents.walk() for extent in page}
            for entry in chain.entries():
                if entry.kind == Kind.FILE and entry.size:
                    start = entry.address * ADDRESS_UNIT
                    found = extents.overlapping(start, start + entry.size)
                    assert tuple(extent.chunk for extent in found) == entry.chunks
                    assert [walked[extent.position] for extent in found] == found


def test_fetched_in_one_round_trip_of_few_requests(tmp_path: Path) -> None:
    node = Node(tmp_path)
    prepared = node.prepare("node")
    assert prepared.metadata.made == "fetched"
    # The image whole, the map's index, three small runs: all asked for at once.
    assert node.store.reads == {"image": 1, "map": 1, "run": 3}
    node.check_extents(prepared)


def test_what_is_here_is_not_fetched_again(tmp_path: Path) -> None:
    node = Node(tmp_path)
    prepared = node.prepare("node")
    assert node.prepare("node") == prepared
    assert not node.store.reads
    node.files[b"one more"] = b"1"
    node.publish()
    later = node.prepare("node")
    assert later != prepared
    assert node.store.reads == {"run": 1}
    node.check_extents(later)


@pytest.mark.parametrize("damage", ["gone", "flipped", "short"])
@pytest.mark.parametrize("kind", ["image", "map"])
def test_without_right_attachments_it_is_made_from_the_chain(tmp_path: Path, damage: str, kind: str) -> None:
    node = Node(tmp_path)
    (item,) = (item for item in node.kit.dataset.manifest_at(None).attachments if item.kind == kind)
    key = item.key(node.kit.dataset.root)
    fetched = node.store.get(key, size_max=1 << 24)
    assert fetched is not None
    if damage == "gone":
        node.store.delete(key)
    else:
        data = fetched.data[:-1] + bytes([fetched.data[-1] ^ 1]) if damage == "flipped" else fetched.data[:-5]
        node.store.put(key, data)
    prepared = node.prepare("node")
    assert prepared.metadata.snap is None
    assert key in prepared.metadata.made
    node.check_extents(prepared)


def test_hard_links_that_change_have_it_made_from_the_chain(tmp_path: Path) -> None:
    node = Node(tmp_path)
    os.link(node.kit.directory / "large", node.kit.directory / "also large")
    node.kit.publish()
    prepared = node.prepare("node")
    assert prepared.metadata.made == "made here: hard links have changed since those of the snap were made"
    node.check_extents(prepared)


def test_a_repacked_chain_has_none_until_they_are_made_anew(tmp_path: Path) -> None:
    node = Node(tmp_path)
    for path in sorted(node.files)[::2]:
        del node.files[path]
    node.publish()
    done = repack_dataset(node.kit.dataset, node.kit.host, None, RepackOptions(budget_bytes=1 << 30), no_progress)
    assert done.packs
    prepared = node.prepare("one")
    assert prepared.metadata.made == "made here: the dataset has none"
    node.check_extents(prepared)
    attach(node.kit.dataset, node.kit.host, no_progress, entries_min=1)
    prepared = node.prepare("other")
    assert prepared.metadata.made == "fetched"
    assert node.store.reads == {"image": 1, "map": 1}
    node.check_extents(prepared)


def test_a_large_image_is_not_fetched_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(tmp_path)
    whole = Path(node.prepare("whole").image).read_bytes()
    monkeypatch.setattr("synclib.lazy.metadata.WHOLE_IMAGE_BYTES", 0)
    monkeypatch.setattr("synclib.lazy.base_image._WHOLE_OBJECT_BYTES", 0)
    prepared = node.prepare("served")
    assert (prepared.image, prepared.metadata.made) == ("", "fetched")
    node.check_extents(prepared)
    chance = random.Random(1)
    with opened(prepared, node.store) as (_, image):
        assert image is not None
        assert image.read(0, image.image_bytes) == whole
        for _ in range(200):
            start = chance.randrange(len(whole) - 1)
            length = chance.randrange(1, min(20_000, len(whole) - start) + 1)
            assert image.read(start, length) == whole[start : start + length]
    # What was read of it is here, so that a restart does not need the store.
    node.store.reads.clear()
    with opened(prepared, node.store) as (_, image):
        assert image is not None
        assert image.read(0, image.image_bytes) == whole
        # When all bytes are here the image comes too, for mounts without a daemon.
        settled = settle(prepared.metadata, image)
    assert not node.store.reads
    assert Path(settled).read_bytes() == whole
    assert node.prepare("served").image == settled


def test_a_compaction_of_the_diffs_keeps_what_the_snap_has(tmp_path: Path) -> None:
    node = Node(tmp_path)
    for number in range(8):
        node.files[b"more%d" % number] = b"x"
        node.publish()
    done = compact(node.kit.dataset, node.kit.host, no_progress)
    assert done.merges
    assert node.kit.dataset.manifest_at(None).runs[0].seq_last == 1
    prepared = node.prepare("node")
    assert prepared.metadata.made == "fetched"
    node.check_extents(prepared)
