"""A file of five GiB, nearly all of it holes: read where 32 bits end, and nowhere whole."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.boxlink_process import Machine
from tests.mount.same.conftest import Pair, Published, mounted_pair, open_to_others

GIANT_BYTES = (5 << 30) + 12_345
MARKS = (0, 1 << 20, (1 << 31) - 3000, (1 << 32) - 3000, (1 << 32) + 1, GIANT_BYTES - 6000)


@pytest.fixture(scope="module")
def giant(tmp_path_factory: pytest.TempPathFactory, mount_trouble: str) -> Published:
    if mount_trouble:
        pytest.skip(f"real mounts: {mount_trouble}")
    place = tmp_path_factory.mktemp("giant")
    open_to_others(place)
    copy, chance = place / "copy", random.Random(5)
    copy.mkdir()
    with open(copy / "giant", "wb") as file:
        for at in MARKS:
            file.seek(at)
            file.write(chance.randbytes(6000))
        file.truncate(GIANT_BYTES)
    (copy / "after").write_bytes(chance.randbytes(50_000))
    machine = Machine(place)
    machine.run("init")
    machine.run("publish", "covers", copy)
    return Published(machine.store, copy)


@pytest.fixture(scope="module", params=["erofs", "fuse"])
def pair(request: pytest.FixtureRequest, giant: Published, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with mounted_pair(tmp_path_factory.mktemp(f"giant {request.param}"), giant, request.param) as found:
        yield found


def _open(side: bytes) -> int:
    return os.open(os.path.join(side, b"giant"), os.O_RDONLY)


def test_reads_on_both_sides_of_every_border(pair: Pair, tmp_path: Path) -> None:
    found = []
    for side in pair.sides():
        descriptor = _open(side)
        try:
            parts: list[object] = [os.fstat(descriptor).st_size]
            for at in (*MARKS, (1 << 31) - 1, (1 << 32) - 1, 3 << 30):
                start = max(at - 5000, 0)
                parts.append(os.pread(descriptor, 20_000, start))
                first = start // mmap.PAGESIZE * mmap.PAGESIZE
                length = min(40_960, GIANT_BYTES - first)
                with mmap.mmap(descriptor, length, prot=mmap.PROT_READ, offset=first) as mapped:
                    parts.append(mapped[:])
                with open(tmp_path / "sent", "w+b") as target:
                    os.sendfile(target.fileno(), descriptor, start, 9000)
                    target.seek(0)
                    parts.append(target.read())
            parts.append((os.lseek(descriptor, -100, os.SEEK_END), os.read(descriptor, 1000)))
        finally:
            os.close(descriptor)
        found.append(parts)
    assert found[0] == found[1]


def test_random_places(pair: Pair) -> None:
    chance = random.Random(9)
    places = [(chance.randrange(GIANT_BYTES), chance.choice([1, 4096, 100_000])) for _ in range(60)]
    found = []
    for side in pair.sides():
        descriptor = _open(side)
        try:
            found.append([os.pread(descriptor, length, at) for at, length in places])
        finally:
            os.close(descriptor)
    assert found[0] == found[1]


def test_programs_see_its_size_and_its_end(pair: Pair) -> None:
    said = []
    for side in pair.sides():
        script = 'stat -c "%s %a" giant && tail -c 7000 giant | sha256sum && sha256sum < after'
        said.append(subprocess.run(["sh", "-c", script], cwd=side, capture_output=True, check=True).stdout)
    assert said[0] == said[1]
    assert said[0].startswith(str(GIANT_BYTES).encode())
