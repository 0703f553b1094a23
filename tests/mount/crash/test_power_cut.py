"""A power cut between any two writes of a fault, and a cache whose files were damaged: right bytes or an error.

A power cut is modelled by a copy of the cache, taken while a worker is held at a step, that a machine which knows
nothing else mounts; and by copies in which each file is as it was at a moment of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.boxlink_process import Machine
from tests.mount.crash.conftest import Crashing, drop_page_cache
from tests.mount.crash.hooks import STEPS
from tests.mount.test_upgrade import wait

CUTS = STEPS[2:]
MIXED = ("the record ahead of the data", "the data ahead of the record")


@dataclass
class Copies:
    """By the moment of each. ``touched``: the files that were being read, and some that nobody has read."""

    crashing: Crashing
    places: dict[str, Path]
    touched: list[str]


@pytest.fixture(scope="module")
def copies(crashing: Crashing, tmp_path_factory: pytest.TempPathFactory) -> Copies:
    found = Copies(crashing, {}, [])
    for step in CUTS:
        name = crashing.unread()
        with crashing.hooks.held(step):
            reader = crashing.start_reading(name)
            crashing.hooks.wait(step)
            found.places[step] = copy_of(crashing.machine.place / "cache", tmp_path_factory.mktemp("cut"))
        assert crashing.finish(name, reader)
        found.touched.append(name)
    first, last = found.places[CUTS[0]], copy_of(crashing.machine.place / "cache", tmp_path_factory.mktemp("last"))
    for why, data, record in ((MIXED[0], first, last), (MIXED[1], last, first)):
        mixed = copy_of(record, tmp_path_factory.mktemp("mixed"))
        (blob,) = mixed.glob("boxlink/*/lazy/blob")
        shutil.copyfile(next(data.glob("boxlink/*/lazy/blob")), blob)
        found.places[why] = mixed
    found.touched += [crashing.unread() for _ in range(3)]
    crashing.machine.run("umount", crashing.target)
    return found


def copy_of(cache: Path, place: Path) -> Path:
    subprocess.run(["cp", "-a", "--sparse=always", cache, place / "cache"], check=True)
    return place / "cache"


@contextmanager
def mounted_on(crashing: Crashing, cache: Path, place: Path) -> Iterator[Machine]:
    """The same dataset on that cache, by a machine that knows nothing else. It stands where the cache was, for its
    records name its files by their paths."""
    machine = Machine(place, crashing.machine.store)
    machine.environment = {**crashing.machine.environment, "XDG_STATE_HOME": str(place / "state")}
    former = crashing.machine.place / "cache"
    subprocess.run(["mount", "--bind", cache, former], check=True)
    try:
        machine.json("mount", "covers", crashing.target, "--no-hydrate")
        try:
            yield machine
        finally:
            crashing.be("")
            machine.run("umount", crashing.target, "--force")
    finally:
        subprocess.run(["umount", "-l", former], check=True)


def assert_right_or_error(crashing: Crashing, names: list[str]) -> int:
    """How many were read whole, while the store gives nothing."""
    crashing.be("503")
    drop_page_cache()
    whole = sum(crashing.read(name) for name in names)
    crashing.be("")
    return whole


@pytest.mark.parametrize("cut", [*CUTS, *MIXED])
def test_after_a_power_cut(copies: Copies, tmp_path: Path, cut: str) -> None:
    crashing = copies.crashing
    cache = copy_of(copies.places[cut], tmp_path)
    with mounted_on(crashing, cache, tmp_path) as machine:
        whole = assert_right_or_error(crashing, copies.touched)
        assert whole < len(copies.touched)
        if cut == CUTS[-1]:
            assert whole >= len(CUTS) - 2  # those that were read before are here
        wait(lambda: all(map(crashing.read, copies.touched)))
        crashing.assert_all_right()
        assert assert_right_or_error(crashing, copies.touched) == len(copies.touched)
        assert machine.json("verify", "--node")["caches"][0]["damaged"] == 0


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 3, len(data), 4096):
        data[at] ^= 0x55
    path.write_bytes(data)


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGE: dict[str, Callable[[Path], None]] = {"flipped": _flip, "zeroed": _zero, "halved": _halve, "gone": os.unlink}


_DAMAGED = {
    "blob": ("flipped", "zeroed", "halved", "gone"),
    "held": ("flipped", "zeroed", "gone"),
    "generation": ("flipped", "halved"),
    "clock": ("flipped", "gone"),
    "*.image": ("flipped", "halved", "gone"),
    "*.map": ("flipped", "zeroed"),
    "*-*.json": ("flipped", "gone"),
}


@pytest.mark.parametrize(("name", "how"), [(name, how) for name, ways in _DAMAGED.items() for how in ways])
def test_after_damage(copies: Copies, tmp_path: Path, name: str, how: str) -> None:
    crashing = copies.crashing
    cache = copy_of(copies.places[CUTS[-1]], tmp_path)
    (path,) = cache.glob(f"boxlink/*/lazy/{name}")
    DAMAGE[how](path)
    with mounted_on(crashing, cache, tmp_path) as machine:
        assert_right_or_error(crashing, copies.touched)
        wait(lambda: all(map(crashing.read, copies.touched)))
        assert machine.json("status")["mounts"][0]["state"] == "serving"


@pytest.mark.parametrize("name", ["blob", "held"])
def test_after_damage_under_a_worker_that_is_killed(copies: Copies, tmp_path: Path, name: str) -> None:
    """The next worker believes nothing that it has not hashed."""
    crashing = copies.crashing
    cache = copy_of(copies.places[CUTS[-1]], tmp_path)
    with mounted_on(crashing, cache, tmp_path) as machine:
        assert all(map(crashing.read, copies.touched))
        (path,) = cache.glob(f"boxlink/*/lazy/{name}")
        data = bytearray(path.read_bytes())
        with path.open("r+b") as file:  # in place: the worker has it open
            for at in range(len(data) // 5, len(data), 4096):
                file.seek(at)
                file.write(bytes([data[at] ^ 0x55]))
        os.kill(machine.json("status")["mounts"][0]["worker"], signal.SIGKILL)
        drop_page_cache()
        assert all(map(crashing.read, copies.touched))
        assert machine.json("status")["mounts"][0]["restarts"] == 1
