"""Mounts whose bytes are all here: straight on the cache's file, without a process; and the way there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from synclib.disk.hydrated import was_native
from tests.mount.mounted import LARGE_BYTES, Mounted
from tests.mount.test_lazy_sync import Site


class Hydrating(Mounted):
    """Mounts are hydrated, as they are where nobody says otherwise."""

    def mount(self, *words: str) -> dict[str, object]:
        return self.machine.json("mount", "covers", self.target, *words)

    def row(self) -> dict[str, Any]:
        """The mount's part of `boxlink status`."""
        (row,) = (row for row in self.machine.json("status")["mounts"] if row["directory"] == str(self.target))
        assert isinstance(row, dict)
        return row

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, self.row()
            time.sleep(0.05)

    def wait_for_whole(self) -> None:
        self.wait_until(lambda: self.row().get("hydration") == "done")

    def hydrate(self) -> None:
        """All is here, and nothing is mounted."""
        self.mount()
        self.wait_for_whole()
        self.unmount()

    def take_store_away(self) -> None:
        shutil.move(self.machine.place / "store/data/covers/pack", self.machine.place / "away")

    def processes(self) -> bytes:
        return subprocess.run(
            ["pgrep", "-af", f"tools.mount_.*{self.machine.place}"], capture_output=True, check=False
        ).stdout


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Hydrating]:
    found = Hydrating(tmp_path)
    try:
        yield found
    finally:
        with contextlib.suppress(AssertionError):
            found.unmount("--force")


def test_all_comes_by_itself_and_then_nothing_runs(mounted: Hydrating) -> None:
    assert mounted.mount()["served"] == "daemon"
    assert not was_native(mounted.content_path().parent)
    mounted.wait_for_whole()
    row = mounted.row()
    assert (row["hydrated_percent"], row["hydration_failed"], row["errors"]) == (100.0, 0, 0)
    assert row["hydrated_bytes"] == row["hydrated_total_bytes"] > LARGE_BYTES
    # Six MB lie in one pack: a handful of requests beside those for the head and the pin.
    assert 0 < row["hydration_requests"] < 10
    assert row["usd"] > 0
    assert b": whole;" in mounted.machine.run("status")
    mounted.unmount()
    mounted.take_store_away()
    done = mounted.mount()
    assert (done["served"], done["keeper"]) == ("native", 0)
    assert was_native(mounted.content_path().parent)
    assert mounted.processes() == b""
    mounted.drop_page_cache()
    mounted.assert_same()
    row = mounted.row()
    assert (row["served"], row["state"]) == ("native", "serving")
    assert b"nothing runs" in mounted.machine.run("status")
    assert mounted.machine.json("mount", "covers", mounted.target)["is_new"] is False
    with open(mounted.target / "large", "rb"):
        mounted.unmount(code=13)
    mounted.unmount()
    assert list(mounted.target.iterdir()) == []
    assert mounted.machine.json("status")["mounts"] == []
    assert not list((mounted.machine.place / "state/boxlink/mount").iterdir())


