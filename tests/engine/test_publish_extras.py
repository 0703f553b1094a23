"""What a path has beside its bytes and status: hard links, owners, extended attributes, holes."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path

import pytest
from blake3 import blake3

from synclib.core.entry import ChunkRef, Entry
from synclib.disk.link_contents import LinkContents
from synclib.disk.scan_extras import Extras
from synclib.errors import Full, Unavailable
from synclib.lazy.chain import Chain
from synclib.lazy.run_reader import StoreRuns
from tests.kit import Kit, put, read_tree


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


def published(kit: Kit) -> dict[bytes, Entry]:
    chain = Chain.of(StoreRuns(kit.store), kit.dataset.root, kit.dataset.read_head().manifest.runs)
    return {entry.path: entry for entry in chain.entries()}


def group_at(path: bytes) -> tuple[tuple[str, bytes], ...]:
    return (("hardlink", blake3(path).digest(16)),)


def link(kit: Kit, source: str, target: str) -> None:
    os.link(kit.directory / source, kit.directory / target)


def age(kit: Kit) -> None:
    """Old enough to be believed."""
    for place, _, files in os.walk(kit.directory):
        for file in files:
            os.utime(os.path.join(place, file), (1, 1), follow_symlinks=False)


def test_links_below_the_directory_are_a_group_and_are_read_once(kit: Kit, tmp_path: Path) -> None:
    kit.write({b"a": b"1", b"d": None, b"d/one": b"x" * 5000, b"z": b"2"})
    link(kit, "d/one", "d/two")
    link(kit, "d/one", "x")
    os.link(kit.directory / "z", tmp_path / "elsewhere")
    age(kit)
    done = kit.publish()
    entries = published(kit)
    # In the order of entries "x", at the top, comes first.
    assert {path: entry.extra for path, entry in entries.items() if entry.extra} == dict.fromkeys(
        [b"d/one", b"d/two", b"x"], group_at(b"x")
    )
    assert entries[b"d/one"].chunks == entries[b"d/two"].chunks == entries[b"x"].chunks != ()
    assert done.read_bytes == 5002
    assert kit.verify().damage == []
    assert not kit.publish().is_new


def test_a_group_follows_its_links(kit: Kit) -> None:
    kit.write({b"a": b"x" * 100, b"q": b"", b"d": None})
    link(kit, "a", "b")
    link(kit, "q", "d/q")
    age(kit)
    kit.publish(prefix=b"sub")
    assert published(kit)[b"sub/b"].extra == group_at(b"sub/a")
    assert published(kit)[b"sub/d/q"].extra == group_at(b"sub/q")
    link(kit, "a", "c")
    done = kit.publish(prefix=b"sub")
    assert (done.added, done.changed, done.read_bytes) == (1, 0, 100)
    assert published(kit)[b"sub/c"].extra == group_at(b"sub/a")
    assert published(kit)[b"sub/c"].chunks == published(kit)[b"sub/a"].chunks
    os.unlink(kit.directory / "a")
    done = kit.publish(prefix=b"sub")
    assert (done.deleted, done.changed, done.read_bytes) == (1, 2, 0)
    assert {path: entry.extra for path, entry in published(kit).items() if path in (b"sub/b", b"sub/c")} == {
        b"sub/b": group_at(b"sub/b"),
        b"sub/c": group_at(b"sub/b"),
    }
    os.unlink(kit.directory / "b")
    kit.publish(prefix=b"sub")
    assert published(kit)[b"sub/c"].extra == ()


def test_links_of_a_file_that_cannot_be_read_are_skipped_together(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.write({b"a": b"x" * 100, b"keep": b"1"})
    link(kit, "a", "b")
    before = os.readv

    def failing(descriptor: int, buffers: list[memoryview]) -> int:
        if os.fstat(descriptor).st_nlink > 1:
            raise OSError(5, "Input/output error")
        return before(descriptor, buffers)

    with monkeypatch.context() as patch:
        patch.setattr("synclib.engine.pack_job.os.readv", failing)
        done = kit.publish()
    assert sorted(done.skipped) == [(b"a", "Input/output error"), (b"b", "Input/output error")]
    assert published(kit).keys() == {b"keep"}
    assert kit.publish().added == 2


def test_owners_on_request(kit: Kit) -> None:
    kit.write({b"f": b"1", b"d": None, b"l": ("link", b"f")})
    age(kit)
    kit.publish()
    assert all(entry.extra == () for entry in published(kit).values())
    done = kit.publish(owners=True)
    assert (done.changed, done.read_bytes) == (3, 0)
    owner = ("owner", struct.pack("<II", os.getuid(), os.getgid()))
    assert all(entry.extra == (owner,) for entry in published(kit).values())
    assert not kit.publish(owners=True).is_new
    if os.getuid() == 0:
        os.chown(kit.directory / "l", 7, 8, follow_symlinks=False)
        assert kit.publish(owners=True).changed == 1
        assert published(kit)[b"l"].extra == (("owner", struct.pack("<II", 7, 8)),)
    kit.publish()
    assert all(entry.extra == () for entry in published(kit).values())


def test_attributes_on_request(kit: Kit) -> None:
    kit.write({b"f": b"1", b"d": None, b"l": ("link", b"f")})
    try:
        os.setxattr(kit.directory / "f", "user.note", b"\0\xff")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    os.setxattr(kit.directory / "f", "user.a", b"")
    os.setxattr(kit.directory / "d", "user.note", b"2")
    age(kit)
    kit.publish(xattrs=True)
    entries = published(kit)
    assert entries[b"f"].extra == (("xattr.user.a", b""), ("xattr.user.note", b"\0\xff"), ("xattrs", b""))
    assert entries[b"d"].extra == (("xattr.user.note", b"2"), ("xattrs", b""))
    assert not kit.publish(xattrs=True).is_new
    os.setxattr(kit.directory / "f", "user.a", b"now")
    done = kit.publish(xattrs=True)
    assert (done.changed, done.read_bytes, done.notes) == (1, 0, [])


def test_an_attribute_whose_name_is_no_text_is_said_each_time(kit: Kit) -> None:
    kit.write({b"d": None, b"d/f": b"1"})
    try:
        os.setxattr(kit.directory / "d/f", b"user.\xff", b"1")
    except OSError:
        pytest.skip("this file system has no such attributes")
    age(kit)
    for _ in range(2):
        done = kit.publish(xattrs=True)
        assert done.notes == [(b"d/f", r"its attribute b'user.\xff' is left out: its name is no UTF-8")]
        assert published(kit)[b"d/f"].extra == ()


def test_a_change_of_mode_alone_reads_nothing(kit: Kit) -> None:
    kit.write({b"f": b"x" * 1000})
    age(kit)
    kit.publish()
    os.chmod(kit.directory / "f", 0o4711)
    done = kit.publish()
    assert (done.changed, done.read_bytes, published(kit)[b"f"].mode) == (1, 0, 0o4711)
    assert kit.verify().damage == []


def test_a_hole_is_published_as_its_zeros(kit: Kit, tmp_path: Path) -> None:
    size = (64 << 20) + 12_345
    sparse, full = kit.directory / "sparse", kit.directory / "full"
    for path in (sparse, full):
        with open(path, "wb") as file:
            file.write(b"begin" * 300_000)
            file.truncate(size)
            file.seek(40_000_001)
            file.write(b"middle" * 100)
    with open(full, "r+b") as file:
        data = file.read()
        file.seek(0)
        file.write(data)
    assert os.stat(sparse).st_blocks < os.stat(full).st_blocks
    kit.publish()
    entries = published(kit)
    assert [chunk.hash for chunk in entries[b"sparse"].chunks] == [chunk.hash for chunk in entries[b"full"].chunks]
    kit.restore(tmp_path / "out")
    assert (tmp_path / "out/sparse").read_bytes() == data


def test_shapes_that_are_rare(kit: Kit, tmp_path: Path) -> None:
    """Names of 255 bytes, composed and decomposed ones side by side, times far away, special bits, many in one
    directory, many levels: all of it as it is, and nothing of it new the next time."""
    put(kit.directory, b"n" * 255, b"1")
    put(kit.directory, "\u00e9".encode(), b"2")
    put(kit.directory, "e\u0301".encode(), b"3")
    deep = b"/".join([b"d"] * 200)
    put(kit.directory, deep + b"/f", b"4")
    for number in range(10_000):
        os.symlink(b"t", os.path.join(os.fsencode(kit.directory), b"%05d" % number))
    age(kit)
    times = {b"n" * 255: -1_500_000_001, "\u00e9".encode(): 4_000_000_000_123_456_789}
    for name, time_ns in times.items():
        os.utime(os.path.join(os.fsencode(kit.directory), name), ns=(0, time_ns))
    os.chmod(os.path.join(os.fsencode(kit.directory), "e\u0301".encode()), 0o7644)
    os.mkfifo(kit.directory / "pipe")
    done = kit.publish()
    assert done.skipped == [(b"pipe", "it is a socket, a pipe or a device")]
    entries = published(kit)
    assert len(entries) == 10_000 + 3 + 201
    # What is too young to be believed: times in the future.
    assert {name: entries[name].mtime_ns for name in times} == times
    assert entries["e\u0301".encode()].mode == 0o7644
    assert deep + b"/f" in entries
    again = kit.publish()
    assert (again.is_new, again.skipped) == (False, done.skipped)


def test_memory_for_links_does_not_follow_their_number(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree of backups has several links of each file: few bytes of memory a link, whatever is kept in files."""
    monkeypatch.setattr("synclib.disk.sorted_rows._SORTED_ROWS", 500)
    monkeypatch.setattr("synclib.disk.sorted_rows._READ_ROWS", 10)
    monkeypatch.setattr("synclib.disk.link_groups._MEMORY_BYTES", 1)
    count = 1500
    for day in range(4):
        for number in range(count):
            place = kit.directory / f"{day}" / f"{number // 100}"
            if number % 100 == 0:
                place.mkdir(parents=True)
            if day:
                os.link(kit.directory / "0" / f"{number // 100}" / f"{number}", place / f"{number}")
            else:
                (place / f"{number}").touch()
    status = [os.stat(kit.directory / "3/0/7"), os.stat(kit.directory / "1/14/1499")]
    extras = Extras(os.fsencode(kit.directory), b"")
    tracemalloc.start()
    try:
        found = [extras.of(b"", one, {}) for one in status]
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        extras.close()
    assert found == [group_at(b"0/0/7"), group_at(b"0/14/1499")]
    assert kept < 4 * count * 10
    assert peak < 4 * count * 40


