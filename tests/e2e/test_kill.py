"""kill -9 of real `boxlink sync` and `boxlink publish` at random moments: what stands is right, the next run goes on.

Each kill comes a random while after the process has begun to change something, within the time that a whole run took
here. How many of them found it at work is counted, and a test that only hit bystanders fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import pytest

from synclib.core import names
from synclib.disk.held import Held
from synclib.store.open import open_store
from tests.e2e.boxlink_process import Machine, members, started, wait_for_end
from tests.kit import Content, Kit, put, read_tree

KILLS = 50
SMALL_FILES, SMALL_BYTES = 300, 20_000
LARGE_BYTES = (6 << 20, 17 << 20)


def machine_at(place: Path) -> Machine:
    machine = Machine(place)
    machine.run("init")
    return machine


def kit_of(machine: Machine) -> Kit:
    return Kit(machine.place / "check", open_store(machine.store, {})[0])


class Source:
    """A tree that is mostly another in each generation; one large file keeps most of its bytes, the other none,
    so that there is something for workers to fetch."""

    def __init__(self, directory: Path, entropy: random.Random, sizes: tuple[int, int] = LARGE_BYTES) -> None:
        self.directory, self.entropy = directory, entropy
        self.large = [bytearray(entropy.randbytes(size)) for size in sizes]

    def step(self, small: int = SMALL_FILES, *, is_all_new: bool = True) -> None:
        for number in self.entropy.sample(range(SMALL_FILES), small):
            put(self.directory, b"%02d/%04d" % (number % 10, number), self.entropy.randbytes(SMALL_BYTES))
        for number, data in enumerate(self.large):
            size = len(data) if is_all_new and number else 1 << 20
            at = self.entropy.randrange(len(data) - size + 1)
            data[at : at + size] = self.entropy.randbytes(size)
            put(self.directory, b"large/%d" % number, bytes(data))


def hashes(content: Content) -> dict[bytes, object]:
    return {path: blake2b(value).digest() if isinstance(value, bytes) else value for path, value in content.items()}


def kill(process: subprocess.Popen[bytes], has_begun: Callable[[], bool], seconds: float) -> None:
    """SIGKILL a while after it has begun. All that it had started must end too."""
    wait_until(lambda: has_begun() or process.poll() is not None)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()
    process.wait()
    assert wait_for_end(process.pid) == set(), "worker processes outlive their parent"


def work_seconds(has_begun: Callable[[], bool], is_done: Callable[[], bool]) -> float:
    """How long a whole run works after it has begun."""
    wait_until(has_begun)
    began = time.monotonic()
    wait_until(is_done)
    return time.monotonic() - began


def says(down: Path) -> int:
    """The seq that synch.down names; 0 when there is none."""
    try:
        seq: int = json.loads(down.read_bytes())["seq"]
    except FileNotFoundError:
        return 0
    return seq


def test_sync_killed_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entropy = random.Random(20261124)
    machine = machine_at(tmp_path)
    source = Source(tmp_path / "source", entropy)
    expected: dict[int, dict[bytes, object]] = {}
    for seq in range(1, 5):
        source.step(SMALL_FILES if seq == 1 else SMALL_FILES // 2)
        machine.run("publish", "covers", source.directory, "-q")
        expected[seq] = hashes(read_tree(source.directory))
    directory = tmp_path / "data/covers"
    directory.mkdir(parents=True)
    active, down, lock = directory / names.ACTIVE, directory / names.DOWN, directory / ".boxlink/lock"
    sync = ("sync", "--data", tmp_path / "data")
    active.write_text("seq=1")
    machine.run(*sync, "--once")
    active.write_text("seq=3")
    before = lock.read_bytes()
    with started(machine, *sync, stdout=subprocess.DEVNULL):
        whole = work_seconds(lambda: lock.read_bytes() != before, lambda: says(down) == 3)
    at_work = 0
    seq = 3
    for _ in range(KILLS):
        seq = entropy.choice([other for other in expected if other != seq])
        active.write_text(f"seq={seq}")
        before = lock.read_bytes()
        with started(machine, *sync, stdout=subprocess.DEVNULL) as process:
            kill(process, lambda: lock.read_bytes() != before, entropy.uniform(0, whole))  # noqa: B023
        state = Held(directory).read()
        assert state is not None
        at_work += state.restoring is not None
        # Each file is of one seq or of another, never torn or short.
        for path, found in hashes(read_tree(directory)).items():
            assert any(path in of_seq and of_seq[path] == found for of_seq in expected.values()), path
        if said := says(down):
            assert hashes(read_tree(directory)) == expected[said], said
    machine.run(*sync, "--once")
    assert says(down) == seq
    assert hashes(read_tree(directory)) == expected[seq]
    assert kit_of(machine).verify().damage == []
    with capsys.disabled():
        print(f"\n{at_work} of {KILLS} kills found sync between its first change and its last")
    assert at_work > 3  # most kills land there; how many depends on the machine's other work


def test_publish_killed_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entropy = random.Random(77)
    machine = machine_at(tmp_path)
    kit = kit_of(machine)
    source = Source(tmp_path / "source", entropy, (17 << 20, 17 << 20))
    publish = ("publish", "covers", source.directory, "--json")
    source.step()
    machine.run(*publish)
    source.step(SMALL_FILES // 3, is_all_new=False)
    packs = tmp_path / "store/data/covers/pack"
    before = set(packs.iterdir())

    def has_begun() -> bool:
        return set(packs.iterdir()) != before

    with started(machine, *publish, stdout=subprocess.DEVNULL) as process:
        reach = work_seconds(has_begun, lambda: process.poll() == 0)
    at_work = committed = 0
    seq = 2
    for number in range(KILLS):
        source.step(SMALL_FILES // 3, is_all_new=False)
        before = set(packs.iterdir())
        with started(machine, *publish, stdout=subprocess.DEVNULL) as process:
            kill(process, has_begun, entropy.uniform(0, reach))
        head = kit.dataset.read_head().manifest
        assert head.seq - seq in (0, 1)
        at_work += has_begun() and head.seq == seq
        committed += head.seq - seq
        # What was not committed is there for the next to do as well: so that some are done in time, and some are not.
        reach *= 0.8 if head.seq > seq else 1.2
        seq = head.seq
        if number % 10 == 9:
            assert kit.verify().damage == []
    done = machine.json("publish", "covers", source.directory)
    assert done["seq"] - seq in (0, 1)
    kit.restore(tmp_path / "out")
    assert read_tree(tmp_path / "out") == read_tree(source.directory)
    assert kit.verify().damage == []
    with capsys.disabled():
        print(f"\n{at_work} of {KILLS} kills found publish between its first pack and its end, {committed} committed")
    assert at_work > 3  # most kills land there; how many depends on the machine's other work


def test_workers_of_a_killed_restore_write_nothing_into_the_next(tmp_path: Path) -> None:
    """They are stopped in the middle, and go on when another restore is at work: it waits, or they are too late."""
    entropy = random.Random(3)
    machine = machine_at(tmp_path)
    source = Source(tmp_path / "source", entropy)
    expected = {}
    for seq in (1, 2):
        source.step()
        machine.run("publish", "covers", source.directory, "-q")
        expected[seq] = hashes(read_tree(source.directory))
    out = tmp_path / "out"
    machine.run("restore", "covers", out, "--seq", 1, "-q")
    lock, temporary = out / ".boxlink/lock", out / ".boxlink/tmp"
    with started(machine, "restore", "covers", out, "--seq", 2, stdout=subprocess.DEVNULL) as first:
        wait_until(lambda: len(members(first.pid)) > 3 and any(temporary.iterdir()))
        workers = members(first.pid) - {first.pid}
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        first.kill()
        first.wait()
        before = lock.read_bytes()
        with started(machine, "restore", "covers", out, "--seq", 1, "-q") as second:
            wait_until(lambda: second.poll() is not None or lock.read_bytes() != before)
            for worker in workers:
                os.kill(worker, signal.SIGCONT)
            assert second.wait(60) == 0
        assert wait_for_end(first.pid) == set()
    assert hashes(read_tree(out)) == expected[1]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
