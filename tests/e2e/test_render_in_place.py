"""`boxlink render` where no file of the dataset stands: for one who may mount nothing, by the in-process reader."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.boxlink_process import Machine
from tests.fleet import until
from tests.memory_reader import read_directory
from tests.pictures import small_wall
from tests.render_site import fetch, running_site


class Site:
    def __init__(self, place: Path) -> None:
        self.machine = Machine(place)
        self.source, self.data = place / "source", place / "data"
        self.write(60)
        self.machine.run("init")
        self.machine.run("publish", "covers", self.source)
        (self.data / "covers").mkdir(parents=True)
        (self.data / "covers/synch.active").write_text("reader")
        self.daemon = self.machine.start("sync", "--data", self.data, "--poll", "0.2")
        words = ("render", "--data", self.data, "--dataset", "covers", "--listen", "127.0.0.1:0", "--json")
        self.render = self.machine.start(*words, stderr=subprocess.DEVNULL)

    def write(self, covers: int) -> None:
        for path, data in small_wall(covers).items():
            file = self.source / path.decode()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)

    def wait_event(self, event: str) -> dict[str, Any]:
        assert self.render.stdout is not None
        for line in self.render.stdout:
            said: dict[str, Any] = json.loads(line)
            if said["event"] == event:
                return said
        raise AssertionError(f"render ended with {self.render.wait()}")

    def close(self) -> None:
        for process in (self.render, self.daemon):
            process.kill()
            process.communicate()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with contextlib.closing(Site(tmp_path)) as found:
        yield found


def assert_same_tiles(site: Site, port: int) -> None:
    wall = fetch(port, "/wall.json").json()
    with running_site() as other:
        same = other.show(read_directory(site.source))
        for tile in (f"{wall['zoom_max']}/0/0.jpg", "0/0/0.jpg"):
            answer = fetch(port, f"/tiles/{wall['wall']}/{tile}")
            assert (answer.status, answer.data) == (200, other.get(f"/tiles/{same.id}/{tile}").data)


def mode_of(marker: Path) -> str | None:
    """None while there is none: it is taken away before what stands here changes."""
    try:
        return str(json.loads(marker.read_text())["mode"])
    except FileNotFoundError:
        return None


def test_tiles_of_a_dataset_of_which_no_file_stands_here(site: Site) -> None:
    port = int(site.wait_event("ready")["listen"].rpartition(":")[2])
    down = json.loads((site.data / "covers/synch.down").read_text())
    assert (down["mode"], down["seq"]) == ("reader", 1)
    assert_same_tiles(site, port)
    assert not os.path.ismount(site.data / "covers")
    assert {path.name for path in (site.data / "covers").iterdir()} <= {"synch.active", "synch.down"}
    # A new seq is shown as it comes.
    site.write(70)
    site.machine.run("publish", "covers", site.source)
    assert site.wait_event("wall")["seq"] == 2
    assert_same_tiles(site, port)
    assert json.loads((site.data / "covers/synch.down").read_text())["seq"] == 2


def test_who_asks_for_files_afterwards_gets_them(site: Site) -> None:
    site.wait_event("ready")
    (site.data / "covers/synch.active").write_text("eager")
    until(lambda: mode_of(site.data / "covers/synch.down") == "eager", "the files stand here")
    for path in site.source.rglob("*.jpg"):
        assert (site.data / "covers" / path.relative_to(site.source)).read_bytes() == path.read_bytes()
