"""What people who used it, or attacked it, found: each once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from synclib.core.names import head_key, intent_key, manifest_prefix, tag_key
from synclib.core.retention import Retention
from synclib.engine import pack_job
from synclib.engine.collect import collect
from synclib.engine.compact import compact
from synclib.engine.head_swap import archive
from synclib.engine.host import no_progress
from synclib.engine.lease import intent
from synclib.engine.repack import RepackOptions, repack_dataset
from synclib.engine.replicate import replicate
from synclib.engine.tags import delete_tag, set_tag, tags
from synclib.engine.verify import VerifyOptions, verify
from synclib.errors import Corrupt, Invalid
from synclib.lazy.dataset import Dataset, HeadLost
from tests.kit import Kit, put, read_tree

LAST = Retention(last=1)


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path / "kit")


def other(kit: Kit, tmp_path: Path) -> Kit:
    """A second publisher whose directory holds what the head has."""
    found = Kit(tmp_path / "other", kit.store, seed=2)
    found.restore(found.directory)
    return found


def relink(kit: Kit, name: str, data: bytes, second: str) -> None:
    """A new file with two names, of an old time."""
    path = kit.directory / name
    path.unlink()
    path.write_bytes(data)
    os.link(path, kit.directory / second)
    os.utime(path, (1_600_000_000, 1_600_000_000))


@pytest.mark.parametrize("time", [1_600_000_000, 1_650_000_000])
def test_hard_links_of_two_publishers_that_meet_are_not_one_file(kit: Kit, tmp_path: Path, time: int) -> None:
    kit.write({b"a": b"old"})
    kit.publish()
    second = other(kit, tmp_path)
    relink(kit, "a", b"one", "c")
    kit.publish()
    relink(second, "a", b"two", "d")
    os.utime(second.directory / "a", (time, time))
    second.publish()
    kit.restore(tmp_path / "fresh")
    assert read_tree(tmp_path / "fresh") == {b"a": b"two", b"c": b"one", b"d": b"two"}
    assert os.path.samefile(tmp_path / "fresh/a", tmp_path / "fresh/d")
    assert not os.path.samefile(tmp_path / "fresh/a", tmp_path / "fresh/c")


def test_an_attribute_that_was_taken_away_goes_from_copies_too(kit: Kit, tmp_path: Path) -> None:
    kit.write({b"a": b"1", b"d": None})
    try:
        for name in ("a", "d"):
            os.setxattr(kit.directory / name, "user.secret", b"1")
    except OSError:
        pytest.skip("this file system has no attributes")
    kit.publish(xattrs=True)
    copy = tmp_path / "copy"
    kit.restore(copy)
    assert os.listxattr(copy / "a") == os.listxattr(copy / "d") == ["user.secret"]
    for name in ("a", "d"):
        os.removexattr(kit.directory / name, "user.secret")
    kit.publish(xattrs=True)
    kit.restore(copy, is_full=False)
    assert os.listxattr(copy / "a") == os.listxattr(copy / "d") == []
    os.setxattr(copy / "a", "user.stranger", b"1")
    kit.restore(copy)
    assert os.listxattr(copy / "a") == []


def test_what_a_publish_without_attributes_says_nothing_of_stays(kit: Kit, tmp_path: Path) -> None:
    kit.write({b"a": b"1"})
    kit.publish()
    copy = tmp_path / "copy"
    kit.restore(copy)
    try:
        os.setxattr(copy / "a", "user.mine", b"1")
    except OSError:
        pytest.skip("this file system has no attributes")
    kit.restore(copy)
    assert os.listxattr(copy / "a") == ["user.mine"]


def test_a_base_outlives_the_cache_and_the_store(kit: Kit, tmp_path: Path) -> None:
    kit.write({b"a": b"1", b"b": b"2"})
    kit.publish()
    second = other(kit, tmp_path)
    for number in range(2):
        put(second.directory, b"b", b"theirs%d" % number)
        second.publish()
        compact(kit.dataset, kit.host, no_progress, is_full=True)
    collect(kit.dataset, kit.host, LAST, None, no_progress)
    cache = kit.host.dataset_cache(kit.store.url, kit.dataset.root) / "run"
    for path in cache.iterdir():
        path.unlink()
    put(kit.directory, b"a", b"precious")
    done = kit.publish()
    assert (done.changed, done.deleted) == (1, 0)
    kit.restore(tmp_path / "fresh")
    assert read_tree(tmp_path / "fresh") == {b"a": b"precious", b"b": b"theirs1"}


def test_a_part_that_was_restored_is_not_published_as_all(kit: Kit, tmp_path: Path) -> None:
    kit.write({b"a": None, b"a/1": b"1", b"b": None, b"b/1": b"2"})
    kit.publish()
    part = tmp_path / "part"
    kit.restore(part, path=b"a")
    with pytest.raises(Invalid, match="only a part"):
        kit.publish(part)
    put(part, b"a/2", b"new")
    kit.publish(part / "a", prefix=b"a")
    kit.restore(tmp_path / "fresh")
    assert read_tree(tmp_path / "fresh") == {b"a": None, b"a/1": b"1", b"a/2": b"new", b"b": None, b"b/1": b"2"}


def test_a_directory_keeps_its_base_with_a_copy_of_the_store(kit: Kit, tmp_path: Path) -> None:
    kit.write({b"a": b"1"})
    kit.publish()
    second = other(kit, tmp_path)
    put(second.directory, b"b", b"theirs")
    second.publish()
    kit.write({b"a": b"1", b"c": b"mine"})
    copy = Kit(tmp_path / "copy", seed=9)
    replicate(kit.dataset, copy.dataset, kit.host, None, no_progress)
    kit.dataset, kit.store = Dataset(copy.store, kit.dataset.root), copy.store
    copy.store.url = "memory://elsewhere"
    done = kit.publish()
    assert (done.added, done.deleted) == (1, 0)


def test_another_publishers_deletion_is_not_taken_back_without_a_word(kit: Kit, tmp_path: Path) -> None:
    kit.write({b"a": b"1", b"b": b"2"})
    kit.publish()
    second = other(kit, tmp_path)
    second.write({b"a": b"1"})
    second.publish()
    assert kit.restore(kit.directory).kept == [b"b"]


def test_times_and_seqs_beside_gaps(kit: Kit) -> None:
    times = []
    for number in range(9):
        kit.write({b"a": b"%d" % number})
        kit.publish()
        times.append(kit.dataset.read_head().manifest.published_at_ns)
    collect(kit.dataset, kit.host, Retention(last=3), None, no_progress)
    assert [kit.dataset.manifest_at_time(at).seq for at in times[6:]] == [7, 8, 9]


def test_what_a_first_publish_left_that_never_ended(kit: Kit) -> None:
    holder = intent(kit.dataset, kit.host)
    holder.take(kit.dataset.read_head_or_empty(), 0)
    key = f"data/covers/pack/{'0' * 26}"
    kit.store.put(key, b"an orphan of nobody")
    assert collect(kit.dataset, kit.host, LAST, None, no_progress, is_dry_run=True).found["packs"] == (1, 19)
    done = collect(kit.dataset, kit.host, LAST, None, no_progress)
    assert (done.swept["packs"], len(done.waiting_for)) == ((1, 19), 1)
    assert list(kit.store.list("data/covers/pack/")) == []
    assert len(list(kit.store.list(intent_key("data/covers", "")))) == 1


def test_a_lost_head_is_no_new_beginning(kit: Kit) -> None:
    kit.write({b"a": b"1"})
    kit.publish()
    kit.store.delete(head_key("data/covers"))
    for use in (kit.publish, kit.dataset.read_head, lambda: collect(kit.dataset, kit.host, LAST, None, no_progress)):
        with pytest.raises(HeadLost):
            use()
    assert len(list(kit.store.list(manifest_prefix("data/covers")))) == 1


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_a_lost_head_says_what_there_is(kit: Kit, how: str) -> None:
    """Two seqs are objects, three were in the head alone; of the two the newer one does not read."""
    for number in range(5):
        kit.write({b"a": b"%d" % number})
        kit.publish()
        if number == 1:
            archive(kit.dataset, kit.host, kit.dataset.read_head())
    keys = [info.key for info in kit.store.list(manifest_prefix("data/covers"))]
    head = head_key("data/covers")
    data = kit.store.get_suffix(head, 1 << 20).data

    def lose() -> None:
        if how == "gone":
            kit.store.delete(head)
        else:
            kit.store.put(head, data[: len(data) // 2])

    lose()
    with pytest.raises(Corrupt) as caught:
        kit.dataset.read_head()
    assert f"of seq 2 ({keys[1]}), the manifests of the 3 seqs after it" in caught.value.message
    assert "put an older version" in caught.value.hint
    kit.store.put(keys[1], b"garbage")
    with pytest.raises(Corrupt) as caught:
        kit.dataset.read_head()
    assert f"of seq 1 ({keys[0]}), the manifests of the 4 seqs" in caught.value.message
    # What the hint says helps.
    kit.store.put(head, data)
    assert not kit.verify().damage


def test_a_dry_run_counts_what_would_go(kit: Kit, tmp_path: Path) -> None:
    kit.write({b"a": b"1", b"b": b"2"})
    kit.publish()
    copy = tmp_path / "copy"
    kit.restore(copy)
    (copy / "mine").write_bytes(b"x")
    kit.write({b"a": b"1"})
    kit.publish()
    before = read_tree(copy)
    told = kit.restore(copy, is_dry_run=True)
    assert (told.deleted, told.would_delete, told.would_write, told.write_count) == (1, [b"b"], [], 0)
    assert kit.restore(copy, is_dry_run=True, is_delete=True).deleted == 2
    assert read_tree(copy) == before
    assert kit.restore(copy).deleted == 1


def test_a_dry_run_names_the_first_of_what_would_change(kit: Kit, tmp_path: Path) -> None:
    kit.write({b"d": None, b"d/a": b"1", b"d/kept": b"2", b"l": ("link", b"d"), b"z": b"3"})
    kit.publish()
    copy = tmp_path / "copy"
    kit.restore(copy)
    for name in ("d/a", "l"):
        (copy / name).unlink()
    (copy / "z").chmod(0o600)
    told = kit.restore(copy, is_dry_run=True)
    assert (sorted(told.would_write), told.write_count) == ([b"d/a", b"l", b"z"], 3)
    for number in range(1200):
        (copy / f"mine{number}").touch()
    told = kit.restore(copy, is_dry_run=True, is_delete=True)
    assert (told.deleted, len(told.would_delete)) == (1200, 1000)


def test_repacking_comes_to_an_end_and_frees_at_once(kit: Kit) -> None:
    for number in range(10):
        kit.write({b"%d" % part: b"%d" % part for part in range(number + 1)})
        kit.publish()
    assert repack_dataset(kit.dataset, kit.host, None, RepackOptions(), no_progress).packs == 10
    assert repack_dataset(kit.dataset, kit.host, None, RepackOptions(), no_progress).packs == 0
    assert collect(kit.dataset, kit.host, LAST, None, no_progress).swept["packs"][0] == 10
    assert len(list(kit.store.list("data/covers/pack/"))) == 1


def test_all_kept_seqs_are_verified_if_asked(kit: Kit) -> None:
    for number in range(3):
        kit.write({b"a": b"%d" % number * 100})
        kit.publish()
    compact(kit.dataset, kit.host, no_progress, is_full=True)
    key = min(info.key for info in kit.store.list("data/covers/pack/"))
    kit.store.put(key, b"damaged")
    manifest = kit.dataset.read_head().manifest
    newest = verify(kit.dataset, manifest, None, VerifyOptions(), no_progress)
    assert (newest.damage, newest.seqs, newest.runs) == ([], [3], 1)
    found = verify(kit.dataset, manifest, None, VerifyOptions(is_all=True), no_progress)
    assert [damaged for damaged, _ in found.damage] == [key]
    # What stands beside the newest: three runs before they were compacted into one.
    assert (found.seqs, found.runs) == ([1, 2, 3], 4)


def test_a_damaged_tag_can_be_taken_away(kit: Kit) -> None:
    kit.write({b"a": b"1"})
    kit.publish()
    kit.store.put(tag_key("data/covers", "bad"), b"x")
    with pytest.raises(Corrupt) as caught:
        tags(kit.dataset)
    assert "--delete" in caught.value.hint
    assert delete_tag(kit.dataset, "bad") is None
    assert tags(kit.dataset) == {}


@pytest.mark.parametrize("times", [1, 100])
def test_a_file_that_changes_while_it_is_read_is_read_again(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, times: int
) -> None:
    """One that comes to rest is published as it is then; one that does not keeps its old version, and is named."""
    kit.write({b"moving": b"old", b"other": b"1"})
    kit.publish()
    put(kit.directory, b"moving", b"begun")
    real, left = pack_job._read_small, [times]

    def read(descriptor: int, size: int, packer: object) -> object:
        done = real(descriptor, size, packer)  # type: ignore[arg-type]
        if left[0]:
            left[0] -= 1
            put(kit.directory, b"moving", b"now %d" % left[0])
        return done

    monkeypatch.setattr(pack_job, "_read_small", read)
    done = kit.publish()
    monkeypatch.undo()
    kit.restore(tmp_path / "fresh")
    if times == 1:
        assert done.skipped == []
        assert read_tree(tmp_path / "fresh")[b"moving"] == b"now 0"
        # What the scan saw of it proves nothing: the same time and size again would be a change.
        status = os.stat(kit.directory / "moving")
        put(kit.directory, b"moving", b"begun")
        os.utime(kit.directory / "moving", ns=(status.st_atime_ns, status.st_mtime_ns - 10**9))
        assert kit.publish().changed == 1
    else:
        assert [path for path, _ in done.skipped] == [b"moving"]
        assert read_tree(tmp_path / "fresh")[b"moving"] == b"old"


def test_a_kept_seq_is_kept_as_it_was_repacked(kit: Kit) -> None:
    for number in range(10):
        kit.write({b"%d" % part: b"%d" % part for part in range(number + 1)})
        kit.publish()
    compact(kit.dataset, kit.host, no_progress, is_full=True)
    repack_dataset(kit.dataset, kit.host, None, RepackOptions(), no_progress)
    set_tag(kit.dataset, kit.host, "golden", None)
    kit.write({b"new": b"x"})
    kit.publish()
    assert collect(kit.dataset, kit.host, LAST, None, no_progress).kept_seqs == [10, 11]
    assert len(list(kit.store.list("data/covers/pack/"))) == 2
    assert not kit.verify(seq=10).damage
