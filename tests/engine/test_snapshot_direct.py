"""Snapshots made from the store alone: what is put, what it holds then, and what a kill leaves."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from synclib.core.snapshot_tags import COMPLETE, DATASET, DIGEST, SEQ, STORE, store_tag
from synclib.core.volume_layout import BLOCK_BYTES, Layout, layout_for
from synclib.engine import snapshot_direct, volume_content
from synclib.engine.compact import compact
from synclib.engine.host import no_progress
from synclib.engine.snapshot_direct import Created, create_direct
from synclib.errors import Corrupt, Interrupted
from synclib.store.meter import Meter, MeteredStore
from synclib.volume import local_pool
from synclib.volume.base import Snapshot, SnapshotState, VolumeDriver
from synclib.volume.local import LocalDriver
from tests.kit import Content, Kit
from tests.memory_volumes import Killed, MemoryDriver
from tests.volume_checks import check_volume, complete_ones, reader

HEADER = 1


def tree(seed: int, files: int = 60, size: int = 60_000) -> Content:
    chance = random.Random(seed)
    found: Content = {b"%02d/%03d" % (n % 7, n): chance.randbytes(chance.randrange(1, size)) for n in range(files)}
    found |= {b"%02d" % n: None for n in range(7)}
    return {**found, b"text": b"compressible " * 20_000, b"large": chance.randbytes(3_000_000)}


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


@pytest.fixture(params=["memory", "local"])
def driver(request: pytest.FixtureRequest, kit: Kit, monkeypatch: pytest.MonkeyPatch) -> VolumeDriver:
    if request.param == "memory":
        return MemoryDriver()  # type: ignore[return-value]
    # A pool of plain copies: what needs root is tested in tests/mount.
    monkeypatch.setattr(local_pool, "_why_no_xfs", lambda: "a test")
    return LocalDriver(kit.place / "pool", kit.host.clock)


def create(kit: Kit, driver: VolumeDriver, **options: bool) -> Created:
    return create_direct(kit.dataset, kit.host, driver, no_progress, **options)


def test_a_snapshot_holds_a_seq_and_the_next_one_only_what_changed(kit: Kit, driver: VolumeDriver) -> None:
    content = tree(1)
    kit.write(content)
    kit.publish()
    first = create(kit, driver)
    assert (first.is_new, first.seq, first.parent_id) == (True, 1, "")
    assert first.why_full == "there is no snapshot before it"
    content[b"new"] = b"n" * 5000
    del content[b"00/000"]
    content[b"01/001"] = b"other"
    kit.write(content)
    kit.publish()
    second = create(kit, driver)
    assert (second.is_new, second.seq, second.parent_id, second.why_full) == (True, 2, first.snapshot_id, "")
    # Image, map, the block or two at the end of the address space where new content goes, and the header.
    assert second.put_blocks == second.blocks <= 1 + 1 + 2 + HEADER
    assert first.blocks > 2 * second.blocks
    assert complete_ones(kit, driver) == [second.snapshot_id, first.snapshot_id]
    check_volume(kit, reader(driver, first.snapshot_id), 1)


def test_no_newer_seq_makes_nothing(kit: Kit) -> None:
    driver = MemoryDriver()
    kit.write({b"a": b"a"})
    kit.publish()
    first = create(kit, driver)
    calls = list(driver.calls)
    again = create(kit, driver)
    assert (again.is_new, again.snapshot_id) == (False, first.snapshot_id)
    assert driver.calls == calls


def test_a_dry_run_says_what_would_be_put_and_puts_nothing(kit: Kit) -> None:
    driver = MemoryDriver()
    kit.write(tree(1))
    kit.publish()
    before = sorted(info.key for info in kit.store.list(""))
    planned = create(kit, driver, is_dry_run=True)
    assert driver.calls == []
    assert sorted(info.key for info in kit.store.list("")) == before
    assert planned.blocks == create(kit, driver).put_blocks


def test_what_left_a_block_empty_is_said_with_zeros(kit: Kit) -> None:
    """Or the parent's bytes would be in every later snapshot, and paid for."""
    driver = MemoryDriver()
    kit.write({b"a": b"a" * 100, b"b": random.Random(1).randbytes(5 * BLOCK_BYTES), b"c": b"c" * 100})
    kit.publish()
    create(kit, driver)
    kit.write({b"a": b"a" * 100, b"c": b"c" * 100})
    kit.publish()
    second = create(kit, driver)
    assert second.zero_blocks == 4
    own = driver.own[second.snapshot_id]
    assert sum(block == bytes(BLOCK_BYTES) for block in own.values()) == 4
    complete_ones(kit, driver)


def test_a_change_of_one_file_in_a_hundred_costs_no_more_than_that(kit: Kit) -> None:
    """Wherever the files are: new content stands together."""
    driver, chance = MemoryDriver(), random.Random(8)
    content: Content = {b"%04d" % n: chance.randbytes(20_000) for n in range(1000)}
    kit.write(content)
    kit.publish()
    first = create(kit, driver)
    for n in range(0, 1000, 100):
        content[b"%04d" % n] = chance.randbytes(20_000)
    kit.write(content)
    kit.publish()
    meter = Meter()
    kit.dataset.store = MeteredStore(kit.store, meter)
    second = create(kit, driver)
    assert first.put_blocks > 40
    # 200 kB, in one block or across two; image, map, header.
    assert second.put_blocks <= 2 + 2 + HEADER
    assert meter.bytes_down < 1_000_000


