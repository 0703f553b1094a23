"""What a publish does not do: read runs, read files again, read a large chain for a small change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from synclib.disk.chunk_index import ChunkIndex
from tests.kit import Kit, put


def age(kit: Kit) -> None:
    """Old enough to be believed."""
    for place, _, files in os.walk(kit.directory):
        for file in files:
            os.utime(os.path.join(place, file), (1, 1), follow_symlinks=False)


def cache_files(kit: Kit, pattern: str) -> list[Path]:
    return list((kit.place / "cache").rglob(pattern))


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    kit = Kit(tmp_path)
    kit.write({b"a": b"1", b"d": None, b"d/x": b"2", b"l": ("link", b"a")})
    age(kit)
    kit.publish()
    return kit


def test_nothing_new_reads_no_run_and_opens_no_index(kit: Kit) -> None:
    for path in cache_files(kit, "run/*-*"):
        path.write_bytes(bytes(path.stat().st_size))
    for path in cache_files(kit, "chunks*"):
        path.unlink()
    state = {path: path.stat().st_mtime_ns for path in (kit.place / "state").rglob("*.*")}
    assert not kit.publish().is_new
    assert cache_files(kit, "chunks*") == []
    assert {path: path.stat().st_mtime_ns for path in (kit.place / "state").rglob("*.*")} == state


def test_a_directory_that_goes_takes_all_below_it(kit: Kit) -> None:
    kit.write({b"a": b"1", b"d": ("link", b"a"), b"l": ("link", b"a"), b"e": None, b"e/f": None, b"e/f/g": b"3"})
    done = kit.publish()
    assert (done.added, done.changed, done.deleted) == (3, 1, 1)
    kit.write({b"a": b"1", b"d": None, b"d/e": None})
    done = kit.publish()
    assert (done.added, done.changed, done.deleted) == (1, 1, 4)
    assert kit.verify().damage == []


def test_a_young_file_is_read_once_more_and_then_believed(kit: Kit) -> None:
    put(kit.directory, b"young", b"12345")
    future_ns = kit.host.clock.wall_ns() + 3 * 10**8
    os.utime(kit.directory / "young", ns=(0, future_ns))
    assert kit.publish().read_bytes == 5
    assert kit.publish().read_bytes == 5
    while kit.host.clock.wall_ns() < future_ns + 2 * 10**8:
        pass
    assert kit.publish().read_bytes == 5
    assert kit.publish().read_bytes == 0


def test_a_directory_that_cannot_be_read_is_compared_anew_when_it_can(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root reads everything, so the refusal is made here."""
    before = os.scandir

    def refusing(path: bytes | Path) -> object:
        if os.fsencode(path).endswith(b"/source/d"):
            raise PermissionError(13, "Permission denied")
        return before(path)

    with monkeypatch.context() as patch:
        patch.setattr("synclib.disk.scan.os.scandir", refusing)
        done = kit.publish()
        assert (done.is_new, done.skipped) == (False, [(b"d", "Permission denied")])
    os.unlink(kit.directory / "d/x")
    put(kit.directory, b"d/y", b"2")
    done = kit.publish()
    assert (done.added, done.changed, done.deleted, done.skipped) == (1, 0, 1, [])


def test_a_fresh_publisher_finds_chunks_within_a_budget(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it misses is stored once more; each publish goes on where the last one ended."""
    kit.write({b"%03d" % number: b"content %d" % number * 20 for number in range(200)})
    age(kit)
    kit.publish(allow_delete=True)
    run = kit.dataset.read_head().manifest.runs[-1]
    monkeypatch.setattr("synclib.engine.reading._INDEXED_PER_JOB", 20)
    monkeypatch.setattr("synclib.engine.reading._INDEXED_PER_FILE", 0)
    other = Kit(tmp_path / "other", kit.store, seed=2)
    keys = []
    for number in range(15):
        other.write({b"copy%d" % number: b"content %d" % (number * 12) * 20})
        other.publish(prefix=b"copies", allow_delete=True)
        (path,) = cache_files(other, "chunks*.sqlite")
        index = ChunkIndex(path, "")
        keys.append(index.next_key(run.ulid))
        index.close()
    assert keys[0] == b"\0\x00020"
    assert keys[-1] is None
    known = [key for key in keys if key is not None]
    assert known == sorted(known)
    assert kit.verify().damage == []


def test_a_folder_of_a_large_chain_is_published_without_bringing_it_here(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synclib.engine.publish._FILL_BYTES", 0)
    (run,) = kit.dataset.read_head().manifest.runs
    other = Kit(tmp_path / "other", kit.store, seed=2)
    other.write({b"x": b"2"})
    for number in range(3):
        put(other.directory, b"y", b"%d" % number)
        assert other.publish(prefix=b"new").is_new
    assert cache_files(other, run.file_name) == []
    assert kit.verify().damage == []
