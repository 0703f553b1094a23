"""The wall index beside a listing: the same covers, whatever the diffs since have done; none of the snap is read."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
import structlog
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from render.core.covers import Covers, collect_covers
from synclib.core.manifest import Attachment, encode_manifest
from synclib.core.markers import Down
from synclib.core.names import sort_key, split_path
from synclib.disk.markers import Markers
from synclib.engine.attach import attach
from synclib.engine.head_swap import update_head
from synclib.engine.host import no_progress
from synclib.errors import Corrupt, Unsupported
from synclib.lazy.dataset import STORE_KEY
from synclib.lazy.pictures import read_wall_index, wall_index_of
from synclib.lazy.run_reader import StoreRuns
from synclib.store.base import Buffer
from synclib.store.memory import MemoryStore
from tests.kit import Kit
from tools.render_reader import RenderReader


def key(path: bytes) -> bytes:
    return sort_key(*split_path(path))


def paths_of(covers: Covers) -> list[bytes]:
    return [covers.path(index) for index in range(len(covers))]


ONE_PATH = st.lists(st.sampled_from(["a", "b", "ab", "\u00e9"]), min_size=1, max_size=3).map(
    lambda parts: "/".join(parts).encode() + b".jpg"
)


@given(st.lists(ONE_PATH, max_size=12), st.dictionaries(ONE_PATH, st.booleans()))
def test_changes_over_covers_are_the_covers_changed(before: list[bytes], changes: dict[bytes, bool]) -> None:
    covers = Covers()
    for path in sorted(set(before), key=key):
        covers.append(path)
    expected = (set(before) - changes.keys()) | {path for path, is_there in changes.items() if is_there}
    found = covers.with_changes(sorted(changes.items(), key=lambda item: key(item[0])))
    assert paths_of(found) == sorted(expected, key=key)
    assert paths_of(covers) == sorted(set(before), key=key)


class Watched(MemoryStore):
    """Notes what is read of runs and wall indexes."""

    def __init__(self) -> None:
        super().__init__()
        self.put(STORE_KEY, b"{}")
        self.reads: list[str] = []
        self.read_bytes = 0
        self.is_damaged = False

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        found = super().get_ranges(key, ranges)
        if "/wall/" in key or "/run/" in key:
            self.reads.append(key)
            self.read_bytes += sum(stop - start for start, stop in ranges)
        if "/wall/" in key and self.is_damaged:
            return [bytes(part)[:-1] + b"?" for part in found]
        return found


class Site:
    def __init__(self, place: Path) -> None:
        self.store = Watched()
        self.kit = Kit(place, self.store)
        chance = random.Random(4)
        for number in range(3000):
            suffix = chance.choice([".jpg", ".PNG", ".txt", ""])
            self.put(f"{number // 150:02}/{number:05}{suffix}")
        self.kit.publish()
        attach(self.kit.dataset, self.kit.host, no_progress, entries_min=1)
        self.data = place / "data"
        (self.data / "covers").mkdir(parents=True)

    def put(self, path: str) -> None:
        file = self.kit.directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(path.encode())

    def covers(self) -> list[bytes]:
        """As a render server finds them where the dataset is mounted."""
        manifest = self.kit.dataset.read_head().manifest
        down = Down(dataset="covers", seq=manifest.seq, digest=manifest.digest, mode="lazy", at="2026-11-30T00:00:00Z")
        Markers(self.data / "covers").write_down(down)
        opener = RenderReader(self.data, "covers", self.store, self.kit.host, structlog.get_logger())
        self.store.reads, self.store.read_bytes = [], 0
        with contextlib.closing(opener.open(manifest.seq)) as reader:
            found = paths_of(opener.list_covers(reader))
            self.counted = list(self.store.reads), self.store.read_bytes
            assert found == paths_of(collect_covers(reader.walk()))
        return found


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_the_snap_is_not_read(site: Site) -> None:
    assert len(site.covers()) > 1000
    reads, read_bytes = site.counted
    assert sum("/wall/" in key for key in reads) == 1
    run = site.kit.dataset.read_head().manifest.runs[0]
    assert read_bytes < run.object_bytes / 3, "its tail, no block"
    # The next one finds the index on the disk.
    site.covers()
    assert not any("/wall/" in key for key in site.counted[0])


def test_diffs_are_laid_over_it(site: Site) -> None:
    before = site.covers()
    removed, replaced = before[0], before[500]
    (site.kit.directory / removed.decode()).unlink()
    (site.kit.directory / replaced.decode()).unlink()
    (site.kit.directory / replaced.decode()).mkdir()  # a directory of that name
    for path in ("00/zzz.gif", "a.avif", "19/no picture", before[700].decode()):
        site.put(path)
    site.kit.publish(allow_delete=True)
    assert len(site.kit.dataset.read_head().manifest.runs) == 2
    found = site.covers()
    assert set(found) == set(before) - {removed, replaced} | {b"00/zzz.gif", b"a.avif"}


def test_another_one_in_its_place_is_refused(site: Site) -> None:
    manifest = site.kit.dataset.read_head().manifest
    item, root = wall_index_of(manifest), site.kit.dataset.root
    assert item is not None
    assert sum(len(lengths) for lengths, _ in read_wall_index(item, root, StoreRuns(site.store, None))) > 1000
    other = msgspec.structs.replace(item, tail_digest=bytes(32))
    with pytest.raises(Corrupt, match="digest"):
        list(read_wall_index(other, root, StoreRuns(site.store, None)))


def test_one_that_is_damaged_is_passed_over(site: Site) -> None:
    site.store.is_damaged = True
    assert len(site.covers()) > 1000


def rewrite(site: Site, change: Callable[[bytearray], None]) -> Attachment:
    """Another wall index under the name of the head's, whose digest the manifest has."""
    head = site.kit.dataset.read_head().manifest
    item = wall_index_of(head)
    assert item is not None
    key = item.key(site.kit.dataset.root)
    data = bytearray(site.store.get_ranges(key, [(0, item.object_bytes)])[0])
    change(data)
    site.store.put(key, bytes(data))
    other = msgspec.structs.replace(item, tail_digest=blake3(data[-item.tail_bytes :]).digest())
    attachments = [*(kept for kept in head.attachments if kept is not item), other]
    manifest = encode_manifest(msgspec.structs.replace(head, attachments=attachments))
    update_head(
        site.kit.dataset,
        site.kit.host,
        lambda state: msgspec.structs.replace(state.head, manifest=manifest),
        lambda *_: None,
    )
    return other


def set_byte(at: int, value: int) -> Callable[[bytearray], None]:
    return lambda data: data.__setitem__(at, value)


@pytest.mark.parametrize(
    "change",
    [set_byte(-64 + 48, 1), set_byte(4, 1), set_byte(8, 1), set_byte(0, 0)],
    ids=["tail", "head", "bit", "magic"],
)
def test_one_of_another_version_is_passed_over(site: Site, change: Callable[[bytearray], None]) -> None:
    item = rewrite(site, change)
    with pytest.raises((Unsupported, Corrupt)):
        list(read_wall_index(item, site.kit.dataset.root, StoreRuns(site.store, None)))
    assert len(site.covers()) > 1000


def test_one_that_was_damaged_once_is_good_again(site: Site) -> None:
    """By another process, with the same cache."""
    site.store.is_damaged = True
    site.covers()
    site.store.is_damaged = False
    with capture_logs() as logs:
        site.covers()
    assert logs == []
