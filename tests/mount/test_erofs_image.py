"""Images as the kernel reads them: every name, mode, time, target, size and byte of a tree."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from synclib.core.entry import HARDLINK, OWNER, ChunkRef, Entry, Kind, address_units
from synclib.core.erofs import BLOCK_BYTES, DEVICE_BLOCKS_MAX, ImageBuilder
from synclib.disk.mounts import mount_erofs, unmount
from synclib.errors import Corrupt, Unsupported
from tests.strategies import sorted_entries

MTIME_NS = 1_234_567_890_123_456_789


class Tree:
    """Entries of a seq, with addresses, and the bytes that stand there."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.address_end = 1

    def add(self, path: bytes, kind: Kind, mode: int = 0o644, mtime_ns: int = MTIME_NS, **more: object) -> None:
        directory, _, name = path.rpartition(b"/")
        self.entries.append(Entry(directory, name, kind, mode, mtime_ns if kind != Kind.DIRECTORY else 0, **more))  # type: ignore[arg-type]

    def file(self, path: bytes, size: int, mode: int = 0o644, **more: object) -> None:
        chunk = ChunkRef(b"h" * 32, b"p" * 16, 0, size, size, 0)
        address = self.address_end if size else 0
        self.add(path, Kind.FILE, mode, size=size, chunks=(chunk,) if size else (), address=address, **more)
        self.address_end += address_units(size)

    def content(self, entry: Entry) -> bytes:
        return (b"%d." % entry.address * (entry.size // 2 + 1))[: entry.size]

    def image(self) -> tuple[bytes, ImageBuilder]:
        builder = ImageBuilder(self.address_end, b"i" * 16)
        writes = list(builder.build(sorted(self.entries, key=lambda entry: entry.key)))
        image = bytearray(builder.image_bytes)
        for at, data in writes:
            image[at : at + len(data)] = data
        return bytes(image), builder

    @contextmanager
    def mounted(self, place: Path) -> Iterator[bytes]:
        (place / "image").write_bytes(self.image()[0])
        with open(place / "blob", "wb") as blob:
            for entry in self.entries:
                if 0 < entry.size < 1 << 30:
                    blob.seek(entry.address * BLOCK_BYTES)
                    blob.write(self.content(entry))
            blob.truncate(self.address_end * BLOCK_BYTES)
        target = os.fsencode(place / "mount")
        os.makedirs(target, exist_ok=True)
        mount_erofs(os.fsencode(place / "image"), os.fsencode(place / "blob"), target)
        try:
            yield target
        finally:
            unmount(target)

    def check(self, target: bytes) -> None:
        for entry in self.entries:
            path = os.path.join(target, entry.path)
            status = os.lstat(path)
            assert stat.S_IMODE(status.st_mode) == entry.mode
            if entry.kind == Kind.DIRECTORY:
                assert stat.S_ISDIR(status.st_mode)
                children = [other.name for other in self.entries if other.directory == entry.path]
                assert sorted(os.listdir(path)) == sorted(children)
                continue
            assert status.st_mtime_ns == entry.mtime_ns
            if entry.kind == Kind.SYMLINK:
                assert os.readlink(path) == entry.target
            else:
                assert status.st_size == entry.size
                with open(path, "rb") as file:
                    assert file.read(1 << 20) == self.content(entry)[: 1 << 20]
        assert sorted(os.listdir(target)) == sorted(entry.name for entry in self.entries if not entry.directory)


def test_sizes_modes_times_names_links(tmp_path: Path) -> None:
    tree = Tree()
    tree.add(b"d", Kind.DIRECTORY, 0o2750)
    tree.add(b"d/\xff\xfe", Kind.DIRECTORY, 0o1777)
    tree.add(b"d/\xff\xfe/empty", Kind.DIRECTORY, 0o700)
    for size in (0, 1, 4095, 4096, 4097, 20_000, 3 << 20):
        tree.file(b"d/%d" % size, size)
    tree.file(b"!before the dot", 1, 0o4755)
    tree.file(b"d/" + b"n" * 255, 5)
    tree.file(b"d/\xc3\xa9", 5)  # one letter, composed
    tree.file(b"d/e\xcc\x81", 6)  # and in two parts
    tree.add(b"young", Kind.FILE, 0, 5 * 10**18)
    tree.add(b"old", Kind.FILE, 0o777, -(10**18) - 1)
    tree.add(b"link", Kind.SYMLINK, 0o777, -1, target=b"d/1")
    for length in (4031, 4032, 4033, 4095):
        tree.add(b"link-%d" % length, Kind.SYMLINK, 0o777, 1, target=b"t" * length)
    with tree.mounted(tmp_path) as target:
        tree.check(target)
        assert not os.path.lexists(os.path.join(target, b"d/none"))
        assert not os.path.lexists(os.path.join(target, b"zzz"))
        with pytest.raises(OSError, match="Read-only"):
            os.mkdir(os.path.join(target, b"new"))


@pytest.mark.parametrize("length", range(1, 70))
def test_a_list_of_names_may_end_anywhere_in_its_block(tmp_path: Path, length: int) -> None:
    """Behind the last name there is a NUL or the block's end: the kernel takes what follows as part of it."""
    tree = Tree()
    for number in range(50):
        tree.file(b"%02d" % number + b"x" * 50, 1)
    tree.file(b"z" * length, 1)
    with tree.mounted(tmp_path) as target:
        tree.check(target)


def test_a_directory_of_100_000_names(tmp_path: Path) -> None:
    tree = Tree()
    tree.add(b"many", Kind.DIRECTORY, 0o755)
    for number in range(100_000):
        tree.add(b"many/%06d" % number, Kind.FILE)
    with tree.mounted(tmp_path) as target:
        many = os.path.join(target, b"many")
        assert sorted(os.listdir(many)) == [b"%06d" % number for number in range(100_000)]
        assert all(os.path.exists(os.path.join(many, b"%06d" % number)) for number in range(0, 100_000, 997))
        assert not os.path.exists(os.path.join(many, b"100000"))


def test_a_file_over_4_gib_and_one_after_it(tmp_path: Path) -> None:
    tree = Tree()
    tree.file(b"large", (5 << 30) + 3)
    tree.file(b"small", 7)
    with tree.mounted(tmp_path) as target:
        path = os.path.join(target, b"large")
        assert os.path.getsize(path) == (5 << 30) + 3
        with open(path, "rb") as file:
            file.seek(5 << 30)
            assert file.read() == bytes(3)
        with open(os.path.join(target, b"small"), "rb") as file:
            assert file.read() == tree.content(tree.entries[1])


def test_hard_links_are_one_inode_with_all_its_names(tmp_path: Path) -> None:
    tree = Tree()
    tree.add(b"a", Kind.DIRECTORY, 0o755)
    tree.file(b"one", 9, extra=((HARDLINK, b"g" * 16),))
    first = tree.entries[-1]
    for path in (b"a/two", b"three"):
        directory, _, name = path.rpartition(b"/")
        tree.entries.append(
            Entry(
                directory, name, Kind.FILE, 0o644, MTIME_NS, 9, first.chunks, extra=first.extra, address=first.address
            )
        )
    with tree.mounted(tmp_path) as target:
        found = {os.stat(os.path.join(target, path)).st_ino for path in (b"one", b"a/two", b"three")}
        assert len(found) == 1
        assert os.stat(os.path.join(target, b"one")).st_nlink == 3
        assert os.stat(os.path.join(target, b"a")).st_nlink == 2
        tree.check(target)


def test_owners_are_kept_and_attributes_said_to_be_left_out(tmp_path: Path) -> None:
    tree = Tree()
    tree.file(b"owned", 1, extra=((OWNER, (1234).to_bytes(4, "little") + (77).to_bytes(4, "little")),))
    tree.file(b"plain", 1, extra=(("xattr.user.a", b"1"),))
    assert tree.image()[1].left.examples == [b"plain"]
    with tree.mounted(tmp_path) as target:
        status = os.stat(os.path.join(target, b"owned"))
        assert (status.st_uid, status.st_gid) == (1234, 77)


def test_an_empty_seq_is_an_empty_directory(tmp_path: Path) -> None:
    with Tree().mounted(tmp_path) as target:
        assert os.listdir(target) == []


def test_the_same_entries_give_the_same_bytes() -> None:
    one, other = Tree(), Tree()
    for tree in (one, other):
        tree.add(b"d", Kind.DIRECTORY, 0o755)
        tree.file(b"d/f", 10)
    assert one.image()[0] == other.image()[0]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(Unsupported, match="TiB"):
        ImageBuilder(DEVICE_BLOCKS_MAX + 1, b"i" * 16)
    tree = Tree()
    tree.add(b"none/file", Kind.FILE)
    with pytest.raises(Corrupt):
        tree.image()


@given(sorted_entries())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tree(tmp_path: Path, found: list[Entry]) -> None:
    """Whatever names, modes and times come: as the kernel reads them, they are what was written."""
    tree = Tree()
    seen: dict[bytes, Kind] = {}
    for entry in found:
        parts = entry.path.split(b"/")
        above = [b"/".join(parts[:length]) for length in range(1, len(parts))]
        if entry.kind == Kind.TOMBSTONE or any(seen.get(path, Kind.DIRECTORY) != Kind.DIRECTORY for path in above):
            continue
        if entry.path in seen:
            continue
        for path in above:
            if path not in seen:
                seen[path] = Kind.DIRECTORY
                tree.add(path, Kind.DIRECTORY, 0o755)
        seen[entry.path] = Kind(entry.kind)
        if entry.kind == Kind.FILE:
            tree.file(entry.path, entry.size % 70_000, entry.mode)
        else:
            tree.add(entry.path, Kind(entry.kind), entry.mode, entry.mtime_ns, target=entry.target)
    with tree.mounted(tmp_path) as target:
        tree.check(target)
