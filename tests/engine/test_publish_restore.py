"""Publish and restore, one behaviour a test, over the in-memory store."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import pytest

from synclib.engine.head_swap import archive
from synclib.engine.publish import PublishResult
from synclib.errors import Conflict, Corrupt, Full, Invalid, Missing
from synclib.store.memory import MemoryStore
from synclib.store.meter import Meter, MeteredStore
from tests.kit import Content, Kit, metadata, put, read_tree

TREE = {
    b"a": None,
    b"a/one.jpg": b"one" * 1000,
    b"a/two": b"",
    b"a!": None,
    b"a!/x": b"x",
    b"empty": None,
    b"link": ("link", b"a/one.jpg"),
    b"dangling": ("link", b"/nowhere"),
    b"n\xff\xfe": b"no UTF-8",
    "é".encode(): b"composed",
    "e\u0301".encode(): b"decomposed",
}


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


def test_round_trip_of_all_kinds(kit: Kit, tmp_path: Path) -> None:
    kit.write(TREE)
    os.chmod(kit.directory / "a/one.jpg", 0o4750)
    os.chmod(kit.directory / "empty", 0o1711)
    os.utime(kit.directory / "a/one.jpg", ns=(0, -1_500_000_001))
    os.utime(kit.directory / "a/two", ns=(0, 4_000_000_000_123_456_789))
    done = kit.publish()
    assert (done.seq, done.added, done.files) == (1, len(TREE), 6)
    kit.restore(tmp_path / "out")
    assert read_tree(tmp_path / "out") == TREE
    assert metadata(tmp_path / "out") == metadata(kit.directory)


def test_nothing_changed_makes_no_seq_and_costs_one_get(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.write(TREE)
    for path in read_tree(kit.directory):
        os.utime(os.path.join(os.fsencode(kit.directory), path), (1, 1), follow_symlinks=False)
    kit.publish()
    meter = Meter()
    kit.dataset.store = MeteredStore(kit.store, meter)
    done = kit.publish()
    assert (done.seq, done.is_new, done.read_bytes) == (1, False, 0)
    assert meter.requests == {"get": 1, "put": 0, "list": 0, "delete": 0}


def test_a_young_file_is_read_again_and_nothing_changes(kit: Kit) -> None:
    """Written in the tick of the scan: its time proves nothing (the stat looks as before, the bytes may not be)."""
    put(kit.directory, b"f", b"before")
    status = os.stat(kit.directory / "f")
    kit.publish()
    put(kit.directory, b"f", b"after!")
    os.utime(kit.directory / "f", ns=(status.st_atime_ns, status.st_mtime_ns))
    done = kit.publish()
    assert (done.changed, done.read_bytes) == (1, 6)


def test_second_publish_is_a_diff_with_only_new_chunks(kit: Kit) -> None:
    blob = random.Random(1).randbytes(8 << 20)
    kit.write({b"big": blob, b"small": b"s"})
    kit.publish()
    meter = Meter()
    kit.dataset.store = MeteredStore(kit.store, meter)
    edited = blob[: 4 << 20] + b"inserted" + blob[4 << 20 :]
    kit.write({b"big": edited, b"copy": blob, b"small": b"s"})
    done = kit.publish()
    assert (done.seq, done.added, done.changed) == (2, 1, 1)
    levels = [run.level for run in kit.dataset.read_head().manifest.runs]
    assert levels == ["snap", "diff1"]
    assert meter.bytes_up < 3 << 20
    # run and head: two beside the packs
    packs = len(list(kit.store.list("data/covers/pack/"))) - 1
    assert meter.requests["put"] == 2 + packs


def test_restore_at_every_seq(kit: Kit, tmp_path: Path) -> None:
    states = [{b"a": b"1"}, {b"a": b"2", b"b": None, b"b/c": b"3"}, {b"b": b"now a file"}, {b"b": ("link", b"x")}]
    for state in states:
        kit.write(state)
        kit.publish()
    for seq in (3, 1, 4, 2, 3):
        kit.restore(tmp_path / "out", seq)
        assert read_tree(tmp_path / "out") == states[seq - 1]
    with pytest.raises(Missing):
        kit.restore(tmp_path / "out", 5)


def test_digest_names_the_content_not_the_way(tmp_path: Path) -> None:
    one, two = Kit(tmp_path / "1"), Kit(tmp_path / "2", seed=2)
    for state in ({b"x": b"1"}, {b"x": b"1", b"y": b"2"}, {b"y": b"2"}):
        one.write(state)
        one.publish()
    two.write({b"y": b"2"})
    os.utime(two.directory / "y", ns=(0, os.stat(one.directory / "y").st_mtime_ns))
    digest = one.dataset.read_head().manifest.digest
    assert two.publish().digest == digest
    assert one.restore(tmp_path / "out").digest == digest
    put(two.directory, b"y", b"3")
    assert two.publish().digest != digest


def test_restore_leaves_strangers_and_changed_files(kit: Kit, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kit.write({b"a": b"1", b"b": b"2", b"d": None, b"d/x": b"3"})
    kit.publish()
    kit.restore(out)
    put(out, b"mine", b"stranger")
    put(out, b"d/mine", b"stranger")
    put(out, b"b", b"changed by hand")
    kit.write({b"a": b"1"})
    kit.publish()
    done = kit.restore(out)
    assert done.kept == [b"b"]
    assert read_tree(out) == {
        b"a": b"1", b"b": b"changed by hand", b"mine": b"stranger", b"d": None, b"d/mine": b"stranger",
    }  # fmt: skip
    kit.restore(out, is_delete=True)
    assert read_tree(out) == {b"a": b"1"}


def test_restore_fetches_only_what_is_not_here(kit: Kit, tmp_path: Path) -> None:
    blob = random.Random(2).randbytes(20 << 20)
    kit.write({b"big": blob, b"one": b"1"})
    kit.publish()
    out = tmp_path / "out"
    put(out, b"one", b"1")
    first = kit.restore(out)
    assert first.fetched_files == 1
    kit.write({b"big": blob[: 1 << 20] + b"!" + blob[1 << 20 :], b"one": b"1"})
    kit.publish()
    second = kit.restore(out)
    assert second.fetched_bytes < 3 << 20
    assert read_tree(out)[b"big"] == blob[: 1 << 20] + b"!" + blob[1 << 20 :]
    assert kit.restore(out).fetched_files == 0


def test_restore_of_a_part(kit: Kit, tmp_path: Path) -> None:
    kit.write(TREE)
    kit.publish()
    kit.restore(tmp_path / "out", path=b"a")
    assert read_tree(tmp_path / "out") == {
        path: value for path, value in TREE.items() if path in (b"a", b"a/one.jpg", b"a/two")
    }
    with pytest.raises(Missing):
        kit.restore(tmp_path / "out", path=b"nothing")


def test_local_damage_is_not_believed_without_a_record(kit: Kit, tmp_path: Path) -> None:
    """A file of the right size and time that no restore of ours has placed is hashed."""
    kit.write({b"a": b"right"})
    kit.publish()
    put(tmp_path / "out", b"a", b"wrong")
    os.utime(tmp_path / "out/a", ns=(0, os.stat(kit.directory / "a").st_mtime_ns))
    kit.restore(tmp_path / "out")
    assert read_tree(tmp_path / "out") == {b"a": b"right"}


def test_empty_or_missing_source_is_refused(kit: Kit, tmp_path: Path) -> None:
    kit.write({b"a": b"1"})
    kit.publish()
    for bad in (tmp_path / "missing", tmp_path / "void", tmp_path / "file"):
        (tmp_path / "void").mkdir(exist_ok=True)
        (tmp_path / "file").touch()
        with pytest.raises(Invalid):
            kit.publish(bad)
    assert kit.dataset.read_head().manifest.seq == 1
    assert kit.publish(tmp_path / "void", allow_delete=True).deleted == 1


def test_removing_more_than_half_without_a_base_is_refused(kit: Kit, tmp_path: Path) -> None:
    kit.write({b"%03d" % number: b"x" for number in range(120)})
    kit.publish()
    put(tmp_path / "other", b"000", b"x")
    with pytest.raises(Invalid, match="more than half"):
        kit.publish(tmp_path / "other")
    assert kit.publish(tmp_path / "other", allow_delete=True).deleted == 119
    assert list(kit.store.list("data/covers/intent/")) == []


def test_pipes_and_sockets_are_skipped_and_named(kit: Kit) -> None:
    kit.write({b"a": b"1", b"d": None})
    os.mkfifo(kit.directory / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(kit.directory / "d/socket"))
        done = kit.publish()
    assert sorted(path for path, _ in done.skipped) == [b"d/socket", b"pipe"]
    assert done.added == 2


def test_three_way_publish_keeps_what_others_added(tmp_path: Path) -> None:
    one = Kit(tmp_path / "1")
    two = Kit(tmp_path / "2", one.store, seed=2)
    one.write({b"shared": b"0", b"d": None, b"d/one": b"1"})
    one.publish()
    two.restore(two.directory)
    put(two.directory, b"two", b"2")
    put(two.directory, b"d/two", b"2")
    put(two.directory, b"shared", b"two's")
    two.publish()
    one.write({b"shared": b"one's"})
    done = one.publish()
    assert done.overridden == [b"shared"]
    for _ in range(2):
        one.restore(tmp_path / "out")
        expected = {b"shared": b"one's", b"two": b"2", b"d": None, b"d/two": b"2"}
        assert read_tree(tmp_path / "out") == expected
        # And again: what the first did not know is not deleted by its next publish either.
        one.write({b"shared": b"one's", b"more": b"3"})
        one.publish()
        one.write({b"shared": b"one's"})
        one.publish()
    assert not one.verify().damage


def test_a_publisher_whose_directory_others_removed_brings_it_back(tmp_path: Path) -> None:
    one = Kit(tmp_path / "1")
    two = Kit(tmp_path / "2", one.store, seed=2)
    one.write({b"d": None, b"d/e": None, b"x": b"1"})
    one.publish()
    two.restore(two.directory)
    two.write({b"x": b"1"})
    two.publish()
    put(one.directory, b"d/e/new", b"2")
    one.publish()
    one.restore(tmp_path / "out")
    assert read_tree(tmp_path / "out") == {b"d": None, b"d/e": None, b"d/e/new": b"2", b"x": b"1"}


def test_mirror_makes_the_dataset_exactly_the_directory(tmp_path: Path) -> None:
    one = Kit(tmp_path / "1")
    two = Kit(tmp_path / "2", one.store, seed=2)
    one.write({b"a": b"1"})
    one.publish()
    two.restore(two.directory)
    put(two.directory, b"b", b"2")
    two.publish()
    one.publish(is_mirror=True)
    one.restore(tmp_path / "out")
    assert read_tree(tmp_path / "out") == {b"a": b"1"}


def test_prefix_publishes_into_a_folder(kit: Kit, tmp_path: Path) -> None:
    kit.write({b"a": b"1"})
    kit.publish()
    put(tmp_path / "part", b"n", b"2")
    kit.publish(tmp_path / "part", prefix=b"x/y")
    kit.restore(tmp_path / "out")
    assert read_tree(tmp_path / "out") == {b"a": b"1", b"x": None, b"x/y": None, b"x/y/n": b"2"}
    os.unlink(tmp_path / "part/n")
    put(tmp_path / "part", b"m", b"3")
    kit.publish(tmp_path / "part", prefix=b"x/y")
    kit.restore(tmp_path / "out")
    assert read_tree(tmp_path / "out") == {b"a": b"1", b"x": None, b"x/y": None, b"x/y/m": b"3"}


def test_dry_runs_write_nothing(kit: Kit, tmp_path: Path) -> None:
    kit.write({b"a": b"1", b"b": b"2"})
    kit.publish()
    before = [info.key for info in kit.store.list("data/")]
    kit.write({b"a": b"11"})
    done = kit.publish(is_dry_run=True)
    assert (done.changed, done.deleted, done.seq) == (1, 1, 1)
    plan = kit.restore(tmp_path / "out", is_dry_run=True)
    assert (plan.fetched_files, plan.fetch_requests) == (2, 1)
    assert not (tmp_path / "out").exists()
    assert [info.key for info in kit.store.list("data/")] == before


_COUNTED = ("added", "changed", "deleted", "files", "plain_bytes", "read_bytes", "skipped")


def _counts(done: PublishResult) -> dict[str, object]:
    return {name: getattr(done, name) for name in _COUNTED}


def test_a_dry_run_counts_what_the_publish_then_reports(kit: Kit) -> None:
    """Files and bytes of the seq to be, directories among the changes, a file that becomes a link; young files, which
    are read and are the same; what others have published meanwhile."""
    first: Content = {b"a": None, b"d": None, b"goes": b"1", b"turns": b"123"}
    first |= {b"a/%d" % number: b"%d" % number for number in range(60)}
    kit.write(first)
    told: list[tuple[dict[str, object], dict[str, object]]] = []

    def both(**options: object) -> PublishResult:
        dry = kit.publish(is_dry_run=True, **options)
        done = kit.publish(**options)
        told.append((_counts(dry), _counts(done)))
        return done

    assert both().files == 62
    assert (both().changed, both().added) == (0, 0)
    second = {path: value for path, value in first.items() if path != b"goes"}
    new: Content = {b"new": None, b"new/deep": None, b"new/deep/file": b"12"}
    kit.write(second | new | {b"a/1": b"longer", b"turns": ("link", b"a/1")})
    done = both()
    assert (done.added, done.changed, done.deleted, done.files) == (3, 2, 1, 61)
    other = kit.place / "other"
    kit.restore(other)
    put(other, b"others", b"4444")
    (other / "a/2").unlink()
    kit.publish(other)
    (kit.directory / "a/2").unlink()
    put(kit.directory, b"own", b"1")
    done = both()
    assert (done.added, done.deleted, done.files) == (1, 0, 62)
    both(is_mirror=True)
    put(kit.directory, b"part", b"1")
    both(prefix=b"x/y")
    assert [dry for dry, _ in told] == [real for _, real in told]


@pytest.mark.parametrize("kind", ["run", "pack", "manifest", "head"])
@pytest.mark.parametrize("how", ["flip", "cut", "empty", "delete", "swap"])
def test_a_damaged_object_is_named_and_never_restored(tmp_path: Path, kind: str, how: str) -> None:
    kit = Kit(tmp_path)
    first = {b"a": random.Random(3).randbytes(5000), b"b": b"text " * 500}
    kit.write(first)
    kit.publish()
    packs = [info.key for info in kit.store.list("data/covers/pack/")]
    kit.write({**first, b"c": b"later"})
    kit.publish()
    archive(kit.dataset, kit.host, kit.dataset.read_head())
    manifests = [info.key for info in kit.store.list("data/covers/manifest/")]
    runs = [info.key for info in kit.store.list("data/covers/run/snap/")]
    key = {"run": runs, "pack": packs, "manifest": manifests, "head": ["data/covers/head"]}[kind][0]
    damage(kit.store, key, how)
    out = tmp_path / "out"
    with pytest.raises((Corrupt, Missing)) as caught:
        Kit(tmp_path / "other", kit.store).restore(out, None if kind == "head" else 1)
    assert caught.value.key == key or (kind, how) == ("manifest", "delete")
    left = read_tree(out) if out.exists() else {}
    assert all(first[path] == data for path, data in left.items())


def damage(store: object, key: str, how: str) -> None:
    assert isinstance(store, MemoryStore)
    fetched = store.get(key, size_max=1 << 30)
    assert fetched is not None
    data = bytearray(fetched.data)
    if how == "flip":
        data[len(data) // 3] ^= 1
    elif how == "cut":
        del data[len(data) // 2 :]
    elif how == "swap":
        data[100:140], data[200:240] = data[200:240], data[100:140]
    if how == "delete":
        store.delete(key)
    else:
        store.put(key, b"" if how == "empty" else bytes(data))


def test_verify_names_every_damaged_pack(kit: Kit) -> None:
    kit.write({b"a": random.Random(3).randbytes(50_000)})
    kit.publish()
    kit.write({b"a": b"", b"b": random.Random(4).randbytes(50_000)})
    kit.publish()
    assert kit.verify().damage == []
    keys = [info.key for info in kit.store.list("data/covers/pack/")]
    for key in keys:
        damage(kit.store, key, "flip")
    assert [key for key, _ in kit.verify().damage] == keys


def test_two_restores_into_one_directory_do_not_meet(kit: Kit, tmp_path: Path) -> None:
    from synclib.disk.held import Held

    kit.write({b"a": b"1"})
    kit.publish()
    (tmp_path / "out").mkdir()
    lock = Held(tmp_path / "out").lock()
    with pytest.raises(Conflict):
        kit.restore(tmp_path / "out")
    os.close(lock)
    kit.restore(tmp_path / "out")


def test_a_restore_without_space_says_need_and_have(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.write({b"a": b"1" * 1000})
    kit.publish()
    real = os.statvfs(tmp_path)

    def small(path: object) -> object:
        return type("Status", (), {"f_bavail": 1, "f_frsize": real.f_frsize})()

    monkeypatch.setattr(os, "statvfs", small)
    with pytest.raises(Full, match=r"needs \d+ bytes here, \d+ are free"):
        kit.restore(tmp_path / "out")
    assert read_tree(tmp_path / "out") == {}


def test_a_time_beyond_64_bits_is_skipped_and_named(kit: Kit) -> None:
    kit.write({b"a": b"1", b"far": b"2"})
    os.utime(kit.directory / "far", (10_000_000_000, 10_000_000_000))
    done = kit.publish()
    assert (done.added, [path for path, _ in done.skipped]) == (1, [b"far"])


def test_a_store_made_anew_under_its_url(kit: Kit) -> None:
    kit.write({b"a": b"1"})
    kit.publish()
    kit.write({b"a": b"2"})
    kit.publish()
    for info in list(kit.store.list("data/")):
        kit.store.delete(info.key)
    done = kit.publish()
    assert (done.seq, done.added, done.is_new) == (1, 1, True)
    for info in list(kit.store.list("data/")):
        kit.store.delete(info.key)
    other = Kit(kit.place / "other", kit.store, seed=2)
    other.write({b"b": b"3"})
    other.publish()
    with pytest.raises(Conflict, match="this directory was last"):
        kit.publish()
    assert kit.publish(is_mirror=True).seq == 2


def test_a_file_that_is_removed_put_back_and_removed_again(kit: Kit, tmp_path: Path) -> None:
    """Its second tombstone is a block equal to the first: that it comes last must be seen."""
    with_file: Content = {b"a": b"1", b"b": b"2"}
    without: Content = {b"a": b"1"}
    states = [with_file, without, with_file, without, with_file]
    for seq, state in enumerate(states, 1):
        kit.write(state)
        for name in state:
            os.utime(kit.directory / os.fsdecode(name), (1, 1))
        assert kit.publish(allow_delete=True).seq == seq
        if seq >= 3:
            kit.restore(tmp_path / "out", is_full=False)
            assert read_tree(tmp_path / "out") == state
