"""The demo as its user runs it: ended by Ctrl-C at any moment, and over pictures of one's own."""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import until
from tests.pictures import encoded, picture
from tests.render_site import fetch
from tools.lazy_probe import why_not_lazy


class RunningDemo:
    """``python -m tools.demo`` in a directory of its own, and the lines that it prints."""

    def __init__(self, place: Path, *arguments: str, covers: Path | None = None) -> None:
        self.place = place
        environ = {name: value for name, value in os.environ.items() if name != "COVERS"}
        if covers is not None:
            environ["COVERS"] = str(covers)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tools.demo", "--port", "0", *arguments],
            cwd=place, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self._ended: queue.Queue[None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines.append(line.rstrip())
        self._ended.put(None)

    def wait_line(self, text: str) -> str:
        until(lambda: self.find(text) or self.process.poll() is not None, f"the demo says {text!r}")
        found = self.find(text)
        assert found, f"it ended with {self.process.returncode}: {self.lines}"
        return found

    def find(self, text: str) -> str:
        return next((line for line in self.lines if text in line), "")

    def wait(self) -> int:
        code = self.process.wait(60)
        self._ended.get(timeout=10)
        return code

    def own_processes(self) -> list[int]:
        """Those alive whose environment names the demo's directory, whatever their session or parent is."""
        mark = os.fsencode(self.place / ".demo")
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if mark in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found


@pytest.fixture
def demos() -> Iterator[list[RunningDemo]]:
    started: list[RunningDemo] = []
    yield started
    for demo in started:
        demo.process.kill()
        demo.process.wait()
        for pid in demo.own_processes():
            os.kill(pid, signal.SIGKILL)


def is_refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_ctrl_c_ends_all_of_it(tmp_path: Path, demos: list[RunningDemo]) -> None:
    demos.append(demo := RunningDemo(tmp_path, "--count", "20"))
    page = demo.wait_line("open http://")
    registered = demo.wait_line("registers itself as")
    ports = [int(port) for port in re.findall(r"127\.0\.0\.1[.:]p?(\d+)", page + registered)]
    assert len(ports) == 2
    assert len(demo.own_processes()) >= 3
    assert fetch(ports[0], "/wall.json").json()["covers"] == 20
    os.killpg(demo.process.pid, signal.SIGINT)
    assert demo.wait() == 0
    assert demo.lines[-1].endswith("  stopped")
    assert demo.own_processes() == []
    assert all(map(is_refused, ports))
    assert list((tmp_path / ".demo/store/proxy").glob("*")) == []


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path, demos: list[RunningDemo]) -> None:
    demos.append(demo := RunningDemo(tmp_path, "--count", "20"))
    demo.wait_line("registers itself as")
    os.killpg(demo.process.pid, signal.SIGINT)
    demo.wait_line("stopping")
    os.killpg(demo.process.pid, signal.SIGINT)
    assert demo.wait() == 1
    assert demo.lines[-1].endswith("something did not stop cleanly")
    # What is killed takes a moment to be gone; what was forgotten would stay.
    until(lambda: demo.own_processes() == [], "no process is left")


def test_pictures_of_ones_own_are_shown_and_left_alone(tmp_path: Path, demos: list[RunningDemo]) -> None:
    covers = tmp_path / "my pictures"
    (covers / "sub").mkdir(parents=True)
    files = {"one 100%.png": encoded(picture(1), "PNG"), "sub/two.jpg": encoded(picture(2)), "sub/notes.txt": b"x"}
    for name, data in files.items():
        (covers / name).write_bytes(data)
    demos.append(demo := RunningDemo(tmp_path, "--exit", covers=covers))
    assert demo.wait() == 0, demo.lines
    assert demo.find("published 3 files")
    assert demo.find("the plain address leads to it")
    assert {str(path.relative_to(covers)): path.read_bytes() for path in covers.rglob("*") if path.is_file()} == files
    assert demo.own_processes() == []


def test_a_directory_that_is_not_there_is_said(tmp_path: Path, demos: list[RunningDemo]) -> None:
    demos.append(demo := RunningDemo(tmp_path, "--exit", covers=tmp_path / "nowhere"))
    assert demo.wait() == 1
    assert demo.lines[0] == f"demo: COVERS={tmp_path / 'nowhere'} is no directory"


def test_a_cold_nodes_first_tile(tmp_path: Path, demos: list[RunningDemo]) -> None:
    trouble = why_not_lazy(tmp_path)
    demos.append(demo := RunningDemo(tmp_path, "--count", "60", "--exit", "--lazy"))
    assert demo.wait() == 0, demo.lines
    times = re.search(
        r"synch.down (.*) s after .*, render ready after (.*) s, the tile after (.*) s", demo.find("first")
    )
    assert times, demo.lines
    down_s, ready_s, tile_s = map(float, times.groups())
    assert 0 < down_s <= ready_s <= tile_s
    if trouble:
        assert demo.find("restored eagerly")
    else:
        costs = re.search(r"store (\d+) times, in (\d+) round trips .* for ([\d,]+) bytes", demo.find("round trips"))
        assert costs, demo.lines
        requests, trips, size = (int(text.replace(",", "")) for text in costs.groups())
        total = int(demo.find("round trips").rpartition(" ")[2].replace(",", ""))
        assert 4 <= trips <= requests < 60
        # A tile of covers at full size is of a few covers; the rest is names, metadata and what lies around them.
        assert 10_000 < size < total / 2
    assert demo.find("the plain address leads to it")
    until(lambda: demo.own_processes() == [], "no process is left")
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
