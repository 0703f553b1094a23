"""A restore that was broken off goes on where it was, one with damage gives all the rest, and zeros take no room."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from synclib.core.entry import ChunkRef, Codec
from synclib.core.plan import RANGE_BYTES_MAX
from synclib.core.zeros import is_hole, is_zeros
from synclib.errors import Corrupt, Missing, Unavailable
from synclib.store.base import Buffer
from synclib.store.memory import MemoryStore
from synclib.store.meter import Meter, MeteredStore
from tests.e2e.boxlink_process import Machine, started, wait_for_end
from tests.engine.test_publish_restore import damage
from tests.kit import Kit, metadata, read_tree


class Stops(MemoryStore):
    """Gives so many answers of packs, and then none."""

    left = 1 << 30

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        if "/pack/" in key:
            self.left -= 1
            if self.left < 0:
                raise Unavailable("the store is gone", key=key)
        return super().get_ranges(key, ranges)


def stopping_kit(place: Path) -> tuple[Kit, Stops]:
    store = Stops("")
    store.put("boxlink.json", b"{}")
    return Kit(place, store), store


def fetched_by(kit: Kit, out: Path, **options: object) -> int:
    meter = Meter()
    kit.dataset.store = MeteredStore(kit.store, meter)
    kit.restore(out, **options)
    kit.dataset.store = kit.store
    return meter.bytes_down


def test_a_large_file_is_not_fetched_twice(tmp_path: Path) -> None:
    kit, store = stopping_kit(tmp_path)
    blob = random.Random(5).randbytes(50 << 20)
    kit.write({b"big": blob, b"small": b"1"})
    kit.publish()
    out = tmp_path / "out"
    store.left = 2
    with pytest.raises(Unavailable):
        kit.restore(out)
    assert b"big" not in read_tree(out)
    store.left = 1 << 30
    assert fetched_by(kit, out) < len(blob) - RANGE_BYTES_MAX
    assert read_tree(out) == {b"big": blob, b"small": b"1"}
    assert metadata(out) == metadata(kit.directory)
    assert os.listdir(out / ".boxlink/tmp") == []


def test_what_a_killed_restore_left_is_verified(tmp_path: Path) -> None:
    kit, store = stopping_kit(tmp_path)
    blob = random.Random(6).randbytes(40 << 20)
    kit.write({b"big": blob})
    kit.publish()
    out = tmp_path / "out"
    store.left = 1
    with pytest.raises(Unavailable):
        kit.restore(out)
    (part,) = (out / ".boxlink/tmp").iterdir()
    with open(part, "r+b") as file:
        file.write(b"torn")
    store.left = 1 << 30
    kit.restore(out)
    assert read_tree(out) == {b"big": blob}


def test_what_is_wanted_no_longer_is_swept(tmp_path: Path) -> None:
    kit, store = stopping_kit(tmp_path)
    kit.write({b"big": random.Random(7).randbytes(40 << 20)})
    kit.publish()
    out = tmp_path / "out"
    store.left = 1
    with pytest.raises(Unavailable):
        kit.restore(out)
    store.left = 1 << 30
    kit.write({b"other": b"1"})
    kit.publish()
    kit.restore(out)
    assert read_tree(out) == {b"other": b"1"}
    assert os.listdir(out / ".boxlink/tmp") == []


def test_killed_for_good(tmp_path: Path) -> None:
    """kill -9 of a real restore with workers: the next run fetches what was lacking, and what was on its way."""
    machine = Machine(tmp_path)
    machine.run("init")
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    blob = random.Random(8).randbytes(200 << 20)
    (source / "big").write_bytes(blob)
    machine.run("publish", "covers", source, "-q")
    temporary = out / ".boxlink/tmp"
    held = 0
    with started(machine, "restore", "covers", out, "-q") as process:
        while process.poll() is None and held < 40 << 20:
            for part in temporary.glob("part-*"):
                held = os.stat(part).st_blocks * 512
        process.kill()
        process.wait()
    assert wait_for_end(process.pid) == set()
    assert (out / "big").exists() is not any(temporary.glob("part-*"))
    held = sum(os.stat(part).st_blocks * 512 for part in temporary.glob("part-*"))
    assert held > 0, "it was done before it was killed"
    told = machine.json("restore", "covers", out)
    workers = len(os.sched_getaffinity(0))
    assert told["bytes_down"] < len(blob) - held + (workers + 2) * RANGE_BYTES_MAX
    assert (out / "big").read_bytes() == blob


@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
def test_damage_does_not_hide_the_rest(tmp_path: Path, how: str) -> None:
    kit = Kit(tmp_path)
    entropy = random.Random(9)
    tree = {b"%02d" % number: entropy.randbytes(3000) for number in range(20)}
    kit.write(tree)
    kit.publish()
    first = [info.key for info in kit.store.list("data/covers/pack/")]
    kit.write({**tree, b"later": b"later", b"large": entropy.randbytes(20 << 20)})
    kit.publish()
    later = [info.key for info in kit.store.list("data/covers/pack/") if info.key not in first]
    damage(kit.store, first[0], how)
    out = tmp_path / "out"
    with pytest.raises(Missing if how == "delete" else Corrupt) as caught:
        kit.restore(out)
    assert caught.value.key == first[0]
    found, whole = read_tree(out), read_tree(kit.directory)
    assert all(found[path] == whole[path] for path in found)
    lost = sorted(set(whole) - set(found))
    assert {"flip": 1, "cut": 10, "delete": 20}[how] == len(lost)
    assert all(os.fsdecode(path) in caught.value.message for path in lost[:20])
    assert {b"later", b"large"} <= found.keys()
    assert later
    # Nothing says that it is done, and the next one looks again.
    with pytest.raises((Corrupt, Missing)):
        kit.restore(out)


def test_zeros_are_holes(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.directory.mkdir(exist_ok=True)
    for name, size in (("sparse", 256 << 20), ("one", 1 << 20), ("two", 3 << 20)):
        with open(kit.directory / name, "wb") as file:
            file.truncate(size)
    with open(kit.directory / "sparse", "r+b") as file:
        file.seek(128 << 20)
        file.write(b"in the middle")
    kit.publish()
    out = tmp_path / "out"
    done = kit.restore(out)
    assert done.fetched_bytes < 1 << 20
    assert metadata(out) == metadata(kit.directory)
    for name in ("sparse", "one", "two"):
        status = os.stat(out / name)
        assert status.st_size == os.stat(kit.directory / name).st_size
        assert status.st_blocks * 512 <= 8 << 20
    with open(out / "sparse", "rb") as file:
        assert os.pread(file.fileno(), 20, (128 << 20) - 3) == b"\0\0\0in the middle\0\0\0\0"
    plan = kit.restore(tmp_path / "second", is_dry_run=True)
    assert plan.need_bytes <= 8 << 20


def test_which_chunks_are_zeros() -> None:
    assert is_zeros(bytes(4096))
    assert not is_zeros(bytes(4095))
    assert not is_zeros(bytes(4096) + b"1")
    chunk = ChunkRef(bytes(32), bytes(16), 0, 20, 1 << 20, Codec.ZSTD)
    assert not is_hole(chunk)
