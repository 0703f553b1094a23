"""A FUSE tree as the kernel shows it: by root, and by one who is not, with a worker that is replaced."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from synclib.clock import SystemClock
from synclib.disk.blob_cache import BlobCache
from synclib.disk.fuse_mount import mount_fuse, unmount_fuse
from synclib.errors import BoxlinkError
from synclib.lazy.blob import Blob
from synclib.lazy.chain import Chain
from synclib.lazy.entry_extents import EntryExtents
from synclib.lazy.fuse_server import FuseServer
from synclib.lazy.run_reader import StoreRuns
from synclib.lazy.tree_server import TreeServer
from tests.kit import Kit


class Served:
    """A kit's head as a tree that this process serves."""

    def __init__(self, kit: Kit, cache: Path, device: int) -> None:
        manifest = kit.dataset.manifest_at(None)
        chain = Chain.of(StoreRuns(kit.store), kit.dataset.root, manifest.runs)
        extents = EntryExtents(chain)
        self.blob = Blob(kit.store, kit.dataset.root, extents, BlobCache(cache, manifest.address_end), SystemClock())
        tree = TreeServer(chain, extents, self.blob, manifest.plain_bytes, manifest.published_at_ns)
        self.errors: list[BoxlinkError] = []
        self.server = FuseServer(device, tree, 60, self.errors.append)
        self.thread = threading.Thread(target=self.server.serve, daemon=True)
        self.thread.start()


@contextlib.contextmanager
def mounted(kit: Kit, place: Path) -> Iterator[Path]:
    target = place / "mount"
    target.mkdir()
    device = mount_fuse(os.fsencode(target), allow_other=True)
    served = Served(kit, place / "cache", device)
    try:
        yield target
    finally:
        unmount_fuse(os.fsencode(target), is_lazy=True)
        served.thread.join(30)
        served.blob.close()
        os.close(device)
    assert not served.errors


def make_tree(kit: Kit) -> None:
    chance = random.Random(7)
    for number in range(300):
        path = kit.directory / f"d{number % 6}/sub{number % 4}"
        path.mkdir(parents=True, exist_ok=True)
        (path / f"f{number}").write_bytes(chance.randbytes(chance.choice([0, 1, 4097, 30_000])))
    top = kit.directory
    (top / "large").write_bytes(chance.randbytes(3_500_000))
    (top / "empty directory").mkdir()
    os.symlink("large", top / "link")
    os.link(top / "large", top / "same")
    os.chmod(top / "d0", 0o2750)
    os.chmod(top / "d1/sub1/f1", 0o4711)
    os.utime(top / "d1/sub1/f1", ns=(0, -1_234_567_890_123_456_789))
    os.utime(top / "d1/sub3/f7", ns=(0, 5_000_000_000_123_456_789))
    (Path(os.fsdecode(os.fsencode(top) + b"/\xff\xfe" + b"n" * 253))).write_bytes(b"odd")
    (top / "wide").mkdir()
    for number in range(3000):
        (top / f"wide/{number:05}").touch()


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    found = Kit(tmp_path / "publisher")
    make_tree(found)
    found.publish()
    shutil.rmtree(found.directory / "d2")
    (found.directory / "d3/new").write_bytes(b"new")
    (found.directory / "large").write_bytes(b"other bytes" * 100_000)
    found.publish()
    return found


def check_same(source: Path, target: Path) -> None:
    done = subprocess.run(["diff", "-r", source, target], capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    for directory, below, files in os.walk(os.fsencode(source)):
        for name in (*below, *files):
            theirs = os.lstat(os.path.join(directory, name))
            ours = os.lstat(
                os.path.join(os.fsencode(target), os.path.relpath(os.path.join(directory, name), os.fsencode(source)))
            )
            assert ours.st_mode == theirs.st_mode
            if not stat.S_ISDIR(ours.st_mode):
                assert (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns)


def test_the_tree_is_the_tree(kit: Kit, tmp_path: Path) -> None:
    with mounted(kit, tmp_path) as target:
        check_same(kit.directory, target)
        assert not (target / "d2").exists()
        assert not (target / "d3/none").exists()
        assert len(os.listdir(target / "wide")) == 3000
        with (target / "large").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
            assert view[1_000_000:1_000_011] == (b"other bytes" * 100_000)[1_000_000:1_000_011]
        with pytest.raises(OSError, match="Read-only"):
            (target / "new").write_bytes(b"x")


def as_nobody(target: Path) -> str:
    """Mount and unmount as one who has no rights, in a process of its own; what went wrong."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        said = b""
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            device = mount_fuse(os.fsencode(target), allow_other=False)
            assert os.fsencode(target) + b" ro" in Path("/proc/self/mountinfo").read_bytes()
            os.close(device)
            unmount_fuse(os.fsencode(target))
        except BaseException as error:
            said = f"{type(error).__name__}: {error}".encode()
        os.write(writing, said)
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        found = file.read().decode()
    os.waitpid(child, 0)
    return found


def test_one_who_is_not_root_mounts_with_the_helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed")
    if os.stat("/dev/fuse").st_mode & 0o006 != 0o006:
        pytest.skip("/dev/fuse is root's alone here")
    target = tmp_path / "mount"
    target.mkdir()
    for path in (tmp_path, *tmp_path.parents[:3]):
        os.chmod(path, stat.S_IMODE(path.stat().st_mode) | 0o055)
    os.chown(target, 65534, 65534)
    assert as_nobody(target) == ""
    assert os.fsencode(target) not in Path("/proc/self/mountinfo").read_bytes()
    assert "fusermount3" in as_nobody(tmp_path), "of another's directory the helper says why not"
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    assert "not installed (package fuse3)" in as_nobody(target)


def test_a_worker_that_takes_over_knows_all_nodes(kit: Kit, tmp_path: Path) -> None:
    target = tmp_path / "mount"
    target.mkdir()
    device = mount_fuse(os.fsencode(target), allow_other=True)
    first = Served(kit, tmp_path / "cache", device)
    try:
        held = [(target / f"d3/sub1/f{number}").open("rb") for number in (9, 33, 57)]
        listing = os.open(target / "wide", os.O_RDONLY)
        # Another chain, another cache of entries: nothing that the first one knew.
        second = Served(kit, tmp_path / "other", device)
        first.blob.read = second.blob.read  # type: ignore[method-assign]
        Path("/proc/sys/vm/drop_caches").write_text("3")
        for file in held:
            assert file.read() == (kit.directory / Path(file.name).relative_to(target)).read_bytes()
        assert len(os.listdir(listing)) == 3000
        os.close(listing)
        for file in held:
            file.close()
    finally:
        unmount_fuse(os.fsencode(target), is_lazy=True)
        first.thread.join(30)
        os.close(device)
