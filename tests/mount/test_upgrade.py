"""`boxlink remount`: keeper and worker are replaced in place while 64 readers read, whatever is killed meanwhile."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.boxlink_process import end_session
from tests.mount.mounted import Mounted

READERS = 64


class Readers:
    """Read files of a mount at random until the end, from the blob and not from the kernel's memory of it."""

    def __init__(self, mounted: Mounted) -> None:
        self._target = mounted.target
        self._content = {
            path.relative_to(mounted.source): path.read_bytes()
            for path in mounted.source.rglob("*")
            if path.is_file() and not path.is_symlink()
        }
        self.wrong: list[object] = []
        self.count = 0
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(seed,)) for seed in range(READERS)]

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _read(self, seed: int) -> None:
        chance, paths = random.Random(seed), list(self._content)
        while not self._is_over.is_set():
            path = chance.choice(paths)
            try:
                descriptor = os.open(self._target / path, os.O_RDONLY)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                    start = chance.randrange(max(len(self._content[path]), 1))
                    if os.pread(descriptor, 50_000, start) != self._content[path][start : start + 50_000]:
                        self.wrong.append(path)
                finally:
                    os.close(descriptor)
            except OSError as error:
                self.wrong.append((path, error))
            self.count += 1

    def read_more(self, count: int = 500) -> None:
        wanted = self.count + count
        wait(lambda: self.count >= wanted)


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def workers(mounted: Mounted) -> set[int]:
    command = ["pgrep", "-f", f"tools.mount_worker {mounted.machine.place}"]
    return {int(word) for word in subprocess.run(command, capture_output=True, check=False).stdout.split()}


def test_an_upgrade_in_place_is_not_noticed_by_readers(mounted: Mounted) -> None:
    keeper = mounted.mount("--cache-size", "8M")["keeper"]
    before = mounted.worker()
    with Readers(mounted) as readers:
        readers.read_more()
        for _ in range(2):
            mounted.drop_page_cache()
            (row,) = mounted.machine.json("remount", mounted.target)["mounts"]
            assert row["directory"] == str(mounted.target)
            mounted.drop_page_cache()
            readers.read_more()
    assert readers.wrong == []
    (row,) = mounted.machine.json("status")["mounts"]
    assert (row["keeper"], row["state"], row["restarts"]) == (keeper, "serving", 0)
    assert workers(mounted) == {row["worker"]}
    assert row["worker"] != before
    # It goes on as any other.
    os.kill(row["worker"], signal.SIGKILL)
    mounted.drop_page_cache()
    mounted.assert_same()
    (row,) = mounted.machine.json("status")["mounts"]
    assert row["restarts"] == 1
    mounted.unmount()
    assert workers(mounted) == set()


_STAGES = """
import os, sys, time
from pathlib import Path
if "tools.mount_worker" in sys.orig_argv:
    from synclib.lazy import fuse_server
    place, retire, init = Path({place!r}), fuse_server.FuseServer.retire, fuse_server.FuseServer.__init__
    def pause(stage):
        (place / stage).write_text(str(os.getpid()))
        while (place / f"hold {{stage}}").exists():
            time.sleep(0.005)
    def starting(self, *words):
        pause("starting")
        init(self, *words)
    def retiring(self, seconds):
        pause("retiring")
        retire(self, seconds)
    begin = fuse_server.FuseServer._begin
    def begun(self):
        if not (place / f"lose {{os.getpid()}}").exists():
            return begin(self)
        (place / "lost").touch()
        return False
    fuse_server.FuseServer.__init__, fuse_server.FuseServer.retire = starting, retiring
    fuse_server.FuseServer._begin = begun
"""


class Staged:
    """Has workers wait at the stages of an upgrade."""

    def __init__(self, mounted: Mounted, place: Path) -> None:
        self._place = place
        place.mkdir()
        (place / "sitecustomize.py").write_text(_STAGES.format(place=str(place)))
        mounted.machine.environment["PYTHONPATH"] = f"{place}:{os.environ.get('PYTHONPATH', '')}"

    def hold(self, stage: str) -> None:
        (self._place / stage).unlink(missing_ok=True)
        (self._place / f"hold {stage}").touch()

    def wait(self, stage: str) -> None:
        wait(lambda: bool((self._place / stage).exists() and (self._place / stage).read_text()))

    def go_on(self, stage: str) -> None:
        (self._place / f"hold {stage}").unlink()

    def lose(self, worker: int) -> None:
        """What that worker takes from now on it does not answer."""
        (self._place / f"lose {worker}").touch()

    def wait_for_loss(self) -> None:
        wait((self._place / "lost").exists)


