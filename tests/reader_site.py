"""A node whose dataset is read in place, and a render server of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.e2e.boxlink_process import Machine
from tests.memory_reader import read_directory
from tests.pictures import small_wall
from tests.render_site import fetch, running_site


class ReaderSite:
    """The publisher and ``boxlink sync``; ``render`` once it was started."""

    def __init__(self, place: Path, covers: int) -> None:
        self.machine = Machine(place)
        self.source, self.data = place / "source", place / "data"
        self.render: subprocess.Popen[bytes] | None = None
        self.write(covers)
        self.machine.run("init")
        self.machine.run("publish", "covers", self.source)
        (self.data / "covers").mkdir(parents=True)
        (self.data / "covers/synch.active").write_text("reader")
        self.daemon = self.machine.start("sync", "--data", self.data, "--poll", "0.2")

    def write(self, covers: int) -> None:
        for path, data in small_wall(covers).items():
            file = self.source / path.decode()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)

    def start_render(self) -> None:
        words = ("render", "--data", self.data, "--dataset", "covers", "--listen", "127.0.0.1:0", "--json")
        self.render = self.machine.start(*words, stderr=subprocess.DEVNULL)

    def ready_port(self) -> int:
        """The port that it serves on, once it does."""
        return int(self.wait_event("ready")["listen"].rpartition(":")[2])

    def wait_event(self, event: str) -> dict[str, Any]:
        assert self.render is not None
        assert self.render.stdout is not None
        for line in self.render.stdout:
            said: dict[str, Any] = json.loads(line)
            if said["event"] == event:
                return said
        raise AssertionError(f"render ended with {self.render.wait()}")

    def assert_same_tiles(self, port: int) -> None:
        wall = fetch(port, "/wall.json").json()
        with running_site() as other:
            same = other.show(read_directory(self.source))
            for tile in (f"{wall['zoom_max']}/0/0.jpg", "0/0/0.jpg"):
                answer = fetch(port, f"/tiles/{wall['wall']}/{tile}")
                assert (answer.status, answer.data) == (200, other.get(f"/tiles/{same.id}/{tile}").data)