def test_no_more_is_in_memory_than_is_put_at_once(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume_content, "_PUTS_AT_ONCE", 2)
    kit.write({b"%02d" % n: random.Random(n).randbytes(1_000_000) for n in range(80)})
    kit.publish()
    built = most = 0

    class Counting(MemoryDriver):
        def put(self, snapshot_id: str, index: int, data: bytes | memoryview) -> bytes:
            nonlocal most
            most = max(most, built - len(self.puts))
            return super().put(snapshot_id, index, data)

    build = volume_content.BlobBlocks.build

    def counted(self: volume_content.BlobBlocks, group: list[int]) -> bytearray:
        nonlocal built
        data = build(self, group)
        built += len(group)
        return data

    monkeypatch.setattr(volume_content.BlobBlocks, "build", counted)
    create(kit, Counting())
    assert built > 150
    assert most <= 8 * 4 + 2 * 2 + 2


def test_slots_take_turns(kit: Kit) -> None:
    driver = MemoryDriver()
    slots = []
    for number in range(4):
        kit.write({b"a": b"%d" % number})
        kit.publish()
        done = create(kit, driver)
        header = check_volume(kit, reader(driver, done.snapshot_id), number + 1)
        slots.append(header.newest)
        former = header.records[1 - slots[-1]] if slots[-1] is not None else None
        assert (former.seq if former else 0) == number
    assert slots == [0, 1, 0, 1]


def test_any_history_is_held_exactly(kit: Kit) -> None:
    """Files that come, go, come back, move, are linked; chains that are compacted between."""
    driver = MemoryDriver()
    chance = random.Random(7)
    content = tree(2, files=40, size=30_000)
    for number in range(8):
        for path in chance.sample(sorted(path for path, value in content.items() if isinstance(value, bytes)), 6):
            value = content.pop(path)
            match chance.randrange(3):
                case 0:
                    content[path + b"-moved"] = value
                case 1:
                    content[path] = chance.randbytes(chance.randrange(1, 900_000))
        kit.write(content)
        kit.publish()
        if number == 4:
            compact(kit.dataset, kit.host, no_progress, is_full=True)
        create(kit, driver)
    assert len(complete_ones(kit, driver)) == 8


def test_a_deleted_and_published_again_file_is_found_at_its_new_place(kit: Kit) -> None:
    """Its content is the same at both ends, its place is not."""
    driver = MemoryDriver()
    kit.write({b"a": b"a" * 9000, b"b": b"b"})
    kit.publish()
    create(kit, driver)
    kept = kit.place / "kept"
    (kit.directory / "a").rename(kept)
    kit.publish()
    kept.rename(kit.directory / "a")
    kit.publish()
    create(kit, driver)
    assert len(complete_ones(kit, driver)) == 2


def test_outgrown_slots_begin_a_new_lineage(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(image_bytes: int, map_bytes: int) -> Layout:
        return Layout(2 * BLOCK_BYTES) if image_bytes < BLOCK_BYTES else layout_for(image_bytes, map_bytes)

    monkeypatch.setattr(snapshot_direct, "layout_for", small)
    driver = MemoryDriver()
    kit.write({b"a": b"a"})
    kit.publish()
    create(kit, driver)
    kit.write({b"%05d" % n: b"" for n in range(8000)})
    kit.publish()
    done = create(kit, driver)
    assert "outgrown" in done.why_full
    assert done.parent_id == ""
    assert len(complete_ones(kit, driver)) == 2


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        ({SEQ: "1e9"}, "no seq"),
        ({SEQ: "9" * 18}, "the head is at 1"),
        ({DIGEST: "ab"}, "no digest"),
        ({DIGEST: "ab" * 32}, "not that of seq 1"),
        ({COMPLETE: "yes"}, "only 1 is ever written"),
    ],
)
def test_hostile_tags_are_refused_by_name(kit: Kit, tags: dict[str, str], why: str) -> None:
    driver = MemoryDriver()
    kit.write({b"a": b"a"})
    seq = kit.publish()
    said = {STORE: store_tag(kit.store.url), DATASET: "covers", SEQ: "1", DIGEST: seq.digest, COMPLETE: "1"}
    driver.held["snap-1"] = Snapshot("snap-1", 1, SnapshotState.COMPLETED, 1, tags={**said, **tags})
    done = create(kit, driver)
    assert why in done.refused["snap-1"]
    assert done.is_new
    assert done.parent_id == ""


