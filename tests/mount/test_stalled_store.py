"""A store that accepts and says nothing: what is here is read as always, whoever waits gets an error in time."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from synclib.clock import SystemClock
from synclib.core import fuse
from synclib.disk.blob_cache import BlobCache
from synclib.disk.fuse_mount import mount_fuse, unmount_fuse
from synclib.engine.attach import attach
from synclib.engine.host import no_progress
from synclib.engine.mount import opened, prepare
from synclib.errors import BoxlinkError
from synclib.lazy.blob import Blob
from synclib.lazy.entry_extents import EntryExtents
from synclib.lazy.fuse_server import FuseServer, Handler, ServedFile, ServedFiles
from synclib.lazy.owed import Owed, OwedAnswers
from synclib.lazy.tree_chain import opened_chain
from synclib.lazy.tree_server import TreeServer
from synclib.store.base import Buffer
from synclib.store.memory import MemoryStore
from tests.kit import Kit

FILES, FILE_BYTES = 200, 300_000
READERS = 150  # more than there are threads that serve
DEADLINE_S = 1.0  # instead of a minute
_HANGS_S = 40.0


class Stalling(MemoryStore):
    """Gives no ranges while it is stalled."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()
        self.goes_on.set()

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        self.goes_on.wait()
        return super().get_ranges(key, ranges)


class Reading:
    """A read in a thread of its own."""

    def __init__(self, read: Callable[[], object]) -> None:
        self.found: object = None
        self._read = read
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.found = self._read()
        except OSError as error:
            self.found = error.errno

    def wait(self) -> object:
        self._thread.join(_HANGS_S)
        assert not self._thread.is_alive(), "it hangs"
        return self.found


class Site:
    """A dataset whose map and image are in the store, each page of them a request."""

    def __init__(self, place: Path) -> None:
        self.store = Stalling()
        self.store.put("boxlink.json", b"{}")
        self.kit = Kit(place / "publisher", self.store)
        chance = random.Random(5)
        self.files = {b"%03d" % number: chance.randbytes(FILE_BYTES) for number in range(FILES)}
        self.kit.write(dict(self.files))
        self.kit.publish()
        attach(self.kit.dataset, self.kit.host, no_progress, entries_min=1)
        self.node = Kit(place / "node", self.store)
        self.target = place / "mount"
        self.target.mkdir()
        self.errors: list[BoxlinkError] = []

    @contextlib.contextmanager
    def served(self, handler: Handler, blob: Blob | None = None) -> Iterator[FuseServer]:
        """``blob``: closed when it has been served, as by a worker."""
        device = mount_fuse(os.fsencode(self.target), allow_other=True)
        server = FuseServer(device, handler, 120, self.errors.append)

        def serve() -> None:
            server.serve()
            if blob is not None:
                blob.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            self.store.goes_on.set()
            unmount_fuse(os.fsencode(self.target), is_lazy=True)
            thread.join(30)
            os.close(device)

    @contextlib.contextmanager
    def blob(self) -> Iterator[tuple[Blob, int]]:
        """And how many bytes it has."""
        manifest = self.kit.dataset.manifest_at(None)
        prepared = prepare(self.kit.dataset, self.node.host, manifest)
        assert prepared.metadata.snap is not None
        cache = BlobCache(Path(prepared.cache), prepared.address_end)
        with opened(prepared, self.store) as (extents, _):
            blob = Blob(self.store, prepared.root, extents, cache, SystemClock())
            try:
                yield blob, prepared.blob_bytes
            finally:
                self.store.goes_on.set()
                blob.close()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def _read_at(path: Path, position: int, length: int = 4096) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(descriptor, length, position)
    finally:
        os.close(descriptor)


def _until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _HANGS_S
    while not is_so():
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.01)


def _listening() -> int:
    """How many threads of this process wait for a request of the kernel (proc(5), /proc/pid/wchan)."""
    return sum(path.read_text() == "fuse_dev_do_read" for path in Path("/proc/self/task").glob("*/wchan"))


def test_what_is_here_is_read_while_many_wait(site: Site) -> None:
    with site.blob() as (blob, size), site.served(ServedFiles([ServedFile(b"blob", size, blob.read)])):
        path = site.target / "blob"
        here = _read_at(path, 4096)
        assert here == site.files[b"000"][:4096]
        site.store.goes_on.clear()
        step = size // (READERS + 1) // 4096 * 4096
        waiting = [
            Reading(lambda at=at: _read_at(path, at))  # type: ignore[misc]
            for at in range(step * 2, step * (READERS + 1), step)
        ]
        _until(lambda: len(blob.counts.fault_s) + blob.counts.faults >= 64)
        for _ in range(20):
            assert Reading(lambda: _read_at(path, 4096)).wait() == here
        assert blob.counts.faults >= 64
        site.store.goes_on.set()
        assert all(isinstance(reader.wait(), bytes) for reader in waiting)


