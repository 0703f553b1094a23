"""`boxlink mount` as people use it: real processes, the kernel's EROFS and FUSE, a store that goes away, kills."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from synclib.disk.mounts import mounted_on
from tests.mount.mounted import LARGE_BYTES, Mounted


def test_a_mount_is_the_tree(mounted: Mounted) -> None:
    done = mounted.mount()
    assert (done["seq"], done["mode"], done["files"]) == (1, "erofs", 204)
    mounted.assert_same()
    for path in ("large", "text", "00/000.jpg"):
        ours, theirs = os.stat(mounted.target / path), os.stat(mounted.source / path)
        assert (ours.st_mode, ours.st_mtime_ns, ours.st_nlink) == (theirs.st_mode, theirs.st_mtime_ns, theirs.st_nlink)
    with pytest.raises(OSError, match="Read-only"):
        (mounted.target / "new").write_bytes(b"x")
    mounted.unmount()
    assert list(mounted.target.iterdir()) == []
    assert mounted.worker() == 0


def test_only_what_is_read_comes_and_it_comes_once(mounted: Mounted) -> None:
    mounted.mount()
    assert (mounted.target / "00/000.jpg").read_bytes() == (mounted.source / "00/000.jpg").read_bytes()
    held = os.stat(mounted.content_path()).st_blocks * 512
    assert 0 < held < LARGE_BYTES // 2
    mounted.assert_same()
    mounted.unmount()
    # Another mount, and the store is away: everything is here.
    shutil.move(mounted.machine.place / "store/data/covers/pack", mounted.machine.place / "away")
    mounted.mount()
    mounted.assert_same()


@pytest.mark.parametrize("mode", ["erofs", "fuse"])
def test_who_reads_on_asks_for_much_at_once(mounted: Mounted, mode: str) -> None:
    """What a request by way of FUSE costs hardly depends on its size."""
    mounted.mount("--mode", mode)
    mounted.assert_same()
    mounted.drop_page_cache()
    before = mounted.machine.json("status")["mounts"][0]["reads"]
    assert (mounted.target / "large").read_bytes() == (mounted.source / "large").read_bytes()
    after = mounted.machine.json("status")["mounts"][0]["reads"]
    assert after - before <= 15, "in pieces of the kernel's own 128 KiB it would be 39"


def test_a_store_that_is_away_is_an_error_and_then_all_is_well(mounted: Mounted) -> None:
    mounted.mount()
    here = mounted.source / "00/000.jpg"
    assert (mounted.target / "00/000.jpg").read_bytes() == here.read_bytes()
    shutil.move(mounted.machine.place / "store/data/covers/pack", mounted.machine.place / "away")
    mounted.drop_page_cache()
    assert (mounted.target / "00/000.jpg").read_bytes() == here.read_bytes()
    with pytest.raises(OSError, match="Input/output error"):
        (mounted.target / "large").read_bytes()
    shutil.move(mounted.machine.place / "away", mounted.machine.place / "store/data/covers/pack")
    mounted.assert_same()


def test_damage_in_the_store_is_an_error_never_other_bytes(mounted: Mounted) -> None:
    mounted.mount()
    for pack in (mounted.machine.place / "store/data/covers/pack").iterdir():
        data = bytearray(pack.read_bytes())
        for at in range(1000, len(data), 50_000):
            data[at] ^= 1
        pack.write_bytes(data)
    wrong = 0
    for path in sorted(mounted.source.rglob("*")):
        if path.is_file():
            try:
                assert (mounted.target / path.relative_to(mounted.source)).read_bytes() == path.read_bytes()
            except OSError:
                wrong += 1
    assert wrong > 0


def test_a_cache_that_was_damaged_while_nobody_looked_is_fetched_again(mounted: Mounted) -> None:
    mounted.mount()
    mounted.assert_same()
    mounted.unmount()
    with open(mounted.content_path(), "r+b") as file:
        for at in range(4096 + 7, os.fstat(file.fileno()).st_size, 9 * 4096):
            file.seek(at)
            file.write(b"damage")
    mounted.drop_page_cache()
    mounted.mount()
    mounted.assert_same()


def test_a_record_that_says_too_much_never_shows_zeros(mounted: Mounted) -> None:
    """As a power cut may leave it: the record is ahead of the data."""
    mounted.mount()
    mounted.unmount()
    record = mounted.content_path().parent / "held"
    record.write_bytes(b"\xff" * record.stat().st_size)
    mounted.mount()
    mounted.assert_same()


def test_workers_that_are_killed_are_replaced_and_no_reader_notices(mounted: Mounted) -> None:
    mounted.mount()
    digests = {
        path.relative_to(mounted.source): hashlib.sha256(path.read_bytes()).digest()
        for path in mounted.source.rglob("*")
        if path.is_file()
    }
    failures: list[object] = []
    is_over = threading.Event()

    def read(seed: int) -> None:
        order = list(digests)
        chance = random.Random(seed)
        while not is_over.is_set():
            chance.shuffle(order)
            for path in order[:30]:
                try:
                    data = (mounted.target / path).read_bytes()
                except OSError as error:
                    failures.append((path, error))
                    continue
                if hashlib.sha256(data).digest() != digests[path]:
                    failures.append(path)

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for reader in readers:
        reader.start()
    killed: set[int] = set()
    try:
        while len(killed) < 6:
            mounted.drop_page_cache()
            worker = mounted.worker()
            if worker and worker not in killed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
                killed.add(worker)
            time.sleep(0.05)
    finally:
        is_over.set()
        for reader in readers:
            reader.join()
    assert failures == []
    mounted.assert_same()


_HELD = """
import sys, time
from pathlib import Path
if "tools.mount_worker" in sys.orig_argv:
    from synclib.lazy.blob import Blob
    place, read = Path({place!r}), Blob.read
    def held(self, start, length):
        (place / "taken").touch()
        while not (place / "go").exists():
            time.sleep(0.005)
        return read(self, start, length)
    Blob.read = held
