"""The cache of a real mount: its limit, what a person may tell it, what it tells, a disk that is full."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.mount.mounted import LARGE_BYTES, Mounted


def test_a_limit_is_kept_and_told(mounted: Mounted) -> None:
    for name in ("second", "third"):
        (mounted.source / name).write_bytes(os.urandom(4_000_000))
    mounted.machine.run("publish", "covers", mounted.source)
    for size in ("1M", "x", "900T"):
        assert mounted.machine.json("mount", "covers", mounted.target, "--cache-size", size, code=2)["error"]["hint"]
    mounted.mount("--cache-size", "8M")
    for _ in range(3):
        mounted.assert_same()
        mounted.drop_page_cache()
        assert os.stat(mounted.content_path()).st_blocks * 512 <= 8 << 20
    (row,) = mounted.machine.json("status")["mounts"]
    assert row["cache_bytes"] <= row["cache_bytes_max"] == 8 << 20
    assert row["evicted_bytes"] > 1 << 20
    assert row["errors"] == 0


def test_a_person_may_evict_pin_and_set_a_rate(mounted: Mounted) -> None:
    machine, target = mounted.machine, mounted.target
    mounted.mount()
    mounted.assert_same()
    assert machine.json("cache", "pin", target, "large", "03")["pinned"] == ["03", "large"]
    done = machine.json("cache", "evict", target, "--to", "6M")
    assert LARGE_BYTES < done["cache_bytes"] <= 6 << 20
    done = machine.json("cache", "evict", target)
    pinned = LARGE_BYTES + sum(path.stat().st_size for path in (mounted.source / "03").iterdir())
    assert pinned <= done["cache_bytes"] < pinned + 41 * 4096
    # What is pinned is here without the store, what is not has gone.
    mounted.drop_page_cache()
    shutil.move(machine.place / "store/data/covers/pack", machine.place / "away")
    assert (target / "large").read_bytes() == (mounted.source / "large").read_bytes()
    with pytest.raises(OSError, match="Input/output error"):
        (target / "text").read_bytes()
    shutil.move(machine.place / "away", machine.place / "store/data/covers/pack")
    assert machine.json("cache", "rate", target, "3M")["rate"] == 3 << 20
    (row,) = machine.json("status")["mounts"]
    assert (row["rate"], row["pinned"]) == (3 << 20, ["03", "large"])
    assert machine.json("cache", "rate", target, "0")["rate"] is None
    assert machine.json("cache", "unpin", target, "03", "large")["pinned"] == []
    assert machine.json("cache", "unpin", target, "03", code=2)["error"]["message"] == "it is not pinned"
    assert machine.json("cache", "pin", target, "nothing", code=10)["error"]["kind"] == "missing"
    assert machine.json("cache", "evict", target)["cache_bytes"] == 0
    mounted.assert_same()


def test_a_node_verifies_its_cache_and_mends_it(mounted: Mounted) -> None:
    mounted.mount()
    mounted.assert_same()
    mounted.unmount()
    (row,) = mounted.machine.json("verify", "--node")["caches"]
    assert (row["dataset"], row["damaged"]) == ("covers", 0)
    assert row["bytes"] > LARGE_BYTES
    with open(mounted.content_path(), "r+b") as file:
        file.seek(os.fstat(file.fileno()).st_size // 2)
        file.write(b"damage")
    (row,) = mounted.machine.json("verify", "--node", code=20)["caches"]
    assert row["damaged"] == 1
    (row,) = mounted.machine.json("verify", "covers", "--node")["caches"]
    assert row["damaged"] == 0
    mounted.mount()
    mounted.assert_same()


def test_status_answers_while_every_read_hangs(tmp_path: Path) -> None:
    """The store accepts connections and never answers."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        mounted = Mounted(tmp_path)
        mounted.mount()
        mounted.unmount()
        (tmp_path / "hooks").mkdir()
        (tmp_path / "hooks/sitecustomize.py").write_text(_HANGS.format(port=silent.getsockname()[1]))
        mounted.machine.environment["PYTHONPATH"] = f"{tmp_path / 'hooks'}:{os.environ.get('PYTHONPATH', '')}"
        mounted.mount()
        readers = [
            subprocess.Popen(["cat", mounted.target / name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for name in ("large", "text", "00/001.jpg")
        ]
        try:
            deadline = time.monotonic() + 30
            while (row := mounted.machine.json("status")["mounts"][0])["faults"] < 3:
                assert time.monotonic() < deadline
            assert (row["state"], row["fetched_bytes"]) == ("serving", 0)
            assert mounted.machine.json("cache", "rate", mounted.target, "5")["rate"] == 5
            # Who connects and says nothing hinders nobody.
            with contextlib.ExitStack() as stack:
                for _ in range(4):
                    stack.enter_context(_connected(mounted))
                assert mounted.machine.json("status")["mounts"][0]["state"] == "serving"
            assert all(reader.poll() is None for reader in readers)
        finally:
            mounted.unmount("--force")
            for reader in readers:
                reader.wait(30)


_HANGS = """
import socket, sys
if "tools.mount_worker" in sys.orig_argv:
    from synclib.store.file import FileStore
    def hang(self, key, ranges):
        with socket.create_connection(("127.0.0.1", {port})) as store:
            store.sendall(b"GET " + key.encode())
            store.recv(1)
    FileStore.get_ranges = hang
"""


def _connected(mounted: Mounted) -> socket.socket:
    place = next((mounted.machine.place / "state/boxlink/mount").iterdir())
    descriptor = os.open(place, os.O_RDONLY)
    found = socket.socket(socket.AF_UNIX)
    found.connect(f"/proc/self/fd/{descriptor}/control")
    os.close(descriptor)
    return found


def test_metrics_of_all_mounts_are_one_scrape(mounted: Mounted) -> None:
    other = mounted.machine.place / "other"
    other.mkdir()
    mounted.mount("--no-hydrate")
    mounted.machine.run("mount", "covers", other, "--no-hydrate")
    mounted.assert_same()
    text = mounted.machine.run("status", "--metrics").decode()
    mounted.machine.run("umount", other)
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    for target in (mounted.target, other):
        assert samples[f'boxlink_mount_up{{dataset="covers",directory="{target}"}}'] == "1.0"
    assert float(samples[f'boxlink_mount_faults_total{{dataset="covers",directory="{mounted.target}"}}']) > 0
    assert samples[f'boxlink_mount_faults_total{{dataset="covers",directory="{other}"}}'] == "0.0"


def test_a_disk_that_is_full_is_no_error_of_a_reader(tmp_path: Path) -> None:
    """The cache is on a small file system of its own, first with little room, then with none."""
    place, device = tmp_path / "cache", tmp_path / "device"
    place.mkdir()
    with open(device, "wb") as file:
        file.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", device], check=True)
    subprocess.run(["mount", "-o", "loop", device, place], check=True)
    mounted = Mounted(tmp_path)
    try:
        mounted.mount()
        fill(place / "first", leave=3 << 20)
        mounted.assert_same()
        mounted.drop_page_cache()
        mounted.assert_same()
        fill(place / "rest", leave=0)
        os.kill(mounted.worker(), signal.SIGKILL)
        mounted.drop_page_cache()
        mounted.assert_same()
        (row,) = mounted.machine.json("status")["mounts"]
        assert (row["errors"], row["damaged_chunks"], row["restarts"]) == (0, 0, 1)
        assert row["unkept_chunks"] > 0
        for name in ("first", "rest"):
            (place / name).unlink()
        mounted.drop_page_cache()
        mounted.assert_same()
        assert mounted.machine.json("verify", "--node")["caches"][0]["damaged"] == 0
    finally:
        with contextlib.suppress(AssertionError):
            mounted.unmount("--force")
        subprocess.run(["umount", "-l", place], check=False)


def fill(path: Path, leave: int) -> None:
    """Write until no more than that is free."""
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while os.statvfs(path).f_bfree * os.statvfs(path).f_bsize > leave:
            file.write(bytes(1 << 16))
            os.fsync(file.fileno())
