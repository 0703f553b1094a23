"""`boxlink render` over a dataset that is mounted: the same tiles, and no more read than they show."""

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
from tests.memory_reader import read_directory
from tests.pictures import small_wall
from tests.render_site import fetch, running_site
from tools.demo.mounts import end_mounts

COVERS = 120


class Site:
    """A publisher, and a cold node whose daemon mounts."""

    def __init__(self, place: Path) -> None:
        self.machine = Machine(place)
        self.source, self.data = place / "source", place / "data"
        for path, data in small_wall(COVERS).items():
            file = self.source / path.decode()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        self.machine.run("init")
        self.machine.run("publish", "covers", self.source)
        (self.data / "covers").mkdir(parents=True)
        (self.data / "covers/synch.active").write_text("lazy")
        # What nobody asks for is not fetched.
        self.daemon = self.machine.start("sync", "--data", self.data, "--poll", "0.2", "--no-hydrate")
        words = ("render", "--data", self.data, "--dataset", "covers", "--listen", "127.0.0.1:0", "--json")
        self.render = self.machine.start(*words, stderr=subprocess.DEVNULL)

    def wait_event(self, event: str) -> dict[str, Any]:
        assert self.render.stdout is not None
        for line in self.render.stdout:
            said: dict[str, Any] = json.loads(line)
            if said["event"] == event:
                return said
        raise AssertionError(f"render ended with {self.render.wait()}")

    def mount(self) -> dict[str, Any]:
        (found,) = self.machine.json("status")["mounts"]
        assert isinstance(found, dict)
        return found

    def boxlink(self, *words: str) -> dict[str, Any]:
        return self.machine.json(*words)

    def close(self) -> None:
        for process in (self.render, self.daemon):
            process.kill()
            process.communicate()
        end_mounts(self.data, self.boxlink)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with contextlib.closing(Site(tmp_path)) as found:
        yield found


def test_the_first_tile_of_a_mounted_dataset(site: Site) -> None:
    ready = site.wait_event("ready")
    assert json.loads((site.data / "covers/synch.down").read_text())["mode"] == "lazy"
    assert os.path.ismount(site.data / "covers")
    port = int(ready["listen"].rpartition(":")[2])
    wall = fetch(port, "/wall.json").json()
    assert wall["covers"] == COVERS
    total = sum(path.stat().st_size for path in site.source.rglob("*") if path.is_file())
    # It is ready with the names and the catalog alone.
    before = site.mount()
    assert before["fetched_bytes"] < total / 3
    tile = f"{wall['zoom_max']}/0/0.jpg"
    answer = fetch(port, f"/tiles/{wall['wall']}/{tile}")
    assert answer.status == 200
    after = site.mount()
    assert after["fetched_bytes"] < total / 2
    assert after["errors"] == 0
    with running_site() as other:
        same = other.show(read_directory(site.source))
        assert answer.data == other.get(f"/tiles/{same.id}/{tile}").data
        # The whole wall needs every cover, and has it.
        whole = fetch(port, f"/tiles/{wall['wall']}/0/0/0.jpg")
        assert (whole.status, whole.data) == (200, other.get(f"/tiles/{same.id}/0/0/0.jpg").data)
    assert site.mount()["fetched_bytes"] > after["fetched_bytes"]
