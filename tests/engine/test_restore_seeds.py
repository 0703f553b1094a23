"""Bytes that are here already are not fetched: moved files, an older copy elsewhere, packs on this machine."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from synclib.core.content_set import ContentSet
from synclib.disk.tree import Tree
from synclib.engine.seeds import clone_whole, copy_whole
from synclib.errors import Invalid, Unavailable
from synclib.lazy.chain import Chain
from synclib.lazy.run_reader import StoreRuns
from synclib.store.open import open_store
from tests.engine.test_restore_resume import Stops, fetched_by, stopping_kit
from tests.kit import Content, Kit, metadata, put, read_tree

ENTROPY = random.Random(11)


@contextlib.contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """Who waits for ever is woken, and fails."""

    def late(*_: object) -> None:
        raise AssertionError(f"it hung for {seconds} s")

    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def seeds_of(*directories: Path) -> tuple[bytes, ...]:
    return tuple(os.fsencode(directory) for directory in directories)


def pack_reads(kit: Kit, store: Stops, out: Path, **options: object) -> int:
    store.left = 1 << 20
    kit.restore(out, **options)
    return (1 << 20) - store.left


@pytest.fixture
def tree() -> Content:
    files: Content = {b"old/%02d" % number: ENTROPY.randbytes(30_000) for number in range(40)}
    files[b"old/large"] = ENTROPY.randbytes(20 << 20)
    files[b"old/empty"] = b""
    return {b"old": None, **files}


@pytest.mark.parametrize("is_full", [True, False])
def test_a_renamed_directory_fetches_nothing(tmp_path: Path, tree: Content, is_full: bool) -> None:
    kit, store = stopping_kit(tmp_path)
    kit.write(tree)
    kit.publish()
    out = tmp_path / "out"
    kit.restore(out)
    os.rename(kit.directory / "old", kit.directory / "new")
    os.utime(kit.directory / "new/07", ns=(1, 1))
    os.chmod(kit.directory / "new/08", 0o600)
    kit.publish()
    inode = os.stat(out / "old/large").st_ino
    plan = kit.restore(out, is_dry_run=True)
    assert (plan.fetch_requests, plan.fetched_bytes, plan.fetched_files) == (0, 0, 42)
    assert pack_reads(kit, store, out, is_full=is_full) == 0
    assert read_tree(out) == read_tree(kit.directory)
    assert metadata(out) == metadata(kit.directory)
    assert os.stat(out / "new/large").st_ino == inode  # not even copied
    assert os.listdir(out / ".boxlink/tmp") == []


def test_files_that_change_places(tmp_path: Path) -> None:
    kit, store = stopping_kit(tmp_path)
    kit.write({b"a": b"A" * 5000, b"b": b"B" * 5000, b"log": b"newest" * 999, b"log.1": b"older" * 999})
    kit.publish()
    out = tmp_path / "out"
    kit.restore(out)
    kit.write({b"a": b"B" * 5000, b"b": b"A" * 5000, b"log.1": b"newest" * 999, b"log.2": b"older" * 999})
    kit.publish()
    assert pack_reads(kit, store, out) == 0
    assert read_tree(out) == read_tree(kit.directory)
    assert len({os.stat(out / name).st_ino for name in ("a", "b", "log.1", "log.2")}) == 4


def test_many_files_with_the_same_bytes(tmp_path: Path) -> None:
    kit, store = stopping_kit(tmp_path)
    kit.write({b"d": None, **{b"d/%d" % number: b"same" * 500 for number in range(20)}})
    kit.publish()
    out = tmp_path / "out"
    kit.restore(out)
    os.rename(kit.directory / "d", kit.directory / "e")
    kit.publish()
    assert pack_reads(kit, store, out) == 0
    assert read_tree(out) == read_tree(kit.directory)
    assert len({os.stat(out / f"e/{number}").st_ino for number in range(20)}) == 20


def test_a_restore_broken_off_after_the_removal_has_its_seeds(tmp_path: Path, tree: Content) -> None:
    kit, store = stopping_kit(tmp_path)
    kit.write(tree)
    kit.publish()
    out = tmp_path / "out"
    kit.restore(out)
    os.rename(kit.directory / "old", kit.directory / "new")
    put(kit.directory, b"a", b"must be fetched")
    kit.publish()
    store.left = 0
    with pytest.raises(Unavailable):
        kit.restore(out)
    assert not (out / "old/00").exists()
    assert pack_reads(kit, store, out) == 1
    assert read_tree(out) == read_tree(kit.directory)


def test_a_moved_file_that_was_changed_here_is_fetched_and_kept(tmp_path: Path, tree: Content) -> None:
    kit, store = stopping_kit(tmp_path)
    kit.write(tree)
    kit.publish()
    out = tmp_path / "out"
    kit.restore(out)
    os.rename(kit.directory / "old", kit.directory / "new")
    kit.publish()
    status = os.stat(out / "old/03")
    (out / "old/03").write_bytes(bytes(status.st_size))
    os.utime(out / "old/03", ns=(status.st_mtime_ns, status.st_mtime_ns))
    (out / "old/04").write_bytes(b"by hand")
    assert pack_reads(kit, store, out) > 0
    found = read_tree(out)
    assert found.pop(b"old/04") == b"by hand"
    del found[b"old"]
    assert found == read_tree(kit.directory)


def test_a_strangers_link_keeps_its_bytes_and_its_time(tmp_path: Path) -> None:
    kit, _ = stopping_kit(tmp_path)
    kit.write({b"a": b"A" * 5000})
    kit.publish()
    out = tmp_path / "out"
    kit.restore(out)
    os.link(out / "a", tmp_path / "mine")
    before = os.stat(tmp_path / "mine")
    os.rename(kit.directory / "a", kit.directory / "b")
    os.utime(kit.directory / "b", ns=(5, 5))
    kit.publish()
    kit.restore(out)
    after = os.stat(tmp_path / "mine")
    assert (after.st_mtime_ns, after.st_mode, after.st_nlink) == (before.st_mtime_ns, before.st_mode, 1)
    assert read_tree(out) == {b"b": b"A" * 5000}


def test_another_directory_as_a_seed(tmp_path: Path, tree: Content) -> None:
    kit, store = stopping_kit(tmp_path)
    kit.write(tree)
    kit.publish()
    seed = tmp_path / "seed"
    kit.restore(seed)
    # The same size, other bytes; a link that leads away; a piece of a large file.
    (seed / "old/05").write_bytes(bytes(30_000))
    os.unlink(seed / "old/06")
    os.symlink(kit.directory / "old/06", seed / "old/06")
    with open(seed / "old/large", "r+b") as file:
        file.write(b"torn")
    out = tmp_path / "out"
    done = kit.restore(out, seeds=seeds_of(seed))
    assert done.fetched_bytes < 4 << 20
    assert done.fetch_requests > 0
    assert read_tree(out) == read_tree(kit.directory)
    assert metadata(out) == metadata(kit.directory)
    assert pack_reads(kit, store, tmp_path / "other", seeds=seeds_of(out)) == 0


def test_a_seed_that_is_no_directory(tmp_path: Path) -> None:
    kit, _ = stopping_kit(tmp_path)
    kit.write({b"a": b"1"})
    kit.publish()
    with pytest.raises(Invalid):
        kit.restore(tmp_path / "out", seeds=seeds_of(tmp_path / "nothing"))


def test_packs_of_a_store_on_this_machine(tmp_path: Path, tree: Content) -> None:
    kit, store = stopping_kit(tmp_path)
    kit.write(tree)
    kit.publish()
    (tmp_path / "near").mkdir()
    near = open_store(f"file://{tmp_path}/near", {})[0]
    for info in kit.store.list("data/"):
        fetched = kit.store.get(info.key, size_max=1 << 30)
        assert fetched is not None
        near.put(info.key, fetched.data)
    root = tmp_path / "near/data/covers"
    assert pack_reads(kit, store, tmp_path / "out", seeds=seeds_of(root)) == 0
    assert read_tree(tmp_path / "out") == tree
    for pack in (root / "pack").iterdir():
        with open(pack, "r+b") as file:
            file.seek(1000)
            file.write(b"damaged here")
    # Only what is damaged is asked for.
    assert fetched_by(kit, tmp_path / "third", seeds=seeds_of(root)) < 4 << 20
    assert read_tree(tmp_path / "third") == tree


def test_a_set_of_contents_forgets_nothing() -> None:
    contents = ContentSet()
    ids = [ENTROPY.randbytes(32) for _ in range(10_000)]
    for content in ids:
        contents.add(content)
    assert all(content in contents for content in ids)
    assert sum(ENTROPY.randbytes(32) in contents for _ in range(10_000)) == 0


def test_a_clone_is_right_or_not_made(tmp_path: Path) -> None:
    """Where the file system has no clones (ext4, tmpfs) it says so once; where it has, the bytes are looked at."""
    kit, _ = stopping_kit(tmp_path)
    blob = ENTROPY.randbytes(300_000)
    kit.write({b"a": blob})
    kit.publish()
    manifest = kit.dataset.manifest_at(None)
    (entry,) = Chain.of(StoreRuns(kit.store), kit.dataset.root, manifest.runs).entries()
    (tmp_path / "out").mkdir()
    tree = Tree(os.fsencode(tmp_path / "out"))
    tree.prepare()
    for data in (bytes(300_000), blob):
        (tmp_path / "local").write_bytes(data)
        with open(tmp_path / "local", "rb") as source:
            assert copy_whole(tree, source.fileno(), entry) is (data is blob)
            assert not clone_whole(tree, source.fileno(), entry) or data is blob
        assert read_tree(tmp_path / "out") == ({b"a": blob} if data is blob else {})
    assert os.listdir(tmp_path / "out/.boxlink/tmp") == []
    tree.close()


def test_a_pipe_where_a_pack_belongs_is_no_seed(tmp_path: Path) -> None:
    """It is passed over: nobody waits for who writes into it."""
    kit = Kit(tmp_path)
    kit.write({b"a": b"1" * 1000})
    kit.publish()
    seed = tmp_path / "seed"
    for info in list(kit.store.list("data/covers/")):
        path = seed / info.key.removeprefix("data/covers/")
        path.parent.mkdir(parents=True, exist_ok=True)
        found = kit.store.get(info.key, size_max=1 << 20)
        assert found is not None
        os.mkfifo(path) if "/pack/" in info.key else path.write_bytes(found.data)
    with deadline(20):
        kit.restore(tmp_path / "out", seeds=seeds_of(seed))
    assert read_tree(tmp_path / "out") == read_tree(kit.directory)


@pytest.mark.parametrize("kind", ["pipe", "directory", "link to a device"])
def test_what_is_no_copy_of_a_run_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Of a chain that is large, and restored for one path only: its runs are not all fetched first."""
    monkeypatch.setattr("synclib.engine.restore._FILL_BYTES", 0)
    kit = Kit(tmp_path)
    kit.write({b"a": b"1" * 1000, b"b": b"2"})
    kit.publish()
    out = tmp_path / "out"
    kit.restore(out)
    for copy in (out / ".boxlink/run").iterdir():
        copy.unlink()
    kit.write({b"a": b"2" * 1000, b"b": b"2"})
    kit.publish()
    for run in kit.dataset.read_head().manifest.runs:
        path = out / ".boxlink/run" / run.file_name
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero")
    with deadline(20):
        if kind == "directory":
            with pytest.raises(Invalid, match="directory"):
                kit.restore(out, path=b"a")
            return
        kit.restore(out, path=b"a")
        assert (out / "a").read_bytes() == b"2" * 1000
