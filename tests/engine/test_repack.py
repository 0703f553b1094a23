"""Repacking and verifying: same content in fewer, fuller packs; every byte looked at, also by a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest

from synclib.clock import SystemClock, SystemEntropy
from synclib.core.entry import ChunkRef, Entry, Kind
from synclib.core.pack import PACK_BYTES_TARGET
from synclib.core.repacking import (
    SMALL_BYTES,
    PackUse,
    Window,
    choose_packs,
    choose_windows,
    strays,
    strays_of,
    windows,
)
from synclib.core.retention import Retention
from synclib.disk.journal import Journal
from synclib.engine.collect import collect
from synclib.engine.compact import compact
from synclib.engine.host import Connect, no_progress
from synclib.engine.repack import BUDGET_BYTES, RepackOptions, repack_dataset
from synclib.engine.verify import VerifyOptions, verify
from synclib.engine.workers import start_processes
from synclib.errors import Corrupt
from synclib.lazy.dataset import STORE_KEY
from synclib.store.file import FileStore
from synclib.store.meter import Meter, MeteredStore
from tests.kit import Content, Kit, read_tree


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    """Twelve small publishes, half of what they brought deleted since."""
    place = tmp_path / "store"
    store = FileStore(str(place), SystemClock(), SystemEntropy())
    store.create()
    store.put(STORE_KEY, b"{}")
    kit = Kit(tmp_path / "kit", store, connect=Connect(store.url))
    content: Content = {b"d": None}
    for number in range(12):
        content |= {b"d/%d-%d" % (number, part): os.urandom(3000) for part in range(6)}
        kit.write(dict(content))
        kit.publish()
    kit.write({path: data for path, data in content.items() if path.endswith((b"d", b"-0", b"-1", b"-2"))})
    kit.publish(allow_delete=True)
    return kit


def packs(kit: Kit) -> set[str]:
    return {info.key for info in kit.store.list("data/covers/pack/")}


@pytest.mark.parametrize("is_parallel", [False, True])
def test_repacked_content_is_the_same_and_old_packs_go(kit: Kit, tmp_path: Path, is_parallel: bool) -> None:
    before, digest = packs(kit), kit.dataset.read_head().manifest.digest
    dry = repack_dataset(kit.dataset, kit.host, kit.connect, RepackOptions(is_dry_run=True), no_progress)
    assert packs(kit) == before
    start = (lambda: start_processes("synclib.engine.repack_job", 2)) if is_parallel else None
    done = repack_dataset(kit.dataset, kit.host, kit.connect, RepackOptions(start=start), no_progress)
    assert (dry.packs, dry.live_bytes) == (done.packs, done.live_bytes) == (12, 12 * 3 * 3000)
    assert (done.new_packs, done.manifest.digest) == (1, digest)
    assert not kit.verify().damage
    for seq in (1, 5, 12, 13):
        assert not kit.verify(seq=seq).damage
    collect(kit.dataset, kit.host, Retention(last=1), None, no_progress)
    assert len(packs(kit)) == 1
    assert not kit.verify().damage
    kit.restore(tmp_path / "now")
    assert read_tree(tmp_path / "now") == read_tree(kit.directory)
    assert repack_dataset(kit.dataset, kit.host, kit.connect, RepackOptions(), no_progress).packs == 0
    assert not kit.publish().is_new


def test_a_publish_that_comes_between_is_kept(kit: Kit) -> None:
    real = kit.store.put

    def put(key: str, body: object, **conditions: object) -> str:
        if "/run/snap" in key:
            kit.store.put = real  # type: ignore[method-assign]
            kit.write({**read_tree(kit.directory), b"late": b"x"})
            kit.publish()
        return real(key, body, **conditions)  # type: ignore[arg-type]

    kit.store.put = put  # type: ignore[assignment]
    repack_dataset(kit.dataset, kit.host, kit.connect, RepackOptions(), no_progress)
    found = kit.verify()
    assert (found.seq, found.damage) == (14, [])


def test_damage_is_found_and_not_moved(kit: Kit) -> None:
    compact(kit.dataset, kit.host, no_progress, is_full=True)
    key = sorted(packs(kit))[3]
    path = Path(kit.store.url.removeprefix("file://")) / key
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    with pytest.raises(Corrupt) as caught:
        repack_dataset(kit.dataset, kit.host, kit.connect, RepackOptions(), no_progress)
    assert caught.value.key == key
    assert [damaged for damaged, _ in kit.verify().damage] == [key]


def test_choice_follows_the_share_and_the_budget() -> None:
    full = PackUse(b"full", PACK_BYTES_TARGET, PACK_BYTES_TARGET)
    half = PackUse(b"half", 1000 << 10, 500 << 10)
    dead = PackUse(b"dead", 1000 << 10, 0)
    small = [PackUse(b"small%d" % number, 1000, 1000) for number in range(9)]
    assert choose_packs([full, half, dead], 1 << 30) == [dead, half]
    assert choose_packs([full, half, dead], 100 << 10) == [dead]
    assert choose_packs([full, *small], 1 << 30) == small
    assert choose_packs([full, *small[:7]], 1 << 30) == []
    assert choose_packs([full, *small], 5500) == small[:5]


def test_verify_goes_on_where_it_was_broken_off(kit: Kit, tmp_path: Path) -> None:
    manifest = kit.dataset.read_head().manifest
    options = VerifyOptions(is_data=True, journal=tmp_path / "journal")

    class Stopped(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if done == 5:
            raise Stopped

    with pytest.raises(Stopped):
        verify(kit.dataset, manifest, None, options, stop)
    with (tmp_path / "journal").open("ab") as file:
        file.write(b"torn")
    done = verify(kit.dataset, manifest, None, options, no_progress)
    assert (done.packs, done.passed_over, done.damage) == (12, 5, [])
    assert not (tmp_path / "journal").exists()
    assert verify(kit.dataset, manifest, None, options, no_progress).passed_over == 0


def test_a_damaged_pack_is_never_noted_as_whole(kit: Kit, tmp_path: Path) -> None:
    for key in packs(kit):
        path = Path(kit.store.url.removeprefix("file://")) / key
        path.write_bytes(path.read_bytes()[:-1])
    options = VerifyOptions(journal=tmp_path / "journal")
    assert len(verify(kit.dataset, kit.dataset.read_head().manifest, None, options, no_progress).damage) == 12
    journal = Journal(tmp_path / "journal")
    assert journal.names == set()
    journal.close(is_done=True)


def threads() -> Executor:
    return ThreadPoolExecutor(2)


def processes() -> Executor:
    return start_processes("synclib.engine.verify_job", 2)


@pytest.mark.parametrize("start", [threads, processes])
def test_verify_in_any_executor(kit: Kit, start: Callable[[], Executor]) -> None:
    options = VerifyOptions(is_data=True, start=start)
    done = verify(kit.dataset, kit.dataset.read_head().manifest, kit.connect, options, no_progress)
    assert (done.packs, done.damage) == (12, [])
    assert done.meter.requests["get"] >= 36
    path = Path(kit.store.url.removeprefix("file://")) / min(packs(kit))
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    manifest = kit.dataset.read_head().manifest
    assert len(verify(kit.dataset, manifest, kit.connect, options, no_progress).damage) == 1


def test_verify_on_a_dask_cluster(kit: Kit) -> None:
    import distributed

    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True) as cluster,
        distributed.Client(cluster) as client,
    ):
        options = VerifyOptions(is_data=True, start=client.get_executor)
        done = verify(kit.dataset, kit.dataset.read_head().manifest, kit.connect, options, no_progress)
    assert (done.packs, done.damage) == (12, [])


def spread(kit: Kit) -> Content:
    """Twelve publishes: each brings a file of one folder, in a pack that is neither small nor sparse."""
    content: Content = {b"folder": None, b"other": None}
    for number in range(12):
        content[b"folder/%02d" % number] = os.urandom(3000)
        content[b"other/%02d" % number] = os.urandom(SMALL_BYTES + (1 << 17))
        kit.write(dict(content))
        kit.publish()
    return content


def requests_of_folder(kit: Kit, target: Path) -> int:
    """What a restore of the folder asks for."""
    meter, store = Meter(), kit.dataset.store
    kit.dataset.store = MeteredStore(store, meter)
    try:
        kit.restore(target, path=b"folder")
    finally:
        kit.dataset.store = store
    return meter.requests["get"]


def test_a_folder_of_many_publishes_is_gathered(tmp_path: Path) -> None:
    """Its pieces lie in as many packs, each full of other things: a restore asks for them one by one until then."""
    kit = Kit(tmp_path / "kit")
    content = spread(kit)
    manifest = kit.dataset.read_head().manifest
    before = requests_of_folder(kit, tmp_path / "before")
    dry = repack_dataset(kit.dataset, kit.host, None, RepackOptions(is_dry_run=True), no_progress)
    done = repack_dataset(kit.dataset, kit.host, None, RepackOptions(), no_progress)
    # Those whose neighbours in a pack are their neighbours here, too, stay.
    assert 8 * 3000 <= done.gathered_bytes == done.live_bytes == dry.gathered_bytes <= 12 * 3000
    assert (done.packs, done.new_packs, done.manifest.digest) == (0, 1, manifest.digest)
    after = requests_of_folder(kit, tmp_path / "after")
    assert after <= before - 7
    assert read_tree(tmp_path / "after") == {path: data for path, data in content.items() if path[:6] == b"folder"}
    again = repack_dataset(kit.dataset, kit.host, None, RepackOptions(), no_progress)
    assert (again.live_bytes, again.new_packs, again.manifest.runs) == (0, 0, done.manifest.runs)
    for seq in (1, 6, 12):
        assert not kit.verify(seq=seq).damage
    for seq in range(1, 13):
        kit.restore(tmp_path / f"at-{seq}", seq, path=b"folder")
        assert read_tree(tmp_path / f"at-{seq}").keys() == {b"folder", *(b"folder/%02d" % n for n in range(seq))}
    collect(kit.dataset, kit.host, Retention(last=1), None, no_progress)
    assert not kit.verify().damage


def chunk(number: int, pack: bytes, offset: int, size: int = 1000) -> ChunkRef:
    return ChunkRef(b"%032d" % number, pack.ljust(16), offset, size, size, 0)


def entry(name: bytes, *chunks: ChunkRef) -> Entry:
    return Entry(b"", name, Kind.FILE, size=sum(one.plain_bytes for one in chunks), chunks=chunks)


def test_the_worst_windows_come_first_within_what_may_be_read() -> None:
    def window(number: int, ranges: int) -> Window:
        packs = {b"%d" % index: 1000 for index in range(ranges)}
        return Window(number, ranges, 1000 * ranges, packs, dict.fromkeys(packs, 1))

    found = [window(0, 8), window(1, 30), window(2, 20)]
    chosen = choose_windows(iter(found), 51 * ((256 << 10) + 1000))
    assert [one.number for one in chosen] == [1, 2]
    assert choose_windows(iter(found), 1000) == []
    # One that is too large for all of it takes nobody's place.
    assert [one.number for one in choose_windows(iter([*found, window(3, 60)]), 51 * ((256 << 10) + 1000))] == [1, 2]
    assert sum(one.read_bytes for one in chosen) <= 51 * ((256 << 10) + 1000)


def test_a_folder_of_tiny_files_is_gathered_however_many_they_are() -> None:
    """Each in a pack of its own, as many publishes leave them."""
    tiny = [entry(b"%06d" % n, chunk(n, b"%d" % n, 0, 100)) for n in range(20_000)]
    found = [strays_of(number, window) for number, window in enumerate(windows(tiny))]
    assert all(one is not None for one in found)
    chosen = choose_windows((one for one in found if one is not None), BUDGET_BYTES // 2)
    assert len(chosen) >= 5
    assert sum(one.read_bytes for one in chosen) <= BUDGET_BYTES // 2


def test_what_several_files_have_belongs_to_the_first() -> None:
    """Rows and columns of a table: gathered for one they would be strewn for the other, for ever."""
    table = [[chunk(row * 10 + column, b"%d" % row, column * 1000) for column in range(10)] for row in range(10)]
    rows = [entry(b"row%d" % row, *table[row]) for row in range(10)]
    columns = [entry(b"x%d" % column, *(table[row][column] for row in range(10))) for column in range(10)]
    found = list(windows([*rows, *columns]))
    assert [is_own for _, is_own in found[0]] == [True] * 100 + [False] * 100
    # Ten packs of 10,000 bytes are ten ranges: they are strays, once each.
    assert strays(found[0]) == ([one for row in table for one in row], [10_000] * 10)


def test_only_what_is_short_is_a_stray() -> None:
    body = [chunk(number, b"body", number * (1 << 20), 1 << 20) for number in range(4)]
    few = [chunk(100 + number, b"%d" % number, 5000) for number in range(7)]
    assert strays([(one, True) for one in body + few]) == ([], [])
    one_more = chunk(200, b"more", 0)
    found, sizes = strays([(one, True) for one in [*body, *few, one_more]])
    assert (found, sorted(sizes)) == ([*few, one_more], [1000] * 8)
    assert strays([(one, True) for one in [*body, *few]] + [(one_more, False)]) == ([], [])
