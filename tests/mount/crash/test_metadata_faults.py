"""A store that lies about images, maps, runs or the head, and kill -9 while those are read: right names and bytes or an
error, and then all is well again. The image is served beside the blob by the product's own processes, in pieces."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from synclib.clock import SystemClock, SystemEntropy
from synclib.disk.mounts import mounted_on
from synclib.store.file import FileStore
from tests.e2e.boxlink_process import Machine
from tests.mount.crash.conftest import READ_S, WEATHERS, drop_page_cache
from tests.mount.crash.hooks import Hooks
from tests.mount.test_upgrade import wait
from tools.bench.distance import NEAR
from tools.bench.far_process import environment, serving
from tools.bench.far_server import URL, FarServer

FOLDERS, FILES = 50, 120
# As if the image were too large to come here whole, in every process.
_SERVED = """
from synclib.lazy import base_image, metadata
metadata.WHOLE_IMAGE_BYTES = base_image._WHOLE_OBJECT_BYTES = 0
base_image._FIRST_BYTES = 1
"""
_LIES = ("flipped", "truncated", "wrong range", "503", "stalled", "down")


class Served:
    """A dataset with an image, a map and a diff, and a node that has nothing of it."""

    def __init__(self, place: Path) -> None:
        self.place, self.source, self.target = place, place / "source", place / "mount"
        self.target.mkdir(parents=True)
        chance = random.Random(7)
        for folder in range(FOLDERS):
            (self.source / f"{folder:02}").mkdir(parents=True)
            for number in range(FILES):
                (self.source / f"{folder:02}/{number:03}").write_bytes(chance.randbytes(chance.randrange(1, 3000)))
        publisher = Machine(place)
        publisher.run("init")
        publisher.run("publish", "covers", self.source)
        attached = publisher.json("compact", "covers")["attachments"]
        assert [item["kind"] for item in attached] == ["image", "map", "wall"]
        (self.source / "00/000").write_bytes(b"changed")
        publisher.run("publish", "covers", self.source)
        self.server = FarServer(FileStore(str(place / "store"), SystemClock(), SystemEntropy()))
        self._stack = contextlib.ExitStack()
        endpoint = self._stack.enter_context(serving(self.server))
        self.machine = Machine(place, URL)
        self.machine.environment.update(environment(endpoint))
        self.hooks = Hooks(place / "hooks", self.machine.environment)
        with (place / "hooks/sitecustomize.py").open("a") as hooks:
            hooks.write(_SERVED)

    def close(self) -> None:
        self.forget()
        self._stack.close()

    def be(self, weather: str, kind: str = "") -> None:
        self.server.distance = WEATHERS.get(weather, NEAR)
        self.server.lie, self.server.lies_about = "" if weather in WEATHERS else weather, kind

    def forget(self) -> None:
        """A node that has nothing."""
        self.be("")
        if mounted_on(os.fsencode(self.target)):
            self.machine.run("umount", self.target, "--force")
        shutil.rmtree(self.place / "cache", ignore_errors=True)

    def mount(self, kind: str) -> None:
        """Anew, so that all that ``kind`` says of what is read is not here."""
        self.forget()
        done = self.machine.json("mount", "covers", self.target, "--no-hydrate")
        assert (done["mode"], done["metadata"]) == ("erofs", "fetched")
        assert not list((self.place / "cache").rglob("*.image")), "it is not served"
        if kind == "map":
            names(self.target)

    def read(self, kind: str) -> bool:
        return finished(self.start_reading(kind), self.right(kind))

    def start_reading(self, kind: str) -> subprocess.Popen[bytes]:
        return started(self.target, kind)

    def right(self, kind: str) -> list[bytes]:
        return sorted(lines(started(self.source, kind)))

    def row(self) -> dict[str, object]:
        (row,) = self.machine.json("status")["mounts"]
        assert isinstance(row, dict)
        return row


def started(top: Path, kind: str) -> subprocess.Popen[bytes]:
    """Names, modes, sizes and times of some folders; or the digests of some files."""
    what = {
        "image": ["find", "17", "31", "-mindepth", "1", "-printf", r"%p %y %m %s %T@\n"],
        "map": ["sha256sum", *(f"{folder}/{number:03}" for folder in (18, 35) for number in range(0, FILES, 30))],
    }[kind]
    return subprocess.Popen(what, cwd=top, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def lines(reader: subprocess.Popen[bytes]) -> list[bytes]:
    try:
        out, _ = reader.communicate(timeout=READ_S)
    finally:
        reader.kill()
    return out.splitlines()


def finished(reader: subprocess.Popen[bytes], right: list[bytes]) -> bool:
    """Whether a reader saw everything; else it got an error. All that it saw is right."""
    found = lines(reader)
    assert set(found) <= set(right), "something wrong was seen"
    is_whole = reader.returncode == 0
    assert (sorted(found) == right) == is_whole, "something is not there, and no error said so"
    return is_whole


def names(top: Path) -> None:
    subprocess.run(["find", top, "-ls"], stdout=subprocess.DEVNULL, check=True, timeout=READ_S)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, mount_trouble: str) -> Iterator[Served]:
    if mount_trouble:
        pytest.skip(f"real mounts: {mount_trouble}")
    found = Served(tmp_path_factory.mktemp("served"))
    try:
        yield found
    finally:
        found.close()
    assert not os.path.ismount(found.target)


@pytest.mark.parametrize("kind", ["image", "map"])
@pytest.mark.parametrize("lie", _LIES)
def test_a_lie_is_an_error_and_then_all_is_right(served: Served, kind: str, lie: str) -> None:
    served.mount(kind)
    served.be(lie, f"/{kind}/")
    assert not served.read(kind)
    served.be("")
    wait(lambda: served.read(kind))
    assert served.row()["state"] == "serving"


@pytest.mark.parametrize("kind", ["image", "map"])
@pytest.mark.parametrize("step", ["asked", "fetched"])
@pytest.mark.parametrize("weather", ["", "slow", "flipped"])
def test_a_worker_that_is_killed(served: Served, kind: str, step: str, weather: str) -> None:
    served.mount(kind)
    before = served.row()
    served.be(weather, f"/{kind}/")
    served.hooks.kill(step, "worker")
    is_whole = served.read(kind)
    assert served.hooks.has_killed(step)
    assert is_whole == (weather in WEATHERS)
    served.be("")
    wait(lambda: served.read(kind))
    after = served.row()
    assert (after["state"], after["keeper"]) == ("serving", before["keeper"])
    assert after["worker"] != before["worker"]


@pytest.mark.parametrize("kind", ["image", "map"])
def test_a_keeper_that_is_killed(served: Served, kind: str) -> None:
    served.mount(kind)
    served.hooks.kill("asked", "keeper", "worker")
    assert not served.read(kind)
    assert served.row()["state"] == "dead"
    served.machine.json("mount", "covers", served.target, "--no-hydrate")
    assert served.read(kind)


@pytest.mark.parametrize("kind", ["image", "map"])
@pytest.mark.parametrize("weather", ["", "down", "flipped"])
def test_an_upgrade(served: Served, kind: str, weather: str) -> None:
    served.mount(kind)
    old = served.row()["worker"]
    served.be(weather, f"/{kind}/")
    reader = served.start_reading(kind)
    upgrade = served.machine.start("remount", served.target)
    is_whole = finished(reader, served.right(kind))
    upgrade.communicate(timeout=120)
    assert is_whole == (weather == "")
    assert upgrade.returncode == 0
    served.be("")
    wait(lambda: served.read(kind))
    assert served.row()["worker"] != old


@pytest.mark.parametrize("kind", ["head", "run", "image", "map"])
@pytest.mark.parametrize("lie", ["flipped", "truncated", "wrong range"])
def test_a_mount_that_is_lied_to(served: Served, kind: str, lie: str) -> None:
    """Nothing is mounted, or what is right; the same command does it when the store is well."""
    served.forget()
    served.be(lie, f"/{kind}")
    done = served.machine.start("mount", "covers", served.target, "--no-hydrate", "--json")
    done.communicate(timeout=READ_S)
    if done.returncode:
        assert not mounted_on(os.fsencode(served.target))
        assert served.machine.json("status")["mounts"] == []
    served.be("")
    served.machine.run("mount", "covers", served.target, *([] if done.returncode == 0 else ["--no-hydrate"]))
    for what in ("image", "map"):
        assert served.read(what)


def test_in_the_end_everything_is_right(served: Served) -> None:
    served.mount("image")
    drop_page_cache()
    done = subprocess.run(["diff", "-r", served.source, served.target], capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
