"""`boxlink mount` as a FUSE tree: by root, by one who is not, and by the daemon below an overlay."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.boxlink_process import Machine
from tests.mount.mounted import Mounted, make_tree
from tests.mount.test_lazy_sync import Site
from tools.lazy_probe import why_not_tree

NOBODY = 65534


@pytest.fixture(autouse=True)
def _can_mount(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In place of what the directory's other tests need."""
    reason = why_not_tree(tmp_path_factory.mktemp("probe"), with_overlay=True)
    if reason:
        pytest.skip(f"real mounts: {reason}")


class TreeMounted(Mounted):
    def mount(self, *words: str) -> dict[str, object]:
        return super().mount("--mode", "fuse", *words)

    def drop_page_cache(self) -> None:
        """And what the kernel knows of names."""
        Path("/proc/sys/vm/drop_caches").write_text("3")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[TreeMounted]:
    found = TreeMounted(tmp_path)
    try:
        yield found
    finally:
        with contextlib.suppress(AssertionError):
            found.unmount("--force")


def test_a_tree_is_mounted_said_and_unmounted(mounted: TreeMounted) -> None:
    done = mounted.mount()
    assert (done["mode"], done["why"], done["served"], done["left_out"]) == (
        "fuse",
        "asked for",
        "daemon",
        {"xattrs": None},
    )
    mounted.assert_same()
    for path in ("large", "text", "00/000.jpg"):
        ours, theirs = os.stat(mounted.target / path), os.stat(mounted.source / path)
        assert (ours.st_mode, ours.st_mtime_ns) == (theirs.st_mode, theirs.st_mtime_ns)
    (row,) = mounted.machine.json("status")["mounts"]
    assert (row["mode"], row["why"], row["state"], row["errors"]) == ("fuse", "asked for", "serving", 0)
    assert row["faults"] > 0
    assert b"a FUSE tree (asked for)" in mounted.machine.run("status")
    with (mounted.target / "text").open("rb"):
        assert mounted.machine.json("umount", mounted.target, code=13)["error"]["kind"] == "conflict"
    mounted.unmount()
    assert list(mounted.target.iterdir()) == []
    assert mounted.worker() == 0
    assert mounted.machine.json("status")["mounts"] == []


def test_what_was_read_needs_no_store_after_a_worker_died(mounted: TreeMounted) -> None:
    mounted.mount()
    mounted.assert_same()
    shutil.move(mounted.machine.place / "store/data/covers", mounted.machine.place / "away")
    former = mounted.worker()
    os.kill(former, signal.SIGKILL)
    mounted.drop_page_cache()
    mounted.assert_same()
    assert mounted.worker() not in (0, former)


def test_workers_are_killed_under_readers_who_do_not_notice(mounted: TreeMounted) -> None:
    mounted.mount()
    digests = {
        path.relative_to(mounted.source): hashlib.sha256(path.read_bytes()).digest()
        for path in mounted.source.rglob("*")
        if path.is_file()
    }
    failures: list[object] = []
    is_over = threading.Event()

    def read(seed: int) -> None:
        order, chance = list(digests), random.Random(seed)
        while not is_over.is_set():
            for path in chance.sample(order, 30):
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
    killed = 0
    deadline = time.monotonic() + 60
    while killed < 3 and time.monotonic() < deadline:
        worker = mounted.worker()
        if worker:
            mounted.drop_page_cache()
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
            killed += 1
        while mounted.worker() in (0, worker) and time.monotonic() < deadline:
            time.sleep(0.02)
    is_over.set()
    for reader in readers:
        reader.join(60)
    assert killed == 3
    assert not failures


def test_a_tree_is_served_by_another_boxlink_from_now_on(mounted: TreeMounted) -> None:
    mounted.mount()
    with (mounted.target / "large").open("rb") as file:
        former = mounted.worker()
        (row,) = mounted.machine.json("remount", mounted.target)["mounts"]
        assert "error" not in row
        assert mounted.worker() not in (0, former)
        mounted.drop_page_cache()
        assert file.read() == (mounted.source / "large").read_bytes()
    mounted.assert_same()