"""


def test_what_a_killed_worker_had_taken_is_asked_of_the_next(mounted: Mounted, tmp_path: Path) -> None:
    """Every read is held from when it was taken; the worker dies over it."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(_HELD.format(place=str(hooks)))
    mounted.machine.environment["PYTHONPATH"] = f"{hooks}:{os.environ.get('PYTHONPATH', '')}"
    mounted.mount()
    reader = subprocess.Popen(["cat", mounted.target / "large"], stdout=subprocess.PIPE)
    try:
        while not (hooks / "taken").exists():
            time.sleep(0.005)
        os.kill(mounted.worker(), signal.SIGKILL)
        (hooks / "go").touch()
        out, _ = reader.communicate(timeout=30)
    finally:
        reader.kill()
        if reader.poll() is None:
            mounted.unmount("--force")
            reader.wait()
    assert out == (mounted.source / "large").read_bytes()


def test_a_keeper_that_is_killed_leaves_errors_not_hangs_and_can_be_mended(mounted: Mounted) -> None:
    done = mounted.mount()
    (mounted.target / "00/000.jpg").read_bytes()
    mounted.kill(done)
    with pytest.raises(OSError, match=r"."):
        (mounted.target / "large").read_bytes()
    mounted.unmount("--force")
    mounted.mount()
    mounted.assert_same()


def test_a_mount_takes_the_place_of_one_whose_processes_were_killed(mounted: Mounted) -> None:
    """And does not stand on top of it, where it would be found once that is unmounted."""
    for _ in range(2):
        done = mounted.mount()
        assert len(mounted_on(os.fsencode(mounted.target))) == 1
        mounted.kill(done)
    mounted.mount()
    mounted.assert_same()
    mounted.unmount()
    assert mounted_on(os.fsencode(mounted.target)) == []
    assert list(mounted.target.iterdir()) == []


def test_a_busy_mount_is_not_unmounted_unless_forced(mounted: Mounted) -> None:
    mounted.mount()
    with open(mounted.target / "large", "rb") as file:
        file.read(10)
        mounted.unmount(code=13)
        assert file.read(10) == (mounted.source / "large").read_bytes()[10:20]
        mounted.unmount("--force")
    assert list(mounted.target.iterdir()) == []


