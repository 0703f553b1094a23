"""What daemons say to systemd, heard on a socket as systemd has one."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.boxlink_process import Machine, started
from tools.notify import notify, say_alive, watchdog_s

WAIT_S = 40.0


@contextlib.contextmanager
def listening(machine: Machine) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind("")
        heard.settimeout(WAIT_S)
        machine.environment["NOTIFY_SOCKET"] = "@" + heard.getsockname()[1:].decode()
        yield heard


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.run("init")
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.txt").write_text("no cover")
    machine.run("publish", "covers", "source")
    return machine


def hear(heard: socket.socket, wanted: bytes) -> None:
    """Until that was said; the socket's own bound ends a wait in vain."""
    while heard.recv(4096) != wanted:
        pass


def test_sync_render_and_proxy_say_when_they_are_ready(machine: Machine) -> None:
    machine.environment["WATCHDOG_USEC"] = "200000"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with listening(machine) as heard:
        with started(machine, "proxy", "--listen", "127.0.0.1:0", **quiet):
            hear(heard, b"READY=1")
            hear(heard, b"WATCHDOG=1")
            hear(heard, b"WATCHDOG=1")
        with started(machine, "sync", "--data", "data", **quiet):
            hear(heard, b"READY=1")
            hear(heard, b"WATCHDOG=1")
            hear(heard, b"WATCHDOG=1")
            words = ("--data", "data", "--dataset", "covers", "--listen", "127.0.0.1:0")
            with started(machine, "render", *words, **quiet):
                hear(heard, b"READY=1")
                hear(heard, b"WATCHDOG=1")


def test_up_is_ready_when_it_has_started_all_and_its_processes_do_not_speak_for_it(machine: Machine) -> None:
    script = 'echo "[$NOTIFY_SOCKET]"; exec sleep 600'
    process_text = f"[[process]]\nname = 'a'\nrun = ['sh', '-c', '{script}']\nstop_s = 9\n"
    (machine.place / "r.toml").write_text(f"role = 'r'\n{process_text}")
    machine.environment["WATCHDOG_USEC"] = "200000"
    with listening(machine) as heard, started(machine, "up", "r.toml", stderr=subprocess.DEVNULL) as process:
        hear(heard, b"READY=1")
        assert process.stdout is not None
        assert process.stdout.readline() == b"a | []\n"
        hear(heard, b"WATCHDOG=1")
        hear(heard, b"WATCHDOG=1")
        process.terminate()
        hear(heard, b"STOPPING=1")


def test_up_says_that_it_is_alive_also_where_nothing_happens(machine: Machine) -> None:
    (machine.place / "r.toml").write_text("role = 'r'\n[[process]]\nname = 'a'\nrun = ['sleep', '600']\n")
    machine.environment["WATCHDOG_USEC"] = "200000"
    with listening(machine) as heard, started(machine, "up", "r.toml", stderr=subprocess.DEVNULL):
        hear(heard, b"READY=1")
        hear(heard, b"WATCHDOG=1")
        hear(heard, b"WATCHDOG=1")


def test_what_does_not_advance_is_not_said_to_live(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[str] = []
    told: list[list[str]] = []
    with listening(machine) as heard:
        monkeypatch.setenv("NOTIFY_SOCKET", machine.environment["NOTIFY_SOCKET"])
        monkeypatch.setenv("WATCHDOG_USEC", "40000")
        say_alive(lambda: late, lambda names: told.append(list(names)))
        hear(heard, b"WATCHDOG=1")
        late.append("covers")
        deadline = time.monotonic() + 30
        while not told:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        heard.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # what was said before
            while heard.recv(4096):
                pass
        heard.settimeout(0.5)  # ten times as long as it would take
        with pytest.raises(TimeoutError):
            heard.recv(4096)
        assert told == [["covers"]]
        late.clear()
        heard.settimeout(30)
        hear(heard, b"WATCHDOG=1")


def test_that_nobody_listens_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for address in ("", "@nobody-is-there", str(tmp_path / "nosuch"), "x" * 300):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify("READY=1")
    for text, seconds in (("", None), ("0", None), ("-1", None), ("x", None), ("3000000", 1.5)):
        monkeypatch.setenv("WATCHDOG_USEC", text)
        assert watchdog_s() == seconds
    assert os.environ["WATCHDOG_USEC"] == "3000000"
