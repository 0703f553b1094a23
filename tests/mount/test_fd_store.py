"""The connection of a mount outlives keeper and worker: the service manager keeps it, and the next daemon goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from synclib.disk.mounts import MNT_DETACH, UMOUNT_NOFOLLOW, fuse_connection, mount, unmount
from tests.e2e.boxlink_process import BOXLINK
from tests.mount.service_manager import ServiceManager
from tests.mount.test_lazy_sync import Site

NAME = "boxlink-mount-"


class Kept:
    """A node whose sync is a service."""

    def __init__(self, place: Path) -> None:
        self.site = Site(place)
        self.manager = ServiceManager(place)
        self.log = place / "daemon.log"
        self._control = place / "fusectl"
        self._control.mkdir()
        mount(b"none", os.fsencode(self._control), b"fusectl", 0, b"")
        (self.site.covers / "synch.active").write_text("lazy")

    def start(self, *words: str) -> None:
        with self.log.open("ab") as log:
            command = ("sync", "--data", self.site.data, "--poll", "0.2", "--no-hydrate", *words)
            self.site.daemon = self.manager.start(self.site.machine, *command, stdout=log, stderr=log)

    def start_mounted(self) -> None:
        self.start()
        self.site.wait(lambda: self.site.down()["seq"] == 1)

    def mounts(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = self.site.machine.json("status")["mounts"]
        return found

    def workers(self) -> list[int]:
        found = subprocess.run(
            ["pgrep", "-f", f"tools.mount_worker {self.site.machine.place}"], capture_output=True, check=False
        )
        return [int(word) for word in found.stdout.split()]

    def kill_all(self) -> None:
        """Daemon, keeper and worker, the worker last: nobody shall get to start another."""
        self.site.stop(signal.SIGKILL)
        for pid in (*self.site.keepers(), *self.workers()):
            os.kill(pid, signal.SIGKILL)
        self.site.wait(lambda: not self.site.keepers() and not self.workers())

    def waiting(self) -> int:
        """How many requests of the one mount nobody has answered (fs/fuse/control.c)."""
        (place,) = (self.site.machine.place / "state/boxlink/mount").iterdir()
        number = fuse_connection(os.fsencode(place / "blob"))
        return int((self._control / str(number) / "waiting").read_text())

    def close(self) -> None:
        unmount(os.fsencode(self._control), MNT_DETACH | UMOUNT_NOFOLLOW)
        self.site.close()
        self.manager.close()


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    found = Kept(tmp_path)
    try:
        yield found
    finally:
        found.close()


def drop_page_cache() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("1")


class Reader:
    """Reads a file in a thread."""

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        self.data: bytes | OSError | None = None
        self._path, self._descriptor = path, descriptor
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            if self._descriptor is None:
                self.data = self._path.read_bytes()
            else:
                self.data = os.pread(self._descriptor, 1 << 26, 0)
        except OSError as error:
            self.data = error

    def wait(self) -> bytes | OSError | None:
        self._thread.join(60)
        return self.data


def test_a_reader_that_waits_while_all_are_killed_gets_its_bytes(kept: Kept) -> None:
    kept.start_mounted()
    (name,) = kept.manager.names()
    (before,) = kept.mounts()
    assert name == NAME + next((kept.site.machine.place / "state/boxlink/mount").iterdir()).name
    with open(kept.site.covers / "text", "rb") as open_before:
        kept.kill_all()
        readers = [Reader(kept.site.covers / path) for path in ("large", "00/000.jpg")]
        readers.append(Reader(kept.site.covers / "text", open_before.fileno()))
        kept.site.wait(lambda: kept.waiting() >= len(readers))
        assert all(reader.data is None for reader in readers)
        kept.start()
        found = [reader.wait() for reader in readers]
    source = kept.site.source
    assert found == [(source / path).read_bytes() for path in ("large", "00/000.jpg", "text")]
    (after,) = kept.mounts()
    assert (after["directory"], after["state"]) == (before["directory"], "serving"), "it is the same mount"
    assert after["keeper"] != before["keeper"]
    assert "went on with a mount" in kept.log.read_text()
    drop_page_cache()
    kept.site.assert_same()

    # And a second time, and then it follows as ever.
    kept.kill_all()
    reader = Reader(source.parent / "data/covers/01/001.jpg")
    kept.start()
    assert reader.wait() == (source / "01/001.jpg").read_bytes()
    (source / "text").write_bytes(b"the second seq")
    kept.site.machine.run("publish", "covers", source)
    kept.site.wait(lambda: kept.site.down()["seq"] == 2)
    kept.site.assert_same()
    kept.site.wait(lambda: name not in kept.manager.names())
    assert len(kept.manager.names()) == 1, "that of the first seq is no longer kept"


@pytest.mark.parametrize("state", ["runs", "stands still"])
def test_a_worker_that_outlives_its_keeper_is_replaced(kept: Kept, state: str) -> None:
    """It would go on with what it was told once, and keep its volume open."""
    kept.start_mounted()
    for _ in range(2):
        (keeper,), (worker,) = kept.site.keepers(), kept.workers()
        kept.site.stop(signal.SIGKILL)
        os.kill(keeper, signal.SIGKILL)
        if state == "stands still":
            os.kill(worker, signal.SIGSTOP)
        drop_page_cache()
        readers = [Reader(kept.site.covers / path) for path in ("large", "00/000.jpg")]
        kept.start()
        kept.site.wait(lambda worker=worker: worker not in kept.workers())
        assert [reader.wait() for reader in readers] == [
            (kept.site.source / path).read_bytes() for path in ("large", "00/000.jpg")
        ]
        assert len(kept.workers()) == 1
        assert kept.site.keepers() != [keeper]
        drop_page_cache()
        kept.site.assert_same()
        if state == "stands still":
            break  # it has taken half a minute
    assert "refused" not in kept.log.read_text()


def test_a_daemon_alone_that_begins_anew_leaves_keepers_as_they_are(kept: Kept) -> None:
    kept.start_mounted()
    keepers = kept.site.keepers()
    kept.site.stop(signal.SIGKILL)
    kept.start()
    kept.site.wait(lambda: kept.log.read_text().count("boxlink: started") == 2)
    assert kept.site.keepers() == keepers
    kept.site.assert_same()
    assert "refused" not in kept.log.read_text()
    assert len(kept.manager.names()) == 1


def test_a_keeper_that_is_killed_under_a_daemon_that_lives_is_not_waited_for(kept: Kept) -> None:
    """Nobody can go on with it then, so readers get an error at once, and the dataset is mounted anew."""
    kept.start_mounted()
    (name,) = kept.manager.names()
    with open(kept.site.covers / "large", "rb") as old:
        for pid in (*kept.site.keepers(), *kept.workers()):
            os.kill(pid, signal.SIGKILL)
        reader = Reader(kept.site.covers / "large", old.fileno())
        assert isinstance(reader.wait(), OSError)
    kept.site.wait(lambda: "mounted again" in kept.log.read_text())
    kept.site.assert_same()
    assert name not in kept.manager.names()
    (row,) = kept.mounts()
    assert row["state"] == "serving"


def test_what_ends_on_purpose_is_taken_out(kept: Kept) -> None:
    kept.start_mounted()
    (name,) = kept.manager.names()
    (keeper,) = kept.site.keepers()
    kept.site.stop()
    os.kill(keeper, signal.SIGTERM)
    kept.site.wait(lambda: f"FDSTOREREMOVE=1\nFDNAME={name}" in kept.manager.heard)
    assert kept.manager.names() == []


def test_stale_and_foreign_descriptors_are_refused_and_said(kept: Kept) -> None:
    kept.start_mounted()
    (name,) = kept.manager.names()
    kept.kill_all()
    other = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)  # never mounted
    file = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    with kept.manager._turn:
        ours = kept.manager.stored.pop()[1]
    for called, descriptor in (
        ("other-service", file),
        (NAME + "../../etc", os.dup(file)),
        (NAME + "0" * 32, os.dup(file)),
        (name, os.dup(file)),
        (name, other),
    ):
        kept.manager.put(called, descriptor)
    reader = Reader(kept.site.covers / "large")
    kept.start("--once")
    assert kept.site.daemon is not None
    kept.site.daemon.wait(60)
    kept.site.daemon = None
    said = kept.log.read_text()
    for why in ("no mount's descriptor is called so", "that mount is not known here", "it is no /dev/fuse"):
        assert why in said
    assert said.count("a kept descriptor is refused") == 5
    assert not {name, "other-service"} & set(kept.manager.names()), "none of them is kept any longer"
    os.close(ours)  # nobody has the first connection open now
    assert isinstance(reader.wait(), OSError)
    kept.site.assert_same()


def test_what_is_said_to_another_process_is_not_listened_to(kept: Kept) -> None:
    kept.start_mounted()
    kept.site.stop()
    kept.site.machine.environment |= {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "other"}
    done = subprocess.run(
        [BOXLINK, "sync", "--data", str(kept.site.data), "--once"],
        env=kept.site.machine.environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, "refused" in done.stderr) == (0, False)


@pytest.mark.parametrize("mode", ["erofs", "fuse"])
def test_a_mount_in_the_foreground_is_a_service_too(kept: Kept, tmp_path: Path, mode: str) -> None:
    target = tmp_path / "mount"
    target.mkdir()
    words = ("mount", "covers", target, "--foreground", "--no-hydrate", "--mode", mode)

    def start() -> None:
        with kept.log.open("ab") as log:
            kept.site.daemon = kept.manager.start(kept.site.machine, *words, stdout=log, stderr=log)

    start()
    kept.site.wait(lambda: "READY=1" in kept.manager.heard)
    (name,) = kept.manager.names()
    source = kept.site.source
    with open(target / "large", "rb") as held:
        kept.kill_all()
        reader = Reader(target / "large", held.fileno())
        start()
        assert reader.wait() == (source / "large").read_bytes()
    assert "is still mounted on" in kept.log.read_text()
    (row,) = kept.mounts()
    assert (row["directory"], row["mode"], row["state"]) == (str(target), mode, "serving")
    done = subprocess.run(["diff", "-r", source, target], capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout
    kept.site.machine.run("umount", target)
    assert kept.site.daemon is not None
    assert kept.site.daemon.wait(60) == 0
    kept.site.daemon = None
    kept.site.wait(lambda: name not in kept.manager.names())