def test_a_snapshot_that_is_not_what_it_is_tagged_as_is_no_parent(kit: Kit) -> None:
    driver = MemoryDriver()
    kit.write({b"a": b"a"})
    kit.publish()
    first = create(kit, driver)
    kit.write({b"a": b"b"})
    second = kit.publish()
    held = driver.held[first.snapshot_id]
    driver.held[first.snapshot_id] = replace(held, tags={**held.tags, SEQ: "2", DIGEST: second.digest})
    kit.write({b"a": b"c"})
    kit.publish()
    done = create(kit, driver)
    assert "tagged as seq 2" in done.refused[first.snapshot_id]
    assert (done.parent_id, done.is_new) == ("", True)
    check_volume(kit, reader(driver, done.snapshot_id), 3)


@pytest.mark.parametrize("is_applied", [False, True])
def test_killed_at_any_call_and_run_again_it_ends_with_one_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_applied: bool
) -> None:
    monkeypatch.setattr(volume_content, "_PUTS_AT_ONCE", 1)
    kit = Kit(tmp_path)
    kit.write({b"a": random.Random(1).randbytes(2 * BLOCK_BYTES), b"b": b"b"})
    kit.publish()
    whole = MemoryDriver()
    create(kit, whole)
    assert set(whole.calls) == {"start", "put", "complete", "tag"}
    for number in range(1, len(whole.calls) + 1):
        driver = MemoryDriver()
        kit.host = replace(kit.host, state=tmp_path / f"state {is_applied} {number}")
        driver.dies_at, driver.is_applied = number, is_applied
        with pytest.raises(Killed):
            create(kit, driver)
        assert complete_ones(kit, driver) == [] or (is_applied and number == len(whole.calls))
        driver.dies_at = None
        done = create(kit, driver)
        assert complete_ones(kit, driver) == [done.snapshot_id]
        assert list(driver.held) == [done.snapshot_id]
        # What was put is not put again, but for those under way when it died.
        assert len(driver.puts) <= whole.calls.count("put") + 2


def test_what_a_killed_run_began_of_an_older_seq_is_not_left_behind(kit: Kit) -> None:
    driver = MemoryDriver()
    kit.write({b"a": b"a"})
    kit.publish()
    for dies_at, is_applied in ((1, True), (2, True), (3, False)):
        driver.calls.clear()
        driver.dies_at, driver.is_applied = dies_at, is_applied
        with pytest.raises(Killed):
            create(kit, driver)
        (begun,) = driver.held
        kit.write({b"a": b"%d" % dies_at})
        kit.publish()
        driver.dies_at = None
        done = create(kit, driver)
        assert done.abandoned == begun
        assert list(driver.held) == [done.snapshot_id]
        driver.held.clear()


def test_another_machine_goes_on_with_what_one_began(kit: Kit, tmp_path: Path) -> None:
    driver = MemoryDriver()
    kit.write(tree(3))
    kit.publish()
    driver.dies_at = 10
    with pytest.raises(Killed):
        create(kit, driver)
    driver.dies_at = None
    kit.host = replace(kit.host, node="n2", state=tmp_path / "other", cache=tmp_path / "other cache")
    done = create(kit, driver)
    assert list(driver.held) == complete_ones(kit, driver) == [done.snapshot_id]


def test_one_that_failed_is_deleted_and_the_next_run_makes_another(kit: Kit) -> None:
    class Losing(MemoryDriver):
        is_losing = True

        def complete(self, snapshot_id: str, *, changed_count: int, checksum: bytes) -> None:
            if self.is_losing:
                self.own[snapshot_id].popitem()
            super().complete(snapshot_id, changed_count=changed_count, checksum=checksum)

    driver = Losing()
    kit.write(tree(4))
    kit.publish()
    with pytest.raises(Corrupt, match="has failed"):
        create(kit, driver)
    assert driver.held == {}
    driver.is_losing = False
    done = create(kit, driver)
    assert complete_ones(kit, driver) == [done.snapshot_id]


def test_one_that_somebody_deleted_meanwhile_is_made_anew(kit: Kit) -> None:
    driver = MemoryDriver()
    kit.write(tree(5))
    kit.publish()
    driver.dies_at = 10
    with pytest.raises(Killed):
        create(kit, driver)
    driver.dies_at = None
    driver.held.clear()
    done = create(kit, driver)
    assert complete_ones(kit, driver) == [done.snapshot_id]


def test_the_first_error_ends_it_and_it_goes_on_afterwards(kit: Kit) -> None:
    driver = MemoryDriver()
    kit.write(tree(6))
    kit.publish()

    def stop(what: str, done: int, total: int) -> None:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        create_direct(kit.dataset, kit.host, driver, stop)
    (begun,) = driver.held
    done = create(kit, driver)
    assert done.snapshot_id == begun
    assert complete_ones(kit, driver) == [begun]


def test_damage_in_the_store_never_gets_into_a_snapshot(kit: Kit) -> None:
    driver = MemoryDriver()
    kit.write({b"a": random.Random(1).randbytes(700_000)})
    kit.publish()
    (pack,) = [info.key for info in kit.store.list("data/covers/pack/")]
    fetched = kit.store.get(pack, size_max=1 << 30)
    assert fetched is not None
    damaged = bytearray(fetched.data)
    damaged[50_000] ^= 1
    kit.store.put(pack, bytes(damaged))
    with pytest.raises(Corrupt):
        create(kit, driver)
    assert complete_ones(kit, driver) == []