@pytest.mark.parametrize("stage", ["starting", "retiring"])
@pytest.mark.parametrize("victim", ["old", "new", "both"])
def test_workers_that_are_killed_amid_an_upgrade_are_not_noticed(
    mounted: Mounted, tmp_path: Path, stage: str, victim: str
) -> None:
    staged = Staged(mounted, tmp_path / "hooks")
    mounted.mount()
    before = mounted.worker()
    with Readers(mounted) as readers:
        readers.read_more()
        staged.hold(stage)
        upgrade = mounted.machine.start("remount", mounted.target)
        try:
            staged.wait(stage)
            mounted.drop_page_cache()
            assert len(workers(mounted)) == 2
            for worker in workers(mounted):
                if victim == "both" or (worker == before) == (victim == "old"):
                    os.kill(worker, signal.SIGKILL)
            staged.go_on(stage)
            upgrade.communicate(timeout=90)
        finally:
            end_session(upgrade)
        mounted.drop_page_cache()
        readers.read_more()
        wait(lambda: len(workers(mounted)) == 1)
    assert readers.wrong == []
    assert before not in workers(mounted)
    mounted.drop_page_cache()
    mounted.assert_same()


@pytest.mark.parametrize("stage", ["starting", "retiring"])
def test_a_keeper_that_is_killed_amid_an_upgrade_leaves_right_bytes(
    mounted: Mounted, tmp_path: Path, stage: str
) -> None:
    staged = Staged(mounted, tmp_path / "hooks")
    keeper = mounted.mount()["keeper"]
    assert isinstance(keeper, int)
    with Readers(mounted) as readers:
        readers.read_more()
        staged.hold(stage)
        upgrade = mounted.machine.start("remount", mounted.target)
        try:
            staged.wait(stage)
            os.kill(keeper, signal.SIGKILL)
            staged.go_on(stage)
            upgrade.communicate(timeout=90)
            assert upgrade.returncode == 11
        finally:
            end_session(upgrade)
        mounted.drop_page_cache()
        readers.read_more()
    assert readers.wrong == []


def test_what_a_worker_leaves_unanswered_is_asked_for_again_when_its_keeper_is_gone(
    mounted: Mounted, tmp_path: Path
) -> None:
    staged = Staged(mounted, tmp_path / "hooks")
    keeper = mounted.mount()["keeper"]
    assert isinstance(keeper, int)
    old = mounted.worker()
    staged.hold("retiring")
    upgrade = mounted.machine.start("remount", mounted.target)
    reader = None
    try:
        staged.wait("retiring")
        staged.lose(old)
        mounted.drop_page_cache()
        reader = subprocess.Popen(["cat", mounted.target / "large"], stdout=subprocess.PIPE)
        staged.wait_for_loss()
        os.kill(keeper, signal.SIGKILL)
        staged.go_on("retiring")
        out, _ = reader.communicate(timeout=60)
        upgrade.communicate(timeout=90)
    finally:
        mounted.unmount("--force")
        end_session(upgrade)
        if reader is not None:
            reader.kill()
            reader.wait()
    assert out == (mounted.source / "large").read_bytes()


def test_a_program_that_cannot_take_over_does_not(mounted: Mounted, tmp_path: Path) -> None:
    """Its keeper does not start; its worker does not come to life."""
    mounted.mount()
    before = mounted.worker()
    spec = next((tmp_path / "state/boxlink/mount").glob("*/mount.json"))
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    with Readers(mounted) as readers:
        for python in ("/nonexistent", "/bin/false"):
            text = spec.read_text()
            keeper = mounted.machine.json("status")["mounts"][0]["keeper"]
            at = text.index('"python":"') + len('"python":"')
            spec.write_text(text[:at] + python + text[text.index('"', at) :])
            log = spec.parent / "log"
            said = log.read_text().count("cannot go on")
            os.kill(keeper, signal.SIGHUP)
            wait(lambda said=said, log=log: log.read_text().count("cannot go on") > said)  # type: ignore[misc]
            readers.read_more(100)
    assert readers.wrong == []
    assert workers(mounted) == {before}
