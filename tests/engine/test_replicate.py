"""Replication: the history in another store, verified, resumable, usable at every moment."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from synclib.core.manifest import Head, encode_head, encode_manifest
from synclib.core.names import head_key, pack_key
from synclib.core.retention import Retention
from synclib.engine.collect import collect
from synclib.engine.compact import compact
from synclib.engine.head_swap import archive, update_head
from synclib.engine.host import no_progress
from synclib.engine.objects import list_runs
from synclib.engine.replicate import ReplicateResult, replicate
from synclib.engine.tags import delete_tag, set_tag, tags
from synclib.engine.verify import VerifyOptions, verify
from synclib.errors import BoxlinkError, Conflict, Corrupt, Missing
from synclib.lazy.dataset import STORE_KEY, Dataset, HeadState
from synclib.store.base import Body, Buffer
from synclib.store.memory import MemoryStore
from tests.kit import Kit, read_tree


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    kit = Kit(tmp_path / "kit")
    for seq in range(1, 4):
        kit.write({b"changing": b"%d" % seq * 100, **{b"f%d" % number: b"%d" % number for number in range(seq)}})
        kit.publish()
    set_tag(kit.dataset, kit.host, "golden", 2)
    archive(kit.dataset, kit.host, kit.dataset.read_head())
    return kit


@pytest.fixture
def target(tmp_path: Path) -> Kit:
    return Kit(tmp_path / "target", seed=5)


def copy(kit: Kit, target: Kit, *, is_dry_run: bool = False) -> ReplicateResult:
    with ThreadPoolExecutor(4) as executor:
        return replicate(kit.dataset, target.dataset, kit.host, executor, no_progress, is_dry_run=is_dry_run)


def objects(kit: Kit) -> dict[str, bytes]:
    found = {}
    for info in kit.store.list("data/"):
        fetched = kit.store.get(info.key, size_max=1 << 30)
        assert fetched is not None
        found[info.key] = fetched.data
    return found


def test_a_copy_has_every_seq_and_the_second_time_nothing_is_copied(kit: Kit, target: Kit, tmp_path: Path) -> None:
    dry = copy(kit, target, is_dry_run=True)
    assert objects(target) == {}
    done = copy(kit, target)
    assert dry.copied == done.copied
    assert done.copied["manifests"][0] == done.copied["runs"][0] == done.copied["packs"][0] == 3
    own, copied = objects(kit), objects(target)
    assert own.keys() == copied.keys()
    assert all(own[key] == copied[key] for key in own if not key.endswith("/head"))
    for seq in range(1, 4):
        assert target.restore(tmp_path / f"at{seq}", seq=seq).digest == kit.dataset.manifest_at(seq).digest
        assert read_tree(tmp_path / f"at{seq}")[b"changing"] == b"%d" % seq * 100
    assert tags(target.dataset).keys() == {"golden"}
    again = copy(kit, target)
    assert not again.is_new
    assert not any(number for number, _ in again.copied.values())


def test_it_follows_publishes_and_compactions(kit: Kit, target: Kit) -> None:
    copy(kit, target)
    kit.write({b"more": b"x" * 1000})
    kit.publish(allow_delete=True)
    assert copy(kit, target).copied["packs"][0] == 1
    compact(kit.dataset, kit.host, no_progress, is_full=True)
    done = copy(kit, target)
    assert (done.copied["packs"][0], done.copied["runs"][0], done.is_new) == (0, 1, True)
    assert len(target.dataset.read_head().manifest.runs) == 1
    assert not target.verify().damage


def test_a_node_can_follow_either(kit: Kit, target: Kit, tmp_path: Path) -> None:
    copy(kit, target)
    place = tmp_path / "node"
    kit.restore(place)
    done = target.restore(place)
    assert (done.fetched_files, done.fetched_bytes) == (0, 0)
    kit.write({b"changing": b"new", b"f0": b"0"})
    kit.publish()
    copy(kit, target)
    target.restore(place)
    assert read_tree(place) == {b"changing": b"new", b"f0": b"0"}


def test_a_copy_with_a_history_of_its_own_is_left_alone(kit: Kit, target: Kit) -> None:
    copy(kit, target)
    target.write({b"other": b"1"})
    target.publish(is_mirror=True, allow_delete=True)
    before = objects(target)
    with pytest.raises(Conflict, match="history of its own"):
        copy(kit, target)
    kit.write({b"changing": b"new"})
    kit.publish(allow_delete=True)
    with pytest.raises(Conflict, match="history of its own"):
        copy(kit, target)
    assert objects(target) == before


def test_damage_is_not_copied(kit: Kit, target: Kit) -> None:
    key = next(info.key for info in kit.store.list(pack_key("data/covers", "")))
    fetched = kit.store.get(key, size_max=1 << 20)
    assert fetched is not None
    data = bytearray(fetched.data)
    data[40] ^= 1
    kit.store.put(key, bytes(data))
    with pytest.raises(Corrupt) as caught:
        copy(kit, target)
    assert caught.value.key == key
    with pytest.raises(Missing):
        target.dataset.read_head()
    assert key not in objects(target)


def test_killed_at_any_write_it_goes_on_and_the_copy_is_usable(kit: Kit, target: Kit, tmp_path: Path) -> None:
    copy(kit, target)
    old = target.dataset.read_head().manifest.digest
    for number in range(3):
        kit.write({b"changing": b"new%d" % number, b"f0": b"0"})
        kit.publish()

    class Killed(BaseException):
        pass

    real = target.store.put
    for writes in range(1, 60):
        left = [writes]

        def put(key: str, body: Body, left: list[int] = left, **conditions: object) -> str:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return real(key, body, **conditions)  # type: ignore[arg-type]

        target.store.put = put  # type: ignore[assignment]
        try:
            replicate(kit.dataset, target.dataset, kit.host, None, no_progress)
            break
        except Killed:
            continue
        finally:
            target.store.put = real  # type: ignore[method-assign]
            found = target.dataset.read_head().manifest
            assert found.digest in (old, kit.dataset.read_head().manifest.digest)
            assert not verify(target.dataset, found, None, VerifyOptions(is_data=True), no_progress).damage
    else:
        pytest.fail("it never came to its end")
    for side in (kit, target):
        archive(side.dataset, side.host, side.dataset.read_head())
        for info in side.store.list("data/covers/intent/"):
            side.store.delete(info.key)
    assert objects(target).keys() == objects(kit).keys()


def test_a_collector_in_the_copy_leaves_a_replication_alone(kit: Kit, target: Kit) -> None:
    """It comes between the packs and the head, when nothing refers to them yet."""
    real = target.store.put

    def put(key: str, body: Body, **conditions: object) -> str:
        if key.endswith("/head") and conditions.get("if_absent"):
            target.store.put = real  # type: ignore[method-assign]
            with pytest.raises(BoxlinkError):
                collect(target.dataset, target.host, Retention(last=1), None, no_progress)
        return real(key, body, **conditions)  # type: ignore[arg-type]

    target.store.put = put  # type: ignore[assignment]
    copy(kit, target)
    assert not target.verify().damage

    def again(key: str, body: Body, **conditions: object) -> str:
        if key.endswith("/head") and conditions.get("if_match"):
            target.store.put = real  # type: ignore[method-assign]
            done = collect(target.dataset, target.host, Retention(last=1), None, no_progress)
            assert not any(number for number, _ in done.swept.values())
        return real(key, body, **conditions)  # type: ignore[arg-type]

    kit.write({b"changing": b"new", b"f0": b"0"})
    kit.publish()
    target.store.put = again  # type: ignore[assignment]
    copy(kit, target)
    assert not target.verify().damage
    assert collect(target.dataset, target.host, Retention(last=1), None, no_progress).kept_seqs == [2, 4]
    assert not target.verify().damage


@pytest.mark.parametrize("place", [9, 60, -40])
def test_a_run_that_is_damaged_on_its_way_is_fetched_once_more(kit: Kit, target: Kit, place: int) -> None:
    real = kit.store.get_ranges
    damaged: set[str] = set()

    def get_ranges(key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        (data, *others) = real(key, ranges)
        if "/run/" in key and ranges[0][0] == 0 and len(data) > 100 and key not in damaged:
            damaged.add(key)
            spoilt = bytearray(data)
            spoilt[place] ^= 1
            data = bytes(spoilt)
        return [data, *others]

    kit.store.get_ranges = get_ranges  # type: ignore[method-assign]
    # From a machine that has no copies of the runs yet.
    replicate(kit.dataset, target.dataset, target.host, None, no_progress)
    assert len(damaged) == 3
    own, copied = objects(kit), objects(target)
    assert all(own[key] == copied[key] for key in own if not key.endswith("/head"))


def whole_seqs(kit: Kit) -> set[int]:
    """The seqs that are there; each of them must be whole."""
    found = {seq for seq, _ in kit.dataset.manifests()}
    for seq in found:
        assert not kit.verify(seq).damage
    return found


@pytest.fixture
def dropped(kit: Kit, target: Kit) -> Kit:
    """A copy in which retention has let go what the source keeps."""
    compact(kit.dataset, kit.host, no_progress, is_full=True)
    copy(kit, target)
    delete_tag(kit.dataset, "golden")
    delete_tag(target.dataset, "golden")
    return target


def test_a_copy_into_the_sweep_of_a_collector_is_whole(kit: Kit, dropped: Kit) -> None:
    """It has condemned seqs there before the replication said that it needs them, and deletes them afterwards."""
    real = dropped.store.delete
    came: list[str] = []

    def delete(key: str, **conditions: object) -> None:
        if "/run/" in key and not came:
            came.append(key)
            copy(kit, dropped)
        real(key, **conditions)  # type: ignore[arg-type]

    dropped.store.delete = delete  # type: ignore[assignment]
    collect(dropped.dataset, dropped.host, Retention(last=1), None, no_progress)
    assert came
    assert whole_seqs(dropped) >= {3}
    copy(kit, dropped)
    collect(dropped.dataset, dropped.host, Retention(), None, no_progress)
    assert whole_seqs(dropped) == {1, 2, 3}


def test_what_is_condemned_while_it_is_copied_stays(kit: Kit, dropped: Kit) -> None:
    """A killed replication left runs; a collector that had looked for leases before the next one condemns them."""
    runs = list(list_runs(dropped.dataset))
    collect(dropped.dataset, dropped.host, Retention(last=1), None, no_progress)
    left = [item for item in runs if item.id not in {kept.id for kept in list_runs(dropped.dataset)}]
    assert len(left) == 3
    for item in left:
        fetched = kit.store.get(item.key, size_max=1 << 20)
        assert fetched is not None
        dropped.store.put(item.key, fetched.data)
    real = dropped.store.put

    def condemn(state: HeadState) -> Head:
        names = [item.id for item in left]
        return msgspec.structs.replace(state.head, epoch=state.head.epoch + 1, condemned=names)

    def put(key: str, body: Body, **conditions: object) -> str:
        if "/manifest/" in key and not dropped.dataset.read_head().head.condemned:
            update_head(dropped.dataset, dropped.host, condemn)
        return real(key, body, **conditions)  # type: ignore[arg-type]

    dropped.store.put = put  # type: ignore[assignment]
    epoch = dropped.dataset.read_head().head.epoch
    copy(kit, dropped)
    dropped.store.put = real  # type: ignore[method-assign]
    assert dropped.dataset.read_head().head.epoch > epoch
    collect(dropped.dataset, dropped.host, Retention(), None, no_progress)
    assert whole_seqs(dropped) == {1, 2, 3}


def test_a_head_that_is_being_collected_in_the_copy_is_a_conflict(kit: Kit, dropped: Kit) -> None:
    head = dropped.dataset.read_head()
    names = [head.manifest.runs[0].ulid]
    first = kit.dataset.manifest_at(1)
    dropped.store.put(
        head_key("data/covers"),
        encode_head(Head("data/covers", 7, encode_manifest(first), [], names)),
    )
    with pytest.raises(Conflict, match="being collected"):
        copy(kit, dropped)


def test_a_store_that_was_never_initialised_is_refused(kit: Kit, tmp_path: Path) -> None:
    bare = Dataset(MemoryStore(), kit.dataset.root)
    with pytest.raises(Missing, match="no boxlink store"):
        replicate(kit.dataset, bare, kit.host, None, no_progress)
    bare.store.put(STORE_KEY, b"{}")
    assert replicate(kit.dataset, bare, kit.host, None, no_progress).is_new
