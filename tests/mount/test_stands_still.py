"""A worker that stands still instead of dying, and a request that ends every worker that takes it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from synclib.disk.mounts import mounted_on
from tests.mount.mounted import Mounted
from tests.mount.test_upgrade import wait

_HOOKS = """
import os, signal, sys, threading
from pathlib import Path
place = Path({place!r})
if "tools.mount_keeper" in sys.orig_argv:
    from synclib.lazy import keeper
    keeper.SILENCE_S, keeper.VAIN_S = {silence_s!r}, 3.0
if "tools.mount_worker" in sys.orig_argv:
    from synclib.lazy import fuse_server
    from synclib.lazy.blob import Blob
    fuse_server.THREADS = 2  # so that few requests hold all
    read = Blob.read
    def struck(self, *words):
        if (place / "dies").exists():
            with open(place / "died", "a") as log:
                log.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        while (place / "locks").exists():  # whatever thread asks
            threading.Event().wait()
        return read(self, *words)
    Blob.read = struck
"""


@pytest.fixture(params=["erofs", "fuse"])
def mounted(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Mounted]:
    found = Mounted(tmp_path)
    found.mode = request.param
    try:
        yield found
    finally:
        with suppress(AssertionError):
            found.unmount("--force")


def _hook(mounted: Mounted, place: Path, silence_s: float) -> Path:
    place.mkdir()
    (place / "sitecustomize.py").write_text(_HOOKS.format(place=os.fspath(place), silence_s=silence_s))
    mounted.machine.environment["PYTHONPATH"] = f"{place}:{os.environ.get('PYTHONPATH', '')}"
    return place


def _start_reading(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["cat", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("way", ["stopped", "locked"])
def test_a_worker_that_stands_still_is_replaced_and_readers_get_their_bytes(
    mounted: Mounted, tmp_path: Path, way: str
) -> None:
    place = _hook(mounted, tmp_path / "hooks", silence_s=3.0)
    mounted.mount("--mode", mounted.mode)
    worker = mounted.worker()
    if way == "stopped":
        os.kill(worker, signal.SIGSTOP)
        readers = [_start_reading(mounted.target / "large")]
    else:
        (place / "locks").touch()
        readers = [_start_reading(mounted.target / name) for name in ("large", "text")]
        # Every thread that serves takes a request that never ends, until nobody is left to take one.
        names = [f"{folder:02}/{number:03}.jpg" for folder in range(5) for number in range(40)]
        readers += [_start_reading(mounted.target / name) for name in names]
        wait(lambda: b"stands still" in _log(mounted))
        (place / "locks").unlink()
    try:
        for reader in readers:
            _, said = reader.communicate(timeout=60)
            assert reader.returncode == 0, said
        wait(lambda: mounted.machine.json("status")["mounts"][0]["state"] == "serving")
        (row,) = mounted.machine.json("status")["mounts"]
        assert row["restarts"] == 1
        assert row["worker"] != worker
        mounted.drop_page_cache()
        mounted.assert_same()
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()


def _log(mounted: Mounted) -> bytes:
    return b"".join(path.read_bytes() for path in (mounted.machine.place / "state/boxlink/mount").glob("*/log"))


def test_a_request_that_ends_every_worker_ends_the_mount_with_an_error(mounted: Mounted, tmp_path: Path) -> None:
    place = _hook(mounted, tmp_path / "hooks", silence_s=20.0)
    mounted.mount("--mode", mounted.mode)
    assert (mounted.target / "text").read_bytes() == (mounted.source / "text").read_bytes()
    (place / "dies").touch()
    reader = _start_reading(mounted.target / "large")
    try:
        out, _ = reader.communicate(timeout=90)
    finally:
        reader.kill()
    assert reader.returncode != 0
    assert out == b""
    died = len((place / "died").read_text())
    assert 2 <= died <= 12, "without a pause it would be more"
    (place / "dies").unlink()
    # All that is read there is an error, nothing is as if it were not there.
    wait(lambda: mounted.machine.json("status")["mounts"][0]["state"] == "dead")
    assert not mounted.finding(code=11)["ok"]
    mounted.drop_page_cache()
    with pytest.raises(OSError, match=r"Input/output error|not connected"):
        (mounted.target / "00/000.jpg").read_bytes()
    with suppress(OSError):
        assert os.listdir(mounted.target)
    # Mounted again it is well.
    mounted.mount("--mode", mounted.mode)
    assert len(mounted_on(os.fsencode(mounted.target))) == 1
    mounted.assert_same()
