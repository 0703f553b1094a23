"""Hard links, owners and extended attributes: what an entry says stands here, and strangers keep what is theirs."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import msgspec
import pytest

from synclib.core.entry import ChunkRef, Entry, Kind
from synclib.core.run import PackTable
from synclib.engine.restore import RestoreResult
from tests.engine.forge import TIME_NS, Forge, directory, file, link
from tests.kit import Kit, read_tree

GROUP = ("hardlink", b"g" * 16)
OTHER_GROUP = ("hardlink", b"h" * 16)
IS_ROOT = os.geteuid() == 0


def owner(uid: int, gid: int) -> tuple[str, bytes]:
    return "owner", struct.pack("<II", uid, gid)


def extra(entry: Entry, *extras: tuple[str, bytes], **changes: object) -> Entry:
    return msgspec.structs.replace(entry, extra=tuple(sorted(extras)), **changes)


class Place:
    """A forged dataset and one directory that it is restored into."""

    def __init__(self, place: Path) -> None:
        self.forge = Forge()
        self.kit = Kit(place / "kit", self.forge.store)
        self.out = place / "out"

    def publish(self, *entries: Entry, table: PackTable | None = None) -> None:
        self.forge.publish(sorted(entries, key=lambda entry: entry.key), table=table)

    def restore(self, **options: object) -> RestoreResult:
        return self.kit.restore(self.out, **options)

    def inodes(self) -> dict[str, int]:
        found = {}
        for top, _, files in os.walk(self.out):
            if ".boxlink" not in top:
                found.update(
                    {
                        os.path.relpath(os.path.join(top, n), self.out): os.lstat(os.path.join(top, n)).st_ino
                        for n in files
                    }
                )
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def chunks_of(place: Place, data: bytes) -> tuple[tuple[ChunkRef, ...], PackTable]:
    return place.forge.chunks(data)


def test_a_group_is_one_inode_and_fetched_once(place: Place) -> None:
    chunks, table = chunks_of(place, b"x" * 5000)
    members = [extra(file(path, chunks), GROUP) for path in (b"a", b"d/b", b"d/e/c")]
    place.publish(directory(b"d"), directory(b"d/e"), *members, file(b"alone", chunks), table=table)
    done = place.restore()
    assert done.problems == []
    inodes = place.inodes()
    assert inodes["a"] == inodes["d/b"] == inodes["d/e/c"] != inodes["alone"]
    assert os.stat(place.out / "a").st_nlink == 3
    assert (place.out / "d/e/c").read_bytes() == b"x" * 5000
    assert place.restore().fetched_files == 0
    assert place.inodes() == inodes


def test_a_group_that_came_apart_is_put_together(place: Place) -> None:
    chunks, table = chunks_of(place, b"x" * 5000)
    place.publish(*(extra(file(path, chunks), GROUP) for path in (b"a", b"b", b"c")), table=table)
    place.restore()
    for name, data in (("b", b"x" * 5000), ("c", b"mine")):
        os.unlink(place.out / name)
        (place.out / name).write_bytes(data)
        os.utime(place.out / name, ns=(TIME_NS, TIME_NS))
    done = place.restore()
    assert (done.fetched_bytes, len(set(place.inodes().values()))) == (0, 1)
    # And where the first is gone, or another's.
    os.unlink(place.out / "a")
    place.restore()
    assert len(set(place.inodes().values())) == 1
    assert set(read_tree(place.out).values()) == {b"x" * 5000}


def test_a_member_that_comes_later_is_linked_to_the_others(place: Place) -> None:
    chunks, table = chunks_of(place, b"x" * 5000)
    place.publish(extra(file(b"a", chunks), GROUP), extra(file(b"b", chunks), GROUP), table=table)
    place.restore()
    place.publish(extra(file(b"c", chunks), GROUP), table=table)
    assert place.restore(is_full=False).fetched_bytes == 0
    assert len(set(place.inodes().values())) == 1


def test_new_bytes_of_a_group_leave_a_strangers_link_alone(place: Place, tmp_path: Path) -> None:
    chunks, table = chunks_of(place, b"old" * 1000)
    place.publish(extra(file(b"a", chunks), GROUP), extra(file(b"b", chunks), GROUP), table=table)
    place.restore()
    os.link(place.out / "a", tmp_path / "mine")
    chunks, table = chunks_of(place, b"new" * 1000)
    place.publish(extra(file(b"a", chunks), GROUP), extra(file(b"b", chunks), GROUP), table=table)
    place.restore(is_full=False)
    assert set(read_tree(place.out).values()) == {b"new" * 1000}
    assert os.stat(place.out / "a").st_ino == os.stat(place.out / "b").st_ino
    assert (tmp_path / "mine").read_bytes() == b"old" * 1000


def test_groups_that_change_members(place: Place) -> None:
    chunks, table = chunks_of(place, b"x" * 5000)
    names = (b"a", b"b", b"c", b"d")
    groups = (GROUP, GROUP, OTHER_GROUP, OTHER_GROUP)
    place.publish(*(extra(file(n, chunks), g) for n, g in zip(names, groups, strict=True)), table=table)
    place.restore()
    groups = (GROUP, OTHER_GROUP, GROUP, OTHER_GROUP)
    place.publish(*(extra(file(n, chunks), g) for n, g in zip(names, groups, strict=True)), table=table)
    place.restore(is_full=False)
    inodes = place.inodes()
    assert inodes["a"] == inodes["c"] != inodes["b"] == inodes["d"]
    place.publish(*(file(name, chunks) for name in names), table=table)
    place.restore()
    assert len(set(place.inodes().values())) == 4


def test_entries_that_are_no_group_are_no_links(place: Place, tmp_path: Path) -> None:
    chunks, table = chunks_of(place, b"x" * 5000)
    place.publish(file(b"a", chunks), file(b"b", chunks), table=table)
    place.restore()
    os.unlink(place.out / "b")
    os.link(place.out / "a", place.out / "b")
    os.link(place.out / "a", tmp_path / "mine")
    place.restore()
    assert len({*place.inodes().values()}) == 2
    # A new time is not given to the stranger's name of the same file.
    place.publish(msgspec.structs.replace(file(b"a", chunks), mtime_ns=5), table=table)
    place.restore()
    assert os.stat(place.out / "a").st_mtime_ns == 5
    assert os.stat(tmp_path / "mine").st_mtime_ns == TIME_NS


def test_a_link_onto_a_directory_with_files_is_a_problem(place: Place) -> None:
    chunks, table = chunks_of(place, b"x" * 5000)
    place.publish(extra(file(b"a", chunks), GROUP), extra(file(b"b", chunks), GROUP), table=table)
    (place.out / "b").mkdir(parents=True)
    (place.out / "b/mine").write_bytes(b"stranger")
    done = place.restore()
    assert [path for path, _ in done.problems] == [b"b"]
    assert read_tree(place.out) == {b"a": b"x" * 5000, b"b": None, b"b/mine": b"stranger"}


@pytest.mark.skipif(not IS_ROOT, reason="only root gives files away")
def test_owners_are_set_by_root_and_setuid_survives(place: Place) -> None:
    chunks, table = chunks_of(place, b"x" * 50)
    entries = [
        extra(file(b"f", chunks), owner(1234, 2345), mode=0o4711),
        extra(directory(b"d"), owner(1, 2)),
        extra(directory(b"closed"), owner(3, 4), mode=0o555),
        extra(link(b"l", b"f"), owner(5, 6)),
        extra(Entry(b"", b"empty", Kind.FILE, 0o600, TIME_NS), owner(7, 8)),
        file(b"nobody says", chunks),
    ]
    place.publish(*entries, table=table)
    done = place.restore()
    assert (done.problems, done.left_out) == ([], [])

    def found() -> dict[str, tuple[int, int]]:
        return {n: (os.lstat(place.out / n).st_uid, os.lstat(place.out / n).st_gid) for n in ("f", "d", "l", "empty")}

    expected = {"f": (1234, 2345), "d": (1, 2), "l": (5, 6), "empty": (7, 8)}
    assert found() == expected
    assert os.stat(place.out / "f").st_mode & 0o7777 == 0o4711
    assert os.stat(place.out / "nobody says").st_uid == os.geteuid()
    # Put right again, without fetching.
    for name in expected:
        os.chown(place.out / name, 0, 0, follow_symlinks=False)
    assert place.restore().fetched_bytes == 0
    assert found() == expected
    assert os.stat(place.out / "f").st_mode & 0o7777 == 0o4711


def test_owners_that_cannot_be_set_are_told_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    chunks, table = chunks_of(place, b"x" * 50)
    trusted = ("xattr.trusted.t", b"1")
    place.publish(*(extra(file(b"%d" % n, chunks), owner(1, 1), trusted) for n in range(5)), table=table)
    done = place.restore()
    assert (done.left_out, done.problems) == (["owner", "xattr.trusted"], [])
    assert "trusted.t" not in os.listxattr(place.out / "1")
    assert place.restore().fetched_files == 0


def test_attributes(place: Place) -> None:
    chunks, table = chunks_of(place, b"x" * 50)
    attributes = (("xattr.user.a", b"\0binary\xff"), ("xattr.user.empty", b""))
    place.publish(extra(file(b"f", chunks), *attributes), extra(directory(b"d"), *attributes), table=table)
    assert place.restore().problems == []
    for name in ("f", "d"):
        assert os.getxattr(place.out / name, "user.a") == b"\0binary\xff"
        assert os.getxattr(place.out / name, "user.empty") == b""
    os.setxattr(place.out / "f", "user.a", b"changed")
    os.removexattr(place.out / "d", "user.empty")
    place.restore()
    assert os.getxattr(place.out / "f", "user.a") == b"\0binary\xff"
    assert os.getxattr(place.out / "d", "user.empty") == b""


def test_an_attribute_that_cannot_be_set_is_a_problem_of_its_path(place: Place) -> None:
    chunks, table = chunks_of(place, b"x" * 50)
    place.publish(
        extra(file(b"f", chunks), ("xattr.nonsense.a", b"1"), ("xattr.user.b", b"2")), file(b"g", chunks), table=table
    )
    done = place.restore()
    if IS_ROOT:
        ((path, reason),) = done.problems
        assert path == b"f"
        assert "nonsense.a" in reason
    else:
        assert done.left_out == ["xattr.nonsense"]
    assert os.getxattr(place.out / "f", "user.b") == b"2"
    assert read_tree(place.out) == {b"f": b"x" * 50, b"g": b"x" * 50}
