"""``boxlink render`` as a process: over a restored directory, through new seqs, until SIGTERM."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from synclib.clock import SystemEntropy
from synclib.core.registration import parse_registration
from tests.pictures import encoded, picture, small_wall
from tests.render_site import fetch
from tools.fleet.free_port import free_port


class Node:
    """A store, a source to publish from, and a node's data directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source = root / "source"
        self.data = root / "data"
        self.environment = {**os.environ, "BOXLINK_STORE": f"file://{root / 'store'}", "XDG_STATE_HOME": str(root)}
        for path, data in small_wall(12).items():
            file = self.source / path.decode()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        self.boxlink("init")

    def boxlink(self, *words: str) -> dict[str, Any]:
        run = subprocess.run(
            self.command(*words, "--json"), env=self.environment, cwd=self.root, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout + run.stderr
        found: dict[str, Any] = json.loads(run.stdout)
        return found

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-c", "from tools.cli import main; main()", *words]

    def bring_down(self) -> None:
        """What the node's daemon does: the newest seq into the directory, then the marker."""
        self.boxlink("publish", "covers", str(self.source))
        found = self.boxlink("restore", "covers", str(self.data / "covers"))
        down = {name: found[name] for name in ("dataset", "seq", "digest")} | {"at": "2026-11-24T00:00:00Z"}
        (self.root / "down").write_text(json.dumps(down))
        os.replace(self.root / "down", self.data / "covers" / "synch.down")

    def registrations(self) -> list[Path]:
        return sorted((self.root / "store" / "proxy").glob("*")) if (self.root / "store" / "proxy").exists() else []


class Server:
    """A running ``boxlink render`` and the lines it said."""

    def __init__(self, node: Node, listen: str = "127.0.0.1:0", *others: str) -> None:
        self.lines: list[dict[str, Any]] = []
        words = ("render", "--data", str(node.data), "--dataset", "covers", "--listen", listen, *others, "--json")
        self.process = subprocess.Popen(
            node.command(*words), env=node.environment, cwd=node.root, stdout=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))

    def wait_for(self, event: str) -> dict[str, Any]:
        until(lambda: any(line["event"] == event for line in self.lines) or self.process.poll() is not None)
        found = [line for line in self.lines if line["event"] == event]
        assert found, f"it ended with {self.process.returncode}: {self.lines}"
        return found[-1]


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60  # several processes start at once
    while not condition():
        assert time.monotonic() < limit, "it never came true"
        threading.Event().wait(0.02)


@contextlib.contextmanager
def serving(node: Node, *words: str) -> Iterator[Server]:
    server = Server(node, *words)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait(10)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_life(node: Node) -> None:
    with serving(node) as server:
        # It asks, and waits: nothing listens, nothing is registered.
        server.wait_for("waiting")
        until((node.data / "covers" / "synch.active").exists)
        assert node.registrations() == []
        node.bring_down()
        ready = server.wait_for("ready")
        port = int(ready["listen"].rpartition(":")[2])
        assert ready["registration"] == f"proxy/127.0.0.1.p{port}"
        until(lambda: bool(node.registrations()))
        registered = parse_registration(node.registrations()[0].read_bytes())
        assert (registered.state, registered.seq, registered.cache) == ("active", 1, "365d")
        first = f"/tiles/{ready['wall']}/0/0/0.jpg"
        assert fetch(port, first).status == 200

        # A new seq: a new wall, and the one before stays.
        (node.source / "shelf" / "new.jpg").write_bytes(encoded(picture(99)))
        node.bring_down()
        wall = server.wait_for("wall")
        assert (wall["seq"], wall["covers"]) == (2, 13)
        assert fetch(port, f"/tiles/{wall['wall']}/0/0/0.jpg").status == 200
        assert fetch(port, first).status == 200
        until(lambda: parse_registration(node.registrations()[0].read_bytes()).seq == 2)

        # SIGTERM: first it says so, then it serves on, then the registration goes, then it ends.
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("draining")
        until(lambda: parse_registration(node.registrations()[0].read_bytes()).state == "draining")
        assert fetch(port, f"/tiles/{wall['wall']}/2/0/0.jpg").status == 200
        assert fetch(port, "/healthz").status == 503
        assert server.wait_for("stopped")["unregistered"] is True
        assert server.process.wait(20) == 0
        assert node.registrations() == []
    logged = [json.loads(line) for line in next((node.data / "log").glob("render-*.log")).read_text().splitlines()]
    assert [line["event"] for line in logged if line["level"] != "info"] == []
    assert {"ready", "draining", "stopped"} <= {line["event"] for line in logged}


def test_sigterm_while_waiting_ends_at_once(node: Node) -> None:
    with serving(node) as server:
        server.wait_for("waiting")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
    assert node.registrations() == []


def test_a_port_that_is_taken_is_said_before_any_waiting(node: Node) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        run = subprocess.run(
            node.command("render", "--data", "data", "--dataset", "covers", "--listen", listen, "--json"),
            env=node.environment, cwd=node.root, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    assert run.returncode == 2
    assert json.loads(run.stdout)["error"]["kind"] == "invalid"


@pytest.fixture
def port() -> int:
    return free_port((), SystemEntropy())


def test_a_successor_that_has_nothing_to_serve_yet_leaves_the_port_alone(node: Node, port: int) -> None:
    """What would come to it waits for ever when the one before is killed."""
    share = (f"127.0.0.1:{port}", "--share")
    node.bring_down()
    cold = copy.copy(node)
    cold.data = node.root / "cold"
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(serving(node, *share))
        first.wait_for("ready")  # else it is the other that is the first on the port
        successor = stack.enter_context(serving(cold, *share))
        successor.wait_for("waiting")
        first.process.kill()
        first.process.wait()
        with pytest.raises(ConnectionRefusedError):
            fetch(port, "/wall.json")
        with serving(node, *share) as newcomer:
            newcomer.wait_for("ready")
            assert fetch(port, "/wall.json").json()["seq"] == 1
            # It comes into its own, behind the one that was quicker.
            (node.source / "shelf" / "new.jpg").write_bytes(encoded(picture(99)))
            cold.bring_down()
            assert successor.wait_for("ready")["seq"] == 2
            newcomer.process.send_signal(signal.SIGTERM)
            assert newcomer.process.wait(40) == 0
            assert fetch(port, "/wall.json").json()["seq"] == 2


def test_who_comes_before_the_first_one_serves_is_let_in(node: Node, port: int) -> None:
    share = (f"127.0.0.1:{port}", "--share")
    cold = copy.copy(node)
    cold.data = node.root / "cold"
    node.bring_down()
    with serving(cold, *share) as first:
        first.wait_for("waiting")
        with serving(node, *share) as second:
            second.wait_for("ready")
            assert fetch(port, "/wall.json").json()["seq"] == 1
            cold.bring_down()
            first.wait_for("ready")
            second.process.send_signal(signal.SIGTERM)
            assert second.process.wait(40) == 0
            assert fetch(port, "/wall.json").json()["seq"] == 1
