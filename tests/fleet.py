"""A whole fleet on loopback: store, nodes, render servers and a proxy as processes, and a load that misses nothing."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from render.core.layout import layout_of
from tests.memory_reader import MemoryReader
from tests.pictures import Dataset
from tests.render_site import Reply, fetch, running_site
from tools.demo.program import Program, boxlink_command

WAIT_S = 40.0
LEASE_S = 2.0


def until(condition: Callable[[], object], what: str, seconds: float = WAIT_S) -> None:
    """Wait for a condition; the test fails when it does not come true."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"waited {seconds:.0f} s in vain: {what}"
        time.sleep(0.02)


def places(cover_count: int) -> list[str]:
    """``zoom/x/y`` of every tile of a wall, the whole first."""
    layout = layout_of(cover_count)
    return [
        f"{zoom}/{x}/{y}"
        for zoom in range(layout.zoom_max + 1)
        for y in range(layout.extent(zoom)[1])
        for x in range(layout.extent(zoom)[0])
    ]


def drawn(files: Dataset) -> dict[str, bytes]:
    """Every tile of a dataset's wall by its place, drawn in this process from the files themselves."""
    with running_site() as site:
        wall = site.show(MemoryReader(files))
        replies = {place: site.get(f"/tiles/{wall.id}/{place}.jpg") for place in places(len(wall.covers))}
    assert {reply.status for reply in replies.values()} == {200}
    return {place: reply.data for place, reply in replies.items()}


class Render:
    """A running ``boxlink render``."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def ready(self) -> dict[str, Any]:
        return self.program.wait_event("ready")

    @property
    def port(self) -> int:
        return _port(self.ready()["listen"])

    @property
    def key(self) -> str:
        """Its registration's name in the store."""
        return str(self.ready()["registration"])

    @property
    def address(self) -> str:
        return str(self.ready()["listen"])

    def get(self, path: str) -> Reply:
        return fetch(self.port, path)

    def wall_at(self, seq: int) -> str:
        """The name of a seq's wall, once it is the current one here."""
        until(lambda: (reply := self.get("/wall.json")).status == 200 and reply.json()["seq"] == seq, f"seq {seq}")
        return str(self.get("/wall.json").json()["wall"])

    def text_covers(self) -> dict[str, int]:
        """How many covers were drawn as text, by reason."""
        found = re.findall(
            rb'^boxlink_render_text_covers_total\{reason="(\w+)"\} (\d+)', self.get("/metrics").data, re.MULTILINE
        )
        return {reason.decode(): int(count) for reason, count in found}


class Proxy:
    """A running ``boxlink proxy``."""

    def __init__(self, program: Program) -> None:
        self.program = program
        ready = program.wait_event("ready")
        self.port, self._admin = _port(ready["listen"]), _port(ready["admin"])

    def get(self, path: str) -> Reply:
        return fetch(self.port, path)

    def tiles(self, wall: str, of: Iterable[str]) -> dict[str, bytes]:
        """The bytes of these places' tiles; each must be answered with 200."""
        replies = {place: self.get(f"/tiles/{wall}/{place}.jpg") for place in of}
        refused = {place: (reply.status, reply.data[:200]) for place, reply in replies.items() if reply.status != 200}
        assert not refused, f"of {len(replies)} tiles: {refused}"
        return {place: reply.data for place, reply in replies.items()}

    def backends(self) -> dict[str, dict[str, Any]]:
        """What its admin address says of each backend, by address."""
        found: list[dict[str, Any]] = json.loads(fetch(self._admin, "/backends").data)
        return {str(backend["address"]): backend for backend in found}

    def states(self) -> dict[str, str]:
        return {address: str(backend["state"]) for address, backend in self.backends().items()}

    def is_store_readable(self) -> bool:
        return bool(fetch(self._admin, "/healthz").json()["store_readable"])

    def metric(self, name: str) -> int:
        """The sum of a counter's samples."""
        found = re.findall(
            rf"^boxlink_proxy_{name}(?:\{{[^}}]*\}})? (\d+)".encode(), fetch(self._admin, "/metrics").data, re.MULTILINE
        )
        return sum(map(int, found))