def test_umount_of_the_system_ends_the_daemon_too(mounted: Mounted) -> None:
    mounted.mount()
    subprocess.run(["umount", mounted.target], check=True)
    deadline = time.monotonic() + 30
    while list((mounted.machine.place / "state/boxlink/mount").iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert mounted.worker() == 0


def test_what_is_wrong_is_said(mounted: Mounted) -> None:
    assert mounted.machine.json("mount", "nothing", mounted.target, code=10)["error"]["kind"] == "missing"
    assert mounted.machine.json("mount", "covers", "/nonexistent", code=2)["error"]["kind"] == "invalid"
    assert mounted.machine.json("umount", mounted.target, code=10)["error"]["kind"] == "missing"
    mounted.mount()
    assert (
        mounted.machine.json("mount", "covers", mounted.target, "--rate", "1M", code=13)["error"]["kind"] == "conflict"
    )


def test_doctor_says_that_it_can_mount_and_leaves_nothing(mounted: Mounted) -> None:
    found = {row["what"]: row["found"] for row in mounted.machine.json("doctor")["findings"]}
    assert found["lazy"] == "datasets can be mounted"
    assert not list((mounted.machine.place / "state/boxlink").glob("probe-*"))


def test_a_worker_hears_that_it_is_to_retire_whichever_thread_is_told(mounted: Mounted) -> None:
    """The kernel may give a process's signal to any thread that lets it through (signal(7)): only the one that waits
    for it takes it."""
    mounted.mount()
    worker = mounted.worker()
    blocked = [
        int(re.findall(r"SigBlk:\t([0-9a-f]+)", path.read_text())[0], 16)
        for path in Path(f"/proc/{worker}/task").glob("*/status")
    ]
    assert len(blocked) > 10
    # What a thread waits for in sigwait(3) is let through by it alone, and only meanwhile.
    assert sum(not mask >> (signal.SIGTERM - 1) & 1 for mask in blocked) <= 1


def test_status_tells_how_a_mount_does(mounted: Mounted) -> None:
    assert mounted.machine.json("status")["mounts"] == []
    mounted.mount()
    mounted.assert_same()
    (row,) = mounted.machine.json("status")["mounts"]
    assert (row["dataset"], row["seq"], row["state"], row["errors"]) == ("covers", 1, "serving", 0)
    assert row["directory"] == str(mounted.target)
    assert row["faults"] > 0
    assert row["fetched_bytes"] > LARGE_BYTES
    assert row["cache_bytes"] > LARGE_BYTES
    assert 0 <= row["age_s"] < 600
    assert b"boxlink_mount_seq_age_seconds{" in mounted.machine.run("status", "--metrics")
    assert mounted.finding()["ok"]
    keeper, worker = row["keeper"], mounted.worker()
    # A keeper that stands still cannot answer for its worker: doctor asks no mount, and does not wait for one.
    os.kill(keeper, signal.SIGSTOP)
    os.kill(worker, signal.SIGSTOP)
    assert mounted.finding(11)["found"] == "its worker does not answer"
    os.kill(keeper, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    (row,) = mounted.machine.json("status")["mounts"]
    assert row["state"] == "dead"
    assert b"umount --force" in mounted.machine.run("status")
    assert "umount --force" in mounted.finding(11)["hint"]


def test_metadata_that_no_mount_uses_goes(mounted: Mounted) -> None:
    mounted.mount()
    mounted.unmount()
    for path in mounted.content_path().parent.glob("*.*"):
        os.utime(path, (0, 0))
    (mounted.source / "more").write_bytes(b"more")
    mounted.machine.run("publish", "covers", mounted.source)
    mounted.mount()
    assert len(list(mounted.content_path().parent.glob("*.image"))) == 1
    # What is in use stays, however old: a worker that is replaced reads it again.
    for path in mounted.content_path().parent.glob("*.*"):
        os.utime(path, (0, 0))
    other = mounted.machine.place / "other, and a comma"
    other.mkdir()
    mounted.machine.run("mount", "covers", other, "--seq", "1")
    os.kill(mounted.worker(), signal.SIGKILL)
    mounted.drop_page_cache()
    mounted.assert_same()
    mounted.machine.run("umount", other)


def test_an_older_seq_has_its_own_bytes_on_the_same_cache(mounted: Mounted) -> None:
    (mounted.source / "text").unlink()
    (mounted.source / "text").write_bytes(b"new")
    (mounted.source / "more").write_bytes(b"more" * 9999)
    mounted.machine.run("publish", "covers", mounted.source)
    mounted.mount()
    mounted.assert_same()
    mounted.unmount()
    mounted.mount("--seq", "1")
    assert (mounted.target / "text").read_bytes() == b"compressible " * 20_000
    assert not (mounted.target / "more").exists()