def test_open_files_are_served_after_a_lazy_unmount(mounted: TreeMounted) -> None:
    mounted.mount()
    with (mounted.target / "large").open("rb") as file:
        subprocess.run(["umount", "-l", mounted.target], check=True)
        assert file.read() == (mounted.source / "large").read_bytes()
    deadline = time.monotonic() + 30
    while list((mounted.machine.place / "state/boxlink/mount").iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert mounted.worker() == 0


def is_read(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def test_a_mount_that_nobody_serves_is_ended_or_replaced(mounted: TreeMounted) -> None:
    mounted.kill(mounted.mount())
    deadline = time.monotonic() + 30
    while is_read(mounted.target / "large"):
        assert time.monotonic() < deadline
    mounted.unmount("--force")
    assert list(mounted.target.iterdir()) == []
    mounted.kill(mounted.mount())
    mounted.mount()
    mounted.assert_same()
    mounted.unmount()
    assert list(mounted.target.iterdir()) == []
    assert mounted.machine.json("status")["mounts"] == []


def test_the_daemon_says_why_it_is_a_tree(tmp_path: Path) -> None:
    site = Site(tmp_path)
    try:
        (site.covers / "synch.active").write_text("lazy")
        site.start("--mode", "fuse")
        site.wait(lambda: site.down()["seq"] == 1)
        assert (site.down()["mode"], site.down()["reason"]) == ("lazy", "mounted as a FUSE tree: asked for")
        site.assert_same()
        with (site.covers / "text").open("rb") as old:
            (site.source / "text").unlink()
            (site.source / "text").write_bytes(b"the second seq")
            site.machine.run("publish", "covers", site.source)
            site.wait(lambda: site.down()["seq"] == 2)
            site.assert_same()
            assert old.read() == b"compressible " * 20_000
        site.wait(lambda: len(site.keepers()) == 1)
        assert site.down()["reason"] == "mounted as a FUSE tree: asked for"
    finally:
        site.close()


class NobodysMachine(Machine):
    """Its processes are those of one who has no rights."""

    def __init__(self, place: Path, python: str) -> None:
        super().__init__(place)
        self._python = python
        self.environment["PYTHONPATH"] = import_path()

    def start(self, *words: object, **options: Any) -> subprocess.Popen[bytes]:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(
            [self._python, "-c", "from tools.cli import main; main()", *map(str, words)],
            env=self.environment,
            cwd=self.place,
            start_new_session=True,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            **options,
        )


def import_path() -> str:
    packages = [path for path in sys.path if path.endswith("site-packages")]
    return os.pathsep.join([os.fspath(Path(__file__).parents[2]), *packages])


def nobodys_python(place: Path) -> str:
    """An interpreter that everybody may execute, and that has what boxlink imports; skips where there is none."""
    others = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for path in (sys.executable, shutil.which(others, path="/usr/local/bin:/usr/bin")):
        with contextlib.suppress(OSError):
            if path is not None:
                words = [path, "-c", "import click, msgspec, tools.cli, tools.mount_worker"]
                environment = {"PATH": os.environ["PATH"], "HOME": os.fspath(place), "PYTHONPATH": import_path()}
                done = subprocess.run(
                    words,
                    user=NOBODY,
                    group=NOBODY,
                    extra_groups=[],
                    cwd="/",
                    env=environment,
                    check=False,
                    capture_output=True,
                    timeout=60,
                )
                if done.returncode == 0:
                    return path
    pytest.skip("no interpreter here may be executed by others, or reads what boxlink imports")


def test_one_who_is_not_root_mounts_a_tree(tmp_path: Path) -> None:
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed")
    if os.stat("/dev/fuse").st_mode & 0o006 != 0o006:
        pytest.skip("/dev/fuse is root's alone here")
    for path in (tmp_path, *tmp_path.parents[:3]):
        os.chmod(path, stat.S_IMODE(path.stat().st_mode) | 0o055)
    place = tmp_path / "home"
    source, target = place / "source", place / "mount"
    make_tree(source)
    target.mkdir()
    for directory, below, files in os.walk(place):
        for path in (directory, *(os.path.join(directory, name) for name in (*below, *files))):
            os.lchown(path, NOBODY, NOBODY)
    machine = NobodysMachine(place, nobodys_python(place))
    machine.run("init")
    machine.run("publish", "covers", source)
    found = {row["what"]: row for row in machine.json("doctor")["findings"]}
    assert (found["lazy"]["mode"], found["lazy"]["why"]) == ("fuse", "not root")
    done = machine.json("mount", "covers", target)
    try:
        assert (done["mode"], done["why"]) == ("fuse", "not root")
        compared = subprocess.run(
            ["diff", "-r", source, target], user=NOBODY, group=NOBODY, capture_output=True, check=False, timeout=120
        )
        assert compared.returncode == 0, compared.stdout + compared.stderr
        (row,) = machine.json("status")["mounts"]
        assert (row["mode"], row["why"], row["state"], row["errors"]) == ("fuse", "not root", "serving", 0)
    finally:
        machine.run("umount", target)
    assert os.fsencode(target) not in Path("/proc/self/mountinfo").read_bytes()
    assert machine.json("status")["mounts"] == []