def test_whoever_waits_gets_right_bytes_from_a_worker_that_retires(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads have all ended; what they left to others to wait for is not closed under these."""
    monkeypatch.setattr("synclib.lazy.fuse_server.THREADS", 2)
    opened_ones: list[int] = []
    with site.blob() as (blob, size), site.served(ServedFiles([ServedFile(b"blob", size, blob.read)]), blob) as server:
        begins = [4096 + number * -(-FILE_BYTES // 4096) * 4096 for number in (0, 10, 20)]  # of files
        opened_ones += [os.open(site.target / "blob", os.O_RDONLY) for _ in begins]
        for descriptor in opened_ones:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        site.store.goes_on.clear()
        reads = [(lambda fd=fd, at=at: os.pread(fd, 4096, at)) for fd, at in zip(opened_ones, begins, strict=True)]
        waiting = [Reading(reads[0])]
        # Each that listens when it is to retire takes one request more.
        _until(lambda: server._busy == 1 and _listening() == 2)
        retired = threading.Thread(target=server.retire, args=(_HANGS_S,))
        retired.start()
        _until(lambda: server._is_retiring)
        waiting += [Reading(read) for read in reads[1:]]
        _until(lambda: server._busy == 3)
        threading.Event().wait(0.2)  # so that a server that does not wait has ended
        site.store.goes_on.set()
        assert [reader.wait() for reader in waiting] == [site.files[name][:4096] for name in (b"000", b"010", b"020")]
        retired.join()
    for descriptor in opened_ones:
        with contextlib.suppress(OSError):  # only now, and nobody is there who would answer to it
            os.close(descriptor)


def test_what_is_asked_for_again_is_one_answer_owed() -> None:
    owed = OwedAnswers()
    first, again = (Owed(fuse.Request(fuse.READ, 7, 2), b"", at) for at in (1.0, 2.0))
    assert not owed.add(first)
    assert owed.add(again)
    assert not owed.take(first)
    assert owed.take(again)


def test_a_page_of_the_map_that_does_not_come_is_an_error_in_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synclib.lazy.fuse_server.DEADLINE_S", DEADLINE_S, raising=False)
    with site.blob() as (blob, size), site.served(ServedFiles([ServedFile(b"blob", size, blob.read)])):
        path = site.target / "blob"
        site.store.goes_on.clear()
        assert Reading(lambda: _read_at(path, 4096, FILE_BYTES // 2)).wait() == errno.EIO
        # And again at once: the kernel asks for every page by itself.
        assert Reading(lambda: _read_at(path, 4096, FILE_BYTES // 2)).wait() == errno.EIO
        assert site.errors
        site.store.goes_on.set()
        monkeypatch.undo()
        while (found := Reading(lambda: _read_at(path, 4096)).wait()) == errno.EIO:
            pass
        assert found == site.files[b"000"][:4096]


def test_a_piece_of_the_image_that_does_not_come_is_an_error_in_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("synclib.lazy.metadata.WHOLE_IMAGE_BYTES", "synclib.lazy.base_image._WHOLE_OBJECT_BYTES"):
        monkeypatch.setattr(limit, 0)
    monkeypatch.setattr("synclib.lazy.base_image._FIRST_BYTES", 1)
    monkeypatch.setattr("synclib.lazy.fuse_server.DEADLINE_S", DEADLINE_S, raising=False)
    prepared = prepare(site.kit.dataset, site.node.host, site.kit.dataset.manifest_at(None))
    with opened(prepared, site.store) as (_, image):
        assert image is not None
        with site.served(ServedFiles([ServedFile(b"image", image.image_bytes, image.read)])):
            path = site.target / "image"
            site.store.goes_on.clear()
            readers = [Reading(lambda: _read_at(path, 8192)) for _ in range(3)]
            assert {reader.wait() for reader in readers} == {errno.EIO}
            site.store.goes_on.set()
            while (found := Reading(lambda: _read_at(path, 8192)).wait()) == errno.EIO:
                pass
            assert found == image.read(8192, 4096)


def test_a_lookup_that_does_not_come_is_an_error_in_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synclib.lazy.fuse_server.DEADLINE_S", DEADLINE_S, raising=False)
    kit, manifest = site.kit, site.kit.dataset.manifest_at(None)
    cache = BlobCache(site.node.place / "cache", manifest.address_end)
    with opened_chain(site.store, kit.dataset.root, manifest.runs, site.node.place) as chain:
        extents = EntryExtents(chain)
        blob = Blob(site.store, kit.dataset.root, extents, cache, SystemClock())
        with site.served(TreeServer(chain, extents, blob, manifest.plain_bytes, 0)):
            site.store.goes_on.clear()
            for look in (lambda: os.stat(site.target / "000"), lambda: os.listdir(site.target)):
                assert Reading(look).wait() == errno.EIO
            site.store.goes_on.set()
            monkeypatch.undo()
            while (found := Reading((site.target / "000").read_bytes).wait()) == errno.EIO:
                pass
            assert found == site.files[b"000"]
            assert Reading(lambda: len(os.listdir(site.target))).wait() == FILES
        blob.close()
