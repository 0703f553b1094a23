"""`boxlink up --admin`: what a running `up` tells of its processes, whoever else asks."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.admin import Page, json_page
from synclib.clock import SystemClock
from tests.e2e.boxlink_process import Machine
from tests.e2e.test_up import STOPPABLE, role, script, until, up
from tools.fleet.release_seen import Seen, last_seen, note_seen
from tools.fleet.up_admin import UpAdmin


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "stoppable.py").write_text(STOPPABLE)
    return Machine(tmp_path)


def ask(admin: str, path: str, method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(f"http://{admin}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metric(admin: str, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(ask(admin, "/metrics")[1]):
        for sample in family.samples:
            if sample.name == f"boxlink_up_{name}" and sample.labels == labels:
                return float(sample.value)
    return None


def test_a_page_that_fails_ends_nothing() -> None:
    def broken() -> Page:
        raise OverflowError("a bug")

    with socket.create_server(("127.0.0.1", 0)) as listener, selectors.DefaultSelector() as selector:
        door = UpAdmin(listener, {b"/bad": broken, b"/good": lambda: json_page({})}, SystemClock())
        door.watch(selector)
        for path, status in ((b"/bad", b"500"), (b"/good", b"200")):
            with socket.create_connection(listener.getsockname(), timeout=20) as client:
                client.sendall(b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path)
                for _ in range(2):  # it connects, it asks
                    for key, _ in selector.select(20):
                        key.data()
                assert client.recv(4096).startswith(b"HTTP/1.1 " + status)
        door.close()


def test_without_descriptors_who_comes_is_hung_up_on() -> None:
    """One that waits, and cannot be taken, would keep the loop busy for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener, selectors.DefaultSelector() as selector:
        door = UpAdmin(listener, {b"/good": lambda: json_page({})}, SystemClock())
        door.watch(selector)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.create_connection(listener.getsockname(), timeout=20) as client:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), before[1]))
                spare = [os.dup(0) for _ in free_descriptors()]
                for key, _ in selector.select(20):
                    key.data()
                assert selector.select(0) == []
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for descriptor in spare:
                os.close(descriptor)
            assert client.recv(1) == b""
        door.close()


def free_descriptors() -> Iterator[None]:
    """As long as there is one."""
    with contextlib.suppress(OSError):
        while True:
            os.close(os.dup(0))
            yield


@pytest.mark.parametrize("text", ['{"wanted":1e400}', '{"wanted":-1}', "{", '{"wanted":18446744073709551616}'])
def test_what_a_follower_noted_may_be_anything(tmp_path: Path, text: str) -> None:
    (tmp_path / "following").write_text(text)
    assert last_seen(tmp_path) is None
    note_seen(tmp_path, 7, "not signed")
    assert last_seen(tmp_path) == Seen(7, "not signed")
    (tmp_path / "following").unlink()
    os.mkfifo(tmp_path / "following")
    assert last_seen(tmp_path) is None


def test_processes_that_run_end_and_are_started_again(machine: Machine) -> None:
    flag = machine.place / "mended"
    fails = ["sh", "-c", f"test -e {flag} && exec sleep 600; exit 7"]
    path = role(machine, ("steady", script(machine, "stoppable.py"), 20), ("fails", fails, 20))
    with up(machine, path, "--admin", "127.0.0.1:0") as running:
        admin = running.wait("up")["admin"]
        until(lambda: (metric(admin, "process_restarts_total", process="fails") or 0) >= 2)
        assert metric(admin, "process_last_exit_code", process="fails") == 7
        until(lambda: ask(admin, "/healthz")[0] == 503)  # between two of its starts
        until(lambda: json.loads(ask(admin, "/healthz")[1])["down"] == {"fails": 7})
        assert metric(admin, "process_running", process="steady") == 1
        assert metric(admin, "process_restarts_total", process="steady") == 0
        assert metric(admin, "process_last_exit_code", process="steady") is None, "it has not ended yet"
        assert metric(admin, "release_seq") is None
        flag.touch()
        running.wait("output", process="steady")
        until(lambda: ask(admin, "/healthz")[0] == 200)
        assert metric(admin, "process_uptime_seconds", process="fails") is not None
        os.kill(running.wait("started", process="steady")["pid"], signal.SIGKILL)
        until(lambda: metric(admin, "process_restarts_total", process="steady") == 1)
        assert metric(admin, "process_last_exit_code", process="steady") == -signal.SIGKILL
        assert running.end() == 0


def test_whoever_asks_badly_or_not_at_all_holds_nobody_up(machine: Machine) -> None:
    path = role(machine, ("steady", script(machine, "stoppable.py"), 20))
    with up(machine, path, "--admin", "127.0.0.1:0") as running, contextlib.ExitStack() as stack:
        admin = str(running.wait("up")["admin"])
        host, _, port = admin.rpartition(":")

        def connected() -> socket.socket:
            return stack.enter_context(socket.create_connection((host, int(port)), 30))

        silent = [connected() for _ in range(40)]  # more than are waited for at once
        with contextlib.suppress(ConnectionError):
            silent[0].sendall(b"GET /metr")
        assert (ask(admin, "/healthz")[0], ask(admin, "/nosuch")[0], ask(admin, "/metrics", "POST")[0]) == (
            200,
            404,
            405,
        )
        assert ask(admin, "/metrics", "HEAD") == (200, "")
        for said in (b"\x00\xff\r\n\r\n", b"x" * (1 << 20)):
            bad = connected()
            with contextlib.suppress(ConnectionError):
                bad.sendall(said)
                assert not bad.recv(100).startswith(b"HTTP/1.1 200")
        # Who says nothing is hung up on; what is run goes on meanwhile.
        with contextlib.suppress(ConnectionError):
            assert silent[1].recv(100) == b""
        running.wait("output", process="steady", line="runs")
        assert ask(admin, "/healthz")[0] == 200
        assert running.end() == 0


def test_what_cannot_be_listened_on_starts_nothing(machine: Machine) -> None:
    path = role(machine, ("steady", script(machine, "stoppable.py"), 20))
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        assert machine.json("up", path, "--admin", taken, code=2)["error"]["kind"] == "invalid"
    assert machine.json("up", path, "--admin", "nowhere", code=2)["error"]["kind"] == "invalid"
    units = machine.place / "units"
    refused = machine.json("up", path, "--admin", "127.0.0.1:0", "--systemd", units, code=2)
    assert "--admin is of an up that runs" in refused["error"]["message"]
    assert not units.exists()
