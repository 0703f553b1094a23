"""A reader in a process and a mount's worker share one cache: what one has fetched the other need not fetch."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from synclib.core.names import pin_prefix
from synclib.engine.cache_work import Background, cached_dataset
from synclib.engine.shared_reader import NoCache, open_at_work, open_shared, open_uncached
from synclib.errors import BoxlinkError, Unavailable
from synclib.lazy.dataset import STORE_KEY
from synclib.lazy.stream_file import PIECE_BYTES, stream_file
from synclib.lazy.view import View
from synclib.store.base import Buffer
from synclib.store.memory import MemoryStore
from tests.kit import Kit

LARGE_BYTES = 2 * PIECE_BYTES + 12_345


class Packs(MemoryStore):
    """Notes what is read of packs; all of them fail while it is away."""

    def __init__(self) -> None:
        super().__init__()
        self.put(STORE_KEY, b"{}")
        self.read: list[tuple[int, int]] = []
        self.is_away = False

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        if "/pack/" in key:
            if self.is_away:
                raise Unavailable("away", key=key)
            self.read += ranges
        return super().get_ranges(key, ranges)


class Site:
    def __init__(self, place: Path) -> None:
        self.store = Packs()
        self.kit = Kit(place, self.store)
        chance = random.Random(3)
        self.content = {b"%03d" % number: chance.randbytes(20_000) for number in range(60)}
        self.content[b"large"] = chance.randbytes(LARGE_BYTES)
        # The same bytes twice in one file, and a file of none.
        self.content[b"twice"] = self.content[b"001"] * 200
        self.content[b"none"] = b""
        self.kit.write(dict(self.content))
        self.kit.publish()
        self.manifest = self.kit.dataset.read_head().manifest

    def open(self) -> View:
        return open_shared(self.kit.dataset, self.kit.host, self.manifest)

    def check(self, view: View, path: bytes) -> None:
        assert b"".join(map(bytes, stream_file(view.open(path)))) == self.content[path]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_bytes_are_those_that_were_published(site: Site) -> None:
    with contextlib.closing(site.open()) as view:
        for path in site.content:
            site.check(view, path)
        file = view.open(b"large")
        chance = random.Random(5)
        for _ in range(50):
            offset, length = chance.randrange(LARGE_BYTES + 10), chance.choice([1, 4096, 100_000, 9 << 20])
            assert file.pread(offset, length) == site.content[b"large"][offset : offset + length]


def test_what_one_reader_has_fetched_the_next_need_not_fetch(site: Site) -> None:
    with contextlib.closing(site.open()) as view:
        site.check(view, b"007")
    assert site.store.read
    site.store.is_away = True
    with contextlib.closing(site.open()) as view:
        site.check(view, b"007")
        with pytest.raises(Unavailable):
            site.check(view, b"059")
    directory = site.kit.host.dataset_cache(site.store.url, site.kit.dataset.root) / "lazy"
    assert cached_dataset(directory) == (site.store.url, site.kit.dataset.root)


def test_a_large_file_that_is_read_on_is_not_kept_but_what_is_here_of_it_is_used(site: Site) -> None:
    with contextlib.closing(site.open()) as view:
        view.open(b"large").pread(0, 4 << 20)
        before = sum(stop - start for start, stop in site.store.read)
        site.store.read.clear()
        site.check(view, b"large")
    fetched = sum(stop - start for start, stop in site.store.read)
    # The last piece is small enough to be kept.
    assert LARGE_BYTES - before - (2 << 20) < fetched < LARGE_BYTES - before + (2 << 20)
    directory = site.kit.host.dataset_cache(site.store.url, site.kit.dataset.root) / "lazy"
    assert os.stat(directory / "blob").st_blocks * 512 < 12 << 20


def test_damage_in_the_cache_is_fetched_anew(site: Site) -> None:
    with contextlib.closing(site.open()) as view:
        site.check(view, b"020")
    blob = site.kit.host.dataset_cache(site.store.url, site.kit.dataset.root) / "lazy" / "blob"
    with blob.open("r+b") as file:
        data = file.read()
        at = data.index(site.content[b"020"])
        file.seek(at + 777)
        file.write(b"!damage!")
    with contextlib.closing(site.open()) as view:
        site.check(view, b"020")


def test_where_there_can_be_no_cache_it_is_said(site: Site) -> None:
    directory = site.kit.host.dataset_cache(site.store.url, site.kit.dataset.root)
    (directory / "lazy").write_bytes(b"a file where a directory should be")
    with pytest.raises(BoxlinkError):
        site.open()


def test_at_work_everything_comes_and_then_no_store_is_needed(site: Site) -> None:
    errors: list[BoxlinkError] = []
    view = open_at_work(site.kit.dataset, site.kit.host, site.manifest, Background(), errors.append)
    with contextlib.closing(view):
        site.check(view, b"000")  # a start-up, which is over when nothing more is read
        deadline = time.monotonic() + 60
        while not view.work.hydrator.is_done:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        site.store.is_away = True
        for path in site.content:
            site.check(view, path)
    assert not errors
    site.store.read.clear()
    with contextlib.closing(site.open()) as again:
        for path in site.content:
            site.check(again, path)
    assert not site.store.read


def test_two_at_work_in_one_process_end_one_after_the_other(site: Site) -> None:
    views = [
        open_at_work(site.kit.dataset, site.kit.host, site.manifest, Background(is_whole=False), _raise)
        for _ in range(2)
    ]
    for view in views:
        site.check(view, b"011")
    views[0].close()
    site.check(views[1], b"012")
    views[1].close()
    assert not list(site.kit.host.cache.rglob("mounted/*.json"))


def _raise(error: BoxlinkError) -> None:
    raise error


def test_at_work_without_a_cache_nothing_is_kept_and_nothing_leaks(site: Site) -> None:
    directory = site.kit.host.dataset_cache(site.store.url, site.kit.dataset.root)
    (directory / "lazy" / "blob").mkdir(parents=True)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(NoCache) as refused:
            open_at_work(site.kit.dataset, site.kit.host, site.manifest, Background(), _raise)
        assert refused.value.reason.hint
    del refused
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    with contextlib.closing(open_uncached(site.kit.dataset, site.kit.host, site.manifest)) as view:
        for path in site.content:
            site.check(view, path)
        held = list(site.store.list(pin_prefix(site.kit.dataset.root)))
        assert len(held) == 1, "collectors are kept away"
    assert not list(site.store.list(pin_prefix(site.kit.dataset.root)))


def test_where_nobody_can_be_told_what_is_read_it_is_read_all_the_same(site: Site) -> None:
    directory = site.kit.host.dataset_cache(site.store.url, site.kit.dataset.root)
    (directory / "lazy").mkdir()
    (directory / "lazy" / "mounted").write_bytes(b"a file where a directory should be")
    view = open_at_work(site.kit.dataset, site.kit.host, site.manifest, Background(is_whole=False), _raise)
    with contextlib.closing(view):
        site.check(view, b"011")


def test_a_reader_at_work_leaves_nothing_beside_its_cache(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor could it, where a killed one would leave it."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    view = open_at_work(site.kit.dataset, site.kit.host, site.manifest, Background(is_whole=False), _raise)
    with contextlib.closing(view):
        site.check(view, b"011")
