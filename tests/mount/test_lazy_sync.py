"""`boxlink sync` with lazy datasets: markers where they always are, seqs switched at once, starts without a store."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from synclib.clock import SystemClock, SystemEntropy
from synclib.engine.cache_work import Background
from synclib.engine.host import Connect, Host
from synclib.engine.lazy_place import LazyPlace
from tests.e2e.boxlink_process import Machine
from tests.mount.mounted import make_tree
from tools.mounting import KeeperMounter


class Site:
    """A publisher, and a node whose daemon follows."""

    def __init__(self, place: Path) -> None:
        self.machine = Machine(place)
        self.source, self.data = place / "source", place / "data"
        self.covers = self.data / "covers"
        self.covers.mkdir(parents=True)
        make_tree(self.source)
        self.machine.run("init")
        self.machine.run("publish", "covers", self.source)
        self.daemon: subprocess.Popen[bytes] | None = None
        self.is_hydrating = False  # so that keepers stay

    def start(self, *words: str) -> None:
        log = open(self.machine.place / "daemon.log", "ab")  # noqa: SIM115 - the daemon's
        command = [
            "sync",
            "--data",
            self.data,
            "--poll",
            "0.2",
            *words,
            *([] if self.is_hydrating else ["--no-hydrate"]),
        ]
        self.daemon = self.machine.start(*command, stdout=log, stderr=log)
        log.close()

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.daemon is not None:
            self.daemon.send_signal(number)
            self.daemon.wait(timeout=60)
            self.daemon = None

    def down(self) -> dict[str, Any]:
        try:
            found = json.loads((self.covers / "synch.down").read_text())
        except (OSError, ValueError):
            return {"seq": 0}
        assert isinstance(found, dict)
        return found

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, (self.machine.place / "daemon.log").read_text()
            time.sleep(0.02)

    def assert_same(self) -> None:
        done = subprocess.run(
            ["diff", "-r", "-x", "synch.*", self.source, self.covers], capture_output=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def keepers(self) -> list[int]:
        found = subprocess.run(
            ["pgrep", "-f", f"tools.mount_keeper {self.machine.place}"], capture_output=True, text=True, check=False
        )
        return [int(word) for word in found.stdout.split()]

    def kill_mounts(self) -> None:
        """As the machine's end would: every process and every mount is gone at once."""
        for kind in ("mount_keeper", "mount_worker"):
            subprocess.run(["pkill", "-9", "-f", f"tools.{kind} {self.machine.place}"], check=False)
        with open("/proc/self/mountinfo") as file:
            places = [line.split(" ")[4] for line in file if f" {self.machine.place}/" in line]
        for place in reversed(places):
            path = place.encode().decode("unicode_escape")  # blanks are octal there
            subprocess.run(["umount", "-l", path], check=False, capture_output=True)

    def close(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop()
        self.kill_mounts()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    found = Site(tmp_path)
    try:
        yield found
    finally:
        found.close()


def test_a_blank_in_a_path_is_no_reason_to_mount_again(site: Site) -> None:
    """The kernel tells a mount's directories in its own spelling."""
    site.data = site.machine.place / "my data"
    site.covers = site.data / "covers"
    site.covers.mkdir(parents=True)
    (site.covers / "synch.active").write_text("lazy")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    (site.source / "more").write_text("x")
    site.machine.run("publish", "covers", site.source)
    site.wait(lambda: site.down()["seq"] == 2)
    site.assert_same()
    state = site.machine.place / "state/boxlink"
    host = Host("n", SystemClock(), SystemEntropy(), state, site.machine.place / "cache/boxlink")
    place = LazyPlace(site.data, "covers", KeeperMounter(host, Connect(site.machine.store, ()), Background()))
    standing = place.standing()
    assert standing is not None
    assert place.is_served(standing)


def test_a_lazy_dataset_answers_in_its_directory_and_follows(site: Site) -> None:
    (site.covers / "synch.active").write_text("lazy")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    assert site.down()["mode"] == "lazy"
    assert (site.covers / "synch.active").read_text() == "lazy"
    site.assert_same()
    with open(site.covers / "text", "rb") as old:
        (site.source / "text").unlink()
        (site.source / "text").write_bytes(b"the second seq")
        (site.source / "more").write_bytes(b"more")
        site.machine.run("publish", "covers", site.source)
        site.wait(lambda: site.down()["seq"] == 2)
        site.assert_same()
        # The old seq's own mount is gone, and the kernel has forgotten its bytes: they are served all the same.
        site.wait(lambda: not os.path.ismount(site.data / ".boxlink/lazy/covers/1/seq"))
        for _ in range(60):
            Path("/proc/sys/vm/drop_caches").write_text("1")
            old.seek(0)
            assert old.read() == b"compressible " * 20_000
            time.sleep(0.05)  # a keeper that does not look whether it is used ends meanwhile
    # Of the old seq nothing is left when no file of it is open.
    site.wait(lambda: len(site.keepers()) == 1)
    site.wait(lambda: len(list((site.data / ".boxlink/lazy/covers").glob("[0-9]*"))) == 1)
    (site.covers / "synch.active").unlink()
    site.wait(lambda: "not followed" in site.down()["reason"])
    site.assert_same()


def test_a_switch_has_no_gap_and_no_mixture(site: Site) -> None:
    for folder in range(5):
        (site.source / f"{folder:02}/seq").write_text("1")
    site.machine.run("publish", "covers", site.source)
    (site.covers / "synch.active").write_text("lazy")
    site.start()
    site.wait(lambda: site.down()["seq"] == 2)
    wrong: list[object] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            try:
                # One directory that is open is of one seq, whatever is switched meanwhile.
                top = os.open(site.covers, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    seen = set()
                    for folder in range(5):
                        descriptor = os.open(f"{folder:02}/seq", os.O_RDONLY, dir_fd=top)
                        seen.add(os.read(descriptor, 10))
                        os.close(descriptor)
                finally:
                    os.close(top)
                if len(seen) != 1:
                    wrong.append(seen)
            except OSError as error:
                wrong.append(error)

    readers = [threading.Thread(target=look) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for number in range(3, 7):
            for folder in range(5):
                (site.source / f"{folder:02}/seq").write_text(str(number))
            site.machine.run("publish", "covers", site.source)
            site.wait(lambda number=number: site.down()["seq"] == number)  # type: ignore[misc]
    finally:
        is_over.set()
        for reader in readers:
            reader.join()
    assert wrong == []
    site.assert_same()


def test_a_node_starts_again_without_the_store(site: Site) -> None:
    (site.covers / "synch.active").touch()
    site.start("--lazy")
    site.wait(lambda: site.down()["seq"] == 1)
    site.assert_same()
    site.stop(signal.SIGKILL)
    site.kill_mounts()
    assert [path.name for path in site.covers.iterdir()] == ["synch.active"]
    shutil.move(site.machine.place / "store", site.machine.place / "away")
    site.start("--lazy")
    site.wait(lambda: site.down()["seq"] == 1)
    site.assert_same()
    shutil.move(site.machine.place / "away", site.machine.place / "store")
    (site.source / "more").write_bytes(b"more")
    site.machine.run("publish", "covers", site.source)
    site.wait(lambda: site.down()["seq"] == 2)
    site.assert_same()


def test_a_daemon_that_is_killed_leaves_the_mount_and_finds_it_again(site: Site) -> None:
    (site.covers / "synch.active").write_text("lazy")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    keepers = site.keepers()
    site.stop(signal.SIGKILL)
    site.assert_same()
    site.start()
    (site.source / "more").write_bytes(b"more")
    site.machine.run("publish", "covers", site.source)
    site.wait(lambda: site.down()["seq"] == 2)
    site.assert_same()
    site.wait(lambda: len(site.keepers()) == 1)
    assert site.keepers() != keepers


def test_a_mount_whose_processes_are_killed_comes_back(site: Site) -> None:
    (site.covers / "synch.active").write_text("lazy")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    before = site.keepers(), os.stat(site.covers).st_dev
    for kind in ("mount_keeper", "mount_worker"):
        subprocess.run(["pkill", "-9", "-f", f"tools.{kind} {site.machine.place}"], check=False)
    site.wait(lambda: os.stat(site.covers).st_dev != before[1])
    assert site.down()["seq"] == 1
    assert site.keepers() != before[0]
    site.assert_same()


def test_where_it_cannot_be_lazy_it_says_why(site: Site) -> None:
    (site.covers / "stranger").write_text("mine")
    (site.covers / "synch.active").write_text("lazy")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    assert site.down()["mode"] == "eager"
    assert "other files are here" in site.down()["reason"]
    assert (site.covers / "stranger").read_text() == "mine"


def test_what_stands_is_kept_and_it_is_said_how_to_change_that(site: Site) -> None:
    active = site.covers / "synch.active"
    active.write_text("lazy")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    for word in ("eager", "reader"):
        active.write_text(word)
        site.wait(lambda word=word: f"it stays mounted, not {word}: " in site.down()["reason"])  # type: ignore[misc]
        assert site.down()["mode"] == "lazy"
        site.assert_same()
    active.write_text("lazy")
    site.wait(lambda: site.down()["reason"] == "")
    # As it is said there.
    site.stop()
    site.machine.run("umount", site.covers)
    active.write_text("eager")
    site.start()
    site.wait(lambda: site.down().get("mode") == "eager")
    assert site.down()["reason"] == ""
    assert (site.covers / "text").read_bytes() == (site.source / "text").read_bytes()
    for word in ("reader", "lazy"):
        active.write_text(word)
        site.wait(lambda: "restored eagerly: files were restored here before: " in site.down()["reason"])
        assert site.down()["mode"] == "eager"
        active.write_text("eager")
        site.wait(lambda: site.down()["reason"] == "")
    active.unlink()
    site.wait(lambda: "not followed" in site.down()["reason"])
    for path in site.covers.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    active.write_text("lazy")
    site.wait(lambda: site.down().get("mode") == "lazy")
    site.assert_same()


def test_what_a_sync_left_that_has_ended_can_be_unmounted(site: Site) -> None:
    (site.covers / "synch.active").write_text("lazy")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    site.stop()
    site.assert_same()
    (row,) = site.machine.json("status")["mounts"]
    assert row["read_at"] == str(site.covers), "where programs read it, and every verb takes it"
    assert row["directory"].startswith(str(site.data / ".boxlink/lazy/covers"))
    assert f" on {site.covers}: ".encode() in site.machine.run("status")
    with open(site.covers / "large", "rb") as held:
        refused = site.machine.json("umount", site.covers, code=13)["error"]
        assert "--force" in refused["hint"]
        assert held.read() == (site.source / "large").read_bytes()
    assert site.machine.json("umount", site.covers)["directory"] == str(site.covers)
    assert sorted(path.name for path in site.covers.iterdir()) == ["synch.active"]
    assert site.keepers() == []
    assert site.machine.json("status")["mounts"] == []
    assert list((site.data / ".boxlink/lazy/covers").iterdir()) == []
    assert site.machine.json("umount", site.covers, code=10)["error"]["kind"] == "missing"
    # It is asked for still: the next one brings it again.
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    site.assert_same()


@pytest.mark.parametrize("killed", ["keeper and worker", "nobody"])
def test_it_can_be_unmounted_by_force(site: Site, killed: str) -> None:
    (site.covers / "synch.active").write_text("lazy")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    site.stop(signal.SIGKILL)
    with open(site.covers / "large", "rb") as held:
        if killed != "nobody":
            place = str(site.machine.place)
            subprocess.run(["pkill", "-9", "-f", f"tools.mount_(keeper|worker) {place}"], check=True)
            site.wait(lambda: not site.keepers())
        site.machine.run("umount", site.covers, "--force")
        with pytest.raises(OSError, match=r"."):
            held.read()
    assert sorted(path.name for path in site.covers.iterdir()) == ["synch.active"]
    assert site.machine.json("status")["mounts"] == []
    assert not any(f" {site.machine.place}/" in line for line in Path("/proc/self/mountinfo").read_text().splitlines())


def start_machine_again(site: Site) -> None:
    site.stop(signal.SIGKILL)
    site.kill_mounts()
    assert not os.path.ismount(site.covers)


def ask(site: Site, words: str) -> None:
    (site.covers / "synch.new").write_text(words)
    os.replace(site.covers / "synch.new", site.covers / "synch.active")


def test_what_was_asked_for_while_it_stood_holds_after_a_start_of_the_machine(site: Site) -> None:
    ask(site, "lazy")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    (site.source / "more").write_bytes(b"more")
    site.machine.run("publish", "covers", site.source)
    site.wait(lambda: site.down()["seq"] == 2)
    ask(site, "lazy seq=1")
    site.wait(lambda: site.down()["seq"] == 1)
    start_machine_again(site)
    site.start()
    site.wait(lambda: os.path.ismount(site.covers))
    assert (site.covers / "synch.active").read_text() == "lazy seq=1"
    # What is asked for while nothing stands there is newer still.
    start_machine_again(site)
    ask(site, "lazy")
    site.start()
    site.wait(lambda: os.path.ismount(site.covers) and site.down()["seq"] == 2)
    # What nobody follows any more is not followed again.
    (site.covers / "synch.active").unlink()
    site.wait(lambda: "not followed" in site.down()["reason"])
    start_machine_again(site)
    site.start()
    site.wait(lambda: os.path.ismount(site.covers))
    assert not (site.covers / "synch.active").exists()
    site.stop()
    assert not (site.covers / "synch.active").exists()


def test_an_older_seq_whose_keeper_was_killed_is_cleared_away_and_the_newer_one_goes_on(site: Site) -> None:
    (site.covers / "synch.active").write_text("lazy")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    with open(site.covers / "text", "rb"):
        (site.source / "more").write_text("x")
        site.machine.run("publish", "covers", site.source)
        site.wait(lambda: site.down()["seq"] == 2)
        site.stop()
        rows = {row["seq"]: row for row in site.machine.json("status")["mounts"]}
        os.kill(rows[1]["keeper"], signal.SIGKILL)
        site.wait(lambda: b": dead; boxlink umount --force " in site.machine.run("status"))
        (hint,) = (line for line in site.machine.run("status").decode().splitlines() if ": dead;" in line)
        words = hint.partition("; boxlink ")[2].partition(" clears")[0].split()
        site.machine.run(*words)
        assert [row["seq"] for row in site.machine.json("status")["mounts"]] == [2]
        site.assert_same()
