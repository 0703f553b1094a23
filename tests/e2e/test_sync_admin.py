"""`boxlink sync --admin`: what a real daemon says of itself, while it follows, fails and is stuck."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from synclib.clock import SeededEntropy, SystemClock
from synclib.engine.host import Host
from synclib.engine.node import Node
from synclib.store.memory import MemoryStore
from synclib.store.meter import Meter
from tests.e2e.boxlink_process import Machine, end_session, started
from tests.e2e.test_notify import hear, listening
from tests.engine.test_node import Silent
from tools.sync_admin import SyncAdmin, serve_in_thread

WAIT_S = 40.0
STUCK = """
import os, sys, threading
if "sync" in sys.orig_argv:
    from synclib.core import pulse
    from synclib.engine import follow
    pulse.STEP_S = 3.0
    pulse.Pulse.beat.__defaults__ = (3.0,)
    look = follow.Follower._look
    def stuck(self):
        if os.path.exists({hold!r}):
            threading.Event().wait()
        return look(self)
    follow.Follower._look = stuck
"""


class Watched:
    """A daemon that follows one dataset."""

    def __init__(self, machine: Machine, process: subprocess.Popen[bytes]) -> None:
        self.machine, self.process = machine, process
        self.admin = ""

    def wait_started(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            if said["event"] == "started":
                self.admin = said.get("admin", "")
                return
        raise AssertionError("it did not start")

    def get(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=WAIT_S) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def value(self, name: str, **labels: str) -> float | None:
        for family in text_string_to_metric_families(self.get("/metrics")[1].decode()):
            for sample in family.samples:
                if sample.name == f"boxlink_sync_{name}" and sample.labels == labels:
                    return sample.value
        return None

    def of_covers(self, name: str) -> float | None:
        return self.value(name, dataset="covers")


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.run("init")
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.txt").write_text("one")
    machine.run("publish", "covers", "source")
    (tmp_path / "data/covers").mkdir(parents=True)
    (tmp_path / "data/covers/synch.active").touch()
    return machine


@contextlib.contextmanager
def watched(machine: Machine) -> Iterator[Watched]:
    words = ("sync", "--data", "data", "--poll", "0.2", "--admin", "127.0.0.1:0", "--json")
    process = machine.start(*words, stderr=subprocess.DEVNULL)
    try:
        found = Watched(machine, process)
        found.wait_started()
        yield found
    finally:
        end_session(process)


def test_one_that_follows_fails_and_follows_again(machine: Machine) -> None:
    with watched(machine) as daemon:
        until(lambda: daemon.of_covers("seq") == 1)
        until(lambda: daemon.of_covers("hydrated_ratio") == 1)
        assert daemon.of_covers("head_seq") == 1
        assert daemon.of_covers("lag_seconds") == 0
        assert daemon.of_covers("failing_seconds") == 0
        before = daemon.value("requests_total", verb="get")
        until(lambda: (daemon.value("requests_total", verb="get") or 0) > (before or 0))
        until(lambda: (daemon.value("log_segments_total") or 0) > 0)
        age = daemon.of_covers("head_age_seconds")
        assert age is not None
        assert 0 < age < 600

        shutil.move(machine.place / "store", machine.place / "away")
        until(lambda: sum(daemon.value("errors_total", kind=kind) or 0 for kind in ("missing", "unavailable")))
        until(lambda: (daemon.of_covers("failing_seconds") or 0) > 0)
        failing = json.loads(daemon.get("/healthz")[1])
        assert (failing["is_advancing"], list(failing["failing"])) == (True, ["covers"])

        shutil.move(machine.place / "away", machine.place / "store")
        (machine.place / "source/a.txt").write_text("two")
        machine.run("publish", "covers", "source")
        until(lambda: daemon.of_covers("seq") == 2)
        until(lambda: daemon.of_covers("failing_seconds") == 0)
        assert daemon.get("/healthz")[0] == 200
        assert daemon.get("/nosuch")[0] == 404


def test_one_that_is_stuck_says_so_and_no_longer_that_it_lives(machine: Machine, tmp_path: Path) -> None:
    """A poll that never returns, as from a store that neither answers nor ends: pings stop when its time is over."""
    hooks, hold = tmp_path / "hooks", tmp_path / "hold"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(STUCK.format(hold=str(hold)))
    machine.environment["PYTHONPATH"] = f"{hooks}:{machine.environment.get('PYTHONPATH', '')}"
    machine.environment["WATCHDOG_USEC"] = "200000"
    with listening(machine) as heard, watched(machine) as daemon:
        hear(heard, b"READY=1")
        hear(heard, b"WATCHDOG=1")
        until(lambda: daemon.of_covers("seq") == 1)
        hold.touch()
        until(lambda: daemon.get("/healthz")[0] == 503)
        assert json.loads(daemon.get("/healthz")[1])["stuck"] == ["covers"]
        assert daemon.value("stuck") == 1
        assert (daemon.value("round_age_seconds") or 0) < WAIT_S, (
            "its loop comes round: it is the dataset that is stuck"
        )
        log = next((machine.place / "data/log").glob("sync-*.log"))
        until(lambda: "stuck: the service manager is not told" in log.read_text())
        drain(heard)
        heard.settimeout(2.0)
        with pytest.raises(TimeoutError):
            heard.recv(4096)


def drain(heard: socket.socket) -> None:
    heard.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            heard.recv(4096)


def test_a_watchdog_of_another_process_is_not_ours(machine: Machine) -> None:
    machine.environment |= {"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}
    with listening(machine) as heard, watched(machine) as daemon:
        hear(heard, b"READY=1")
        until(lambda: daemon.of_covers("seq") == 1)
        heard.settimeout(1.0)
        with pytest.raises(TimeoutError):
            heard.recv(4096)


@pytest.mark.parametrize(("admin", "says"), [("nowhere", "is no address"), ("192.0.2.1:1", "cannot be listened on")])
def test_an_address_that_cannot_be_had(machine: Machine, admin: str, says: str) -> None:
    words = ("sync", "--data", "data", "--admin", admin)
    assert says in machine.json(*words, code=2)["error"]["message"]


class SlowMounts(SyncAdmin):
    """One whose mounts do not answer before they are let."""

    def __init__(self, place: Path) -> None:
        host = Host("n1", SystemClock(), SeededEntropy(3), place / "state", place / "cache")
        node = Node(place, MemoryStore(), None, host, Silent(), 10, Meter())
        super().__init__(node, Meter(), host.clock, host.state, place)
        self.is_asked, self.may_answer = threading.Event(), threading.Event()

    def _mounts(self) -> Sequence[dict[str, Any]]:
        self.is_asked.set()
        assert self.may_answer.wait(WAIT_S)
        return super()._mounts()


def test_mounts_that_do_not_answer_hold_nobody_else_up(tmp_path: Path) -> None:
    admin = SlowMounts(tmp_path)
    address = serve_in_thread(admin.pages(), "127.0.0.1", 0)
    with ThreadPoolExecutor(1) as scraper:
        scrape = scraper.submit(lambda: urllib.request.urlopen(f"http://{address}/metrics", timeout=WAIT_S).read())
        try:
            assert admin.is_asked.wait(WAIT_S)
            # Well within the time after which a request is given up.
            with urllib.request.urlopen(f"http://{address}/healthz", timeout=5) as health:
                assert health.status == 200
            assert not scrape.done()
        finally:
            admin.may_answer.set()
        assert b"boxlink_sync_" in scrape.result(WAIT_S)


def test_a_data_directory_has_one_daemon(machine: Machine) -> None:
    machine.run("init")
    with started(machine, "sync", "--json", stdin=subprocess.DEVNULL) as process:
        Watched(machine, process).wait_started()
        error = machine.json("sync", code=13)["error"]
        assert (error["kind"], str(process.pid) in error["message"]) == ("conflict", True)
        assert machine.json("sync", "--once", code=13)["error"]["kind"] == "conflict"
        machine.run("sync", "--once", "--data", machine.place / "other")
        process.kill()
        process.wait(WAIT_S)
        machine.run("sync", "--once")