class Fleet:
    """Everything below one directory; what it starts ends with it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = root / "store"
        self.source = root / "source"
        self.programs: list[Program] = []
        self._environ = {
            **os.environ,
            "BOXLINK_STORE": f"file://{self.store}",
            "BOXLINK_CONFIG": str(root / "boxlink.toml"),
            "XDG_STATE_HOME": str(root / "state"),
            "XDG_CACHE_HOME": str(root / "cache"),
        }
        self.boxlink("init")

    def boxlink(self, *arguments: str) -> dict[str, Any]:
        """Run a verb to its end; its JSON object."""
        done = subprocess.run(
            [*boxlink_command(), *arguments, "--json"],
            env=self._environ, capture_output=True, text=True, timeout=WAIT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def write(self, files: Dataset, dataset: str = "covers") -> None:
        top = os.fsencode(self.source / dataset)
        os.makedirs(top, exist_ok=True)
        for path, data in files.items():
            os.makedirs(os.path.dirname(os.path.join(top, path)), exist_ok=True)
            Path(os.fsdecode(os.path.join(top, path))).write_bytes(data)

    def publish(self, files: Dataset, dataset: str = "covers") -> int:
        """Write files into the source and publish it; the seq."""
        self.write(files, dataset)
        return int(self.boxlink("publish", dataset, str(self.source / dataset))["seq"])

    def data(self, node: str) -> Path:
        return self.root / node / "data"

    def start(self, name: str, *arguments: str) -> Program:
        program = Program(name, list(arguments), self._environ, self.root / f"{name}-{len(self.programs)}.err")
        self.programs.append(program)
        return program

    def sync(self, node: str) -> Program:
        self.data(node).mkdir(parents=True, exist_ok=True)
        return self.start(f"sync-{node}", "sync", "--data", str(self.data(node)), "--node", node, "--poll", "0.5")

    def render(self, node: str, dataset: str = "covers") -> Render:
        """A server on a free port; :meth:`Render.ready` waits until it serves."""
        return Render(
            self.start(
                f"render-{node}", "render", "--data", str(self.data(node)), "--dataset", dataset,
                "--listen", "127.0.0.1:0", "--lease", str(LEASE_S), "--node", node,
            )
        )  # fmt: skip

    def proxy(self) -> Proxy:
        words = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--poll", "0.3")
        return Proxy(self.start("proxy", "proxy", *words))

    def registrations(self) -> list[str]:
        directory = self.store / "proxy"
        return sorted(f"proxy/{path.name}" for path in directory.iterdir()) if directory.exists() else []

    def close(self) -> None:
        for program in self.programs:
            program.kill()


def _port(address: object) -> int:
    return int(str(address).rpartition(":")[2])


class Load:
    """Clients that ask for one path after the other over kept connections, until they are stopped.

    ``failures`` are answers other than 200 and requests without any answer, ``wrong`` bytes other than expected,
    ``cut`` bodies that broke off.
    """

    def __init__(self, port: int, asks: Iterator[tuple[str, bytes]], clients: int = 3) -> None:
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []
        self.wrong: list[str] = []
        self.cut: list[str] = []
        self._port = port
        self._asks = asks
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, name="load", daemon=True) for _ in range(clients)]

    @property
    def count(self) -> int:
        return self.statuses.total()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def wait(self, count: int) -> None:
        """Until so many more requests were answered."""
        goal = self.count + count
        until(lambda: self.count >= goal or self.failures, f"{count} requests")

    def _run(self) -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)) as connection:
            while not self._stopping.is_set():
                with self._lock:
                    path, expected = next(self._asks)
                self._ask(connection, path, expected)

    def _ask(self, connection: http.client.HTTPConnection, path: str, expected: bytes) -> None:
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self.failures.append(f"{path}: {error!r}")
            connection.close()
            return
        try:
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.cut.append(f"{path}: {error!r}")
            connection.close()
            return
        with self._lock:
            self.statuses[answer.status] += 1
        if answer.status != 200:
            self.failures.append(f"{path}: {answer.status} {data[:200]!r}")
        elif data != expected:
            self.wrong.append(path)


def asks(wall: str, tiles: dict[str, bytes], fresh_every: int = 10) -> Iterator[tuple[str, bytes]]:
    """An endless mix: each tile once in its turn, between them tiles that are cached and ones that no cache has.

    A query makes an address of its own, so the proxy must ask a backend for it.
    """
    unseen = iter(tiles.items())
    known = itertools.cycle(list(tiles.items())[:20])
    for number in itertools.count():
        if number % fresh_every == 0 and (fresh := next(unseen, None)) is not None:
            place, data = fresh
            yield f"/tiles/{wall}/{place}.jpg", data
        else:
            place, data = next(known)
            yield f"/tiles/{wall}/{place}.jpg" + (f"?n={number}" if number % 2 else ""), data