def test_what_first_links_hold_moves_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synclib.disk.link_contents._GROUPS_IN_MEMORY", 50)
    contents = LinkContents()
    count = 5000
    tracemalloc.start()
    try:
        for number in range(count):
            group = blake3(b"%d" % number).digest(16)
            assert contents.lead(group, number, 7) is None
            contents.keep(group, (ChunkRef(bytes(32), bytes(16), number, 7, 7, 0),) if number % 2 else "unread")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < count * 30
    for number in range(0, count, 7):
        group = blake3(b"%d" % number).digest(16)
        assert contents.lead(group, 0, 0) == (number, 7)
        content = contents.content(group)
        assert content == "unread" if isinstance(content, str) else content[0].offset == number
        assert isinstance(content, str) == (number % 2 == 0)
    contents.close()


def test_many_groups_come_back_as_links(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Further links that come many jobs after their first ones."""
    monkeypatch.setattr("synclib.disk.link_contents._GROUPS_IN_MEMORY", 7)
    monkeypatch.setattr("synclib.engine.reading._JOB_FILES", 10)
    kit.write({b"a": None, b"b": None, **{b"a/%03d" % number: b"%d" % number for number in range(100)}})
    for number in range(100):
        link(kit, f"a/{number:03}", f"b/{99 - number:03}")
    age(kit)
    os.unlink(kit.directory / "a/050")
    os.link(kit.directory / "b/000", kit.directory / "a/050")
    assert not kit.publish().skipped
    assert kit.verify().damage == []
    kit.restore(tmp_path / "out")
    assert read_tree(tmp_path / "out") == read_tree(kit.directory)
    for name in ("a/003", "a/099", "b/049"):
        here, there = os.stat(tmp_path / "out" / name), os.stat(kit.directory / name)
        assert here.st_nlink == there.st_nlink


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone"), OSError(28, "full"), OSError(5, "broken")])
def test_where_links_cannot_be_remembered_nothing_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    """A file whose listing fails so would be taken for one that is gone, and deleted for all."""
    kit = Kit(tmp_path / "kit")
    kit.write({b"a": b"x" * 3000, b"b": b"y"})
    os.link(kit.directory / "a", kit.directory / "link")
    kit.publish()

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("synclib.disk.scan_extras.LinkGroups", fails)
    (kit.directory / "b").write_bytes(b"changed")
    with pytest.raises((Full, Unavailable)):
        kit.publish()
    assert kit.dataset.read_head().manifest.seq == 1


def test_where_the_directory_of_temporary_files_is_gone_nothing_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = Kit(tmp_path / "kit")
    kit.write({b"a": b"x" * 3000})
    os.link(kit.directory / "a", kit.directory / "link")
    kit.publish()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(Unavailable, match="hard links"):
        kit.publish()
    assert kit.dataset.read_head().manifest.seq == 1