@pytest.mark.parametrize("by", ["umount", "Ctrl-C"])
def test_in_the_foreground_it_stays_though_nothing_runs(mounted: Hydrating, by: str) -> None:
    mounted.hydrate()
    process = mounted.machine.start("mount", "covers", mounted.target, "--foreground", "--json", stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert b'"native"' in process.stdout.readline()
    assert process.poll() is None
    mounted.assert_same()
    if by == "umount":
        mounted.unmount()
    else:
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert list(mounted.target.iterdir()) == []
    assert mounted.machine.json("status")["mounts"] == []
    if by == "umount":
        assert process.returncode == 0


def test_a_cache_that_was_touched_is_looked_at_again_before_anybody_reads_it(mounted: Hydrating) -> None:
    mounted.hydrate()
    with open(mounted.content_path(), "r+b") as file:
        for at in range(4096 + 7, os.fstat(file.fileno()).st_size, 9 * 4096):
            file.seek(at)
            file.write(b"damage")
    mounted.drop_page_cache()
    assert mounted.mount()["served"] == "daemon"
    mounted.assert_same()
    mounted.wait_for_whole()
    mounted.unmount()
    assert mounted.mount()["served"] == "native"
    mounted.assert_same()


def test_a_cache_that_was_replaced_by_holes_is_not_believed(mounted: Hydrating) -> None:
    mounted.hydrate()
    blob = mounted.content_path()
    size = blob.stat().st_size
    blob.unlink()
    with open(blob, "wb") as file:
        file.truncate(size)
    assert mounted.mount()["served"] == "daemon"
    mounted.assert_same()


def test_another_seq_on_the_same_cache_leaves_the_first_readable(mounted: Hydrating) -> None:
    """The file grows under a mount that stands on it; its image says that it is smaller."""
    mounted.hydrate()
    mounted.mount()
    assert mounted.row()["served"] == "native"
    digest = hashlib.sha256((mounted.source / "large").read_bytes()).digest()
    other = mounted.machine.place / "other"
    other.mkdir()
    (mounted.source / "more").write_bytes(os.urandom(3_000_000))
    mounted.machine.run("publish", "covers", mounted.source)
    assert mounted.machine.json("mount", "covers", other)["served"] == "daemon"
    try:
        row: Callable[[], Any] = lambda: {r["directory"]: r for r in mounted.machine.json("status")["mounts"]}  # noqa: E731
        mounted.wait_until(lambda: row()[str(other)]["hydration"] == "done")
        assert (other / "more").read_bytes() == (mounted.source / "more").read_bytes()
        mounted.drop_page_cache()
        assert hashlib.sha256((mounted.target / "large").read_bytes()).digest() == digest
        assert not (mounted.target / "more").exists()
    finally:
        mounted.machine.run("umount", other)
    # The newer seq is whole and nobody wrote since; the older one has to be looked at again.
    assert mounted.machine.json("mount", "covers", other)["served"] == "native"
    assert (other / "more").read_bytes() == (mounted.source / "more").read_bytes()
    mounted.machine.run("umount", other)
    mounted.unmount()
    mounted.mount("--seq", "1")
    assert hashlib.sha256((mounted.target / "large").read_bytes()).digest() == digest


def test_a_cache_that_no_daemon_serves_says_so_when_it_is_to_be_steered(mounted: Hydrating) -> None:
    mounted.hydrate()
    mounted.mount()
    assert mounted.row()["served"] == "native"
    for words in (("evict",), ("pin", "large"), ("unpin", "large"), ("rate", "1M")):
        error = mounted.machine.json("cache", words[0], mounted.target, *words[1:], code=2)["error"]
        assert "every byte is here" in error["message"], words
        assert "--cache-size" in error["hint"]
    mounted.assert_same()


def test_a_mount_on_a_grown_file_reads_right(mounted: Hydrating) -> None:
    """An image whose device says fewer blocks than the file has by now."""
    mounted.hydrate()
    (mounted.source / "more").write_bytes(os.urandom(1_000_000))
    mounted.machine.run("publish", "covers", mounted.source)
    mounted.hydrate()
    mounted.mount("--seq", "1")
    mounted.wait_for_whole()
    mounted.unmount()
    assert mounted.mount("--seq", "1")["served"] == "native"
    assert (mounted.target / "large").read_bytes() == (mounted.source / "large").read_bytes()
    assert not (mounted.target / "more").exists()


def test_a_worker_that_is_killed_is_followed_by_one_that_fetches_only_what_lacks(mounted: Hydrating) -> None:
    mounted.mount("--rate", "2M")
    mounted.wait_until(lambda: mounted.row().get("hydration_bytes", 0) > 1_000_000)
    before = mounted.row()
    os.kill(mounted.worker(), signal.SIGKILL)
    mounted.wait_until(lambda: mounted.row().get("hydration") == "done")
    after = mounted.row()
    held = after["hydrated_total_bytes"]
    assert after["hydration_bytes"] <= held - before["hydration_bytes"] + 200_000
    mounted.assert_same()
    mounted.unmount()
    assert mounted.mount()["served"] == "native"
    mounted.assert_same()


def test_a_store_that_is_away_is_waited_for_and_then_all_comes(mounted: Hydrating) -> None:
    """Packs that are not to be found are an answer, not an outage: what is asked for is asked for again later."""
    mounted.mount("--rate", "1M")
    mounted.wait_until(lambda: mounted.row().get("hydration_bytes", 0) > 0)
    mounted.take_store_away()
    mounted.wait_until(lambda: mounted.row().get("hydration_failed", 0) > 0)
    assert not list(mounted.content_path().parent.glob("*.hydrated"))
    mounted.unmount()
    assert mounted.mount()["served"] == "daemon"


def test_only_what_is_asked_for_comes_where_hydration_is_off(mounted: Hydrating) -> None:
    mounted.mount("--no-hydrate")
    assert mounted.row()["hydration"] == "off"
    mounted.assert_same()
    assert mounted.row()["hydration"] == "off"
    mounted.unmount()
    assert mounted.mount("--no-hydrate")["served"] == "daemon"


def test_a_cache_that_may_be_evicted_is_never_mounted_natively(mounted: Hydrating) -> None:
    """All is here, and a word says so: with a limit it may go again."""
    mounted.hydrate()
    assert mounted.mount("--cache-size", "1G")["served"] == "daemon"
    mounted.wait_for_whole()
    mounted.assert_same()
    mounted.machine.run("cache", "evict", mounted.target)
    mounted.drop_page_cache()
    mounted.assert_same()
    mounted.unmount()
    # Nor does the next one believe the word: others wrote to the file.
    assert mounted.mount()["served"] == "daemon"


def test_a_start_up_is_recorded_shown_and_replayed(mounted: Hydrating) -> None:
    assert mounted.machine.json("trace", "show", "covers")["traces"] == []
    assert b"no trace yet" in mounted.machine.run("trace", "show", "covers")
    assert mounted.machine.json("trace", "stop", mounted.target, code=10)["error"]["kind"] == "missing"
    boot = [f"{folder:02}/{number:03}.jpg" for number in range(0, 40, 3) for folder in range(5)]
    mounted.mount("--no-hydrate")
    for path in boot:
        (mounted.target / path).read_bytes()
    first_faults = mounted.row()["faults"]
    mounted.machine.run("trace", "stop", mounted.target)
    mounted.wait_until(lambda: bool(mounted.machine.json("trace", "show", "covers")["traces"]))
    (mounted.target / "large").read_bytes()
    mounted.unmount()
    shown = mounted.machine.json("trace", "show", "covers")
    assert [trace["node"] for trace in shown["traces"]] == ["n1"]
    touched = [touch["path"] for touch in shown["touches"]]
    assert set(boot) <= set(touched)
    assert "large" not in touched
    assert 0 < shown["replay"]["requests"]["get"] < 10
    assert b"replay at seq 1" in mounted.machine.run("trace", "show", "covers")
    # The next seq has other content at some paths, and places have moved.
    (mounted.source / boot[0]).write_bytes(os.urandom(20_000))
    (mounted.source / "00/000 before.jpg").write_bytes(os.urandom(20_000))
    mounted.machine.run("publish", "covers", mounted.source)
    shutil.rmtree(mounted.machine.place / "cache")
    mounted.mount("--no-hydrate")
    mounted.wait_until(lambda: mounted.row()["hydration_requests"] > 0 and mounted.row()["hydration"] == "off")
    before = mounted.row()
    for path in boot:
        assert (mounted.target / path).read_bytes() == (mounted.source / path).read_bytes()
    after = mounted.row()
    # What the kernel reads ahead beside them need not be in the trace.
    assert after["faults"] - before["faults"] < first_faults / 3
    assert before["hydration_requests"] < 10


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    found = Site(tmp_path)
    found.is_hydrating = True
    try:
        yield found
    finally:
        found.close()


def test_a_node_goes_on_without_a_process_when_all_is_here_and_starts_so(site: Site) -> None:
    (site.covers / "synch.active").write_text("lazy")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    with open(site.covers / "text", "rb") as old:
        site.wait(lambda: not site.keepers() or len(list((site.data / ".boxlink/lazy/covers").glob("[0-9]*"))) == 2)
        assert old.read() == b"compressible " * 20_000
    site.wait(lambda: not site.keepers())
    site.assert_same()
    assert site.down()["mode"] == "lazy"
    # As the machine's end would; then without a store.
    site.stop(signal.SIGKILL)
    site.kill_mounts()
    shutil.move(site.machine.place / "store", site.machine.place / "away")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    assert site.keepers() == []
    site.assert_same()
    (row,) = site.machine.json("status")["mounts"]
    assert (row["served"], row["state"]) == ("native", "serving")
    shutil.move(site.machine.place / "away", site.machine.place / "store")
    (site.source / "more").write_bytes(b"more")
    site.machine.run("publish", "covers", site.source)
    site.wait(lambda: site.down()["seq"] == 2)
    site.assert_same()
    site.wait(lambda: not site.keepers())
    site.wait(lambda: len(site.machine.json("status")["mounts"]) == 1)
    site.assert_same()
