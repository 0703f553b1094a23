"""What a proxy answered, in the report of the node that it runs on."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from synclib.engine.report import ProxyFigures
from tests.fleet import Fleet, until
from tests.render_site import fetch
from tools import proxy_report
from tools.demo.program import Program
from tools.fleet.proxy_admin import ProxyAdmin
from tools.proxy_report import proxy_figures


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.close()


def status(fleet: Fleet, node: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((fleet.store / "node" / node).read_bytes())
    return found


def test_a_node_tells_what_its_proxy_answered(fleet: Fleet) -> None:
    """And says nothing of it where none runs."""
    proxy = fleet.proxy()
    for _ in range(5):
        assert fetch(proxy.port, "/wall.json").status == 503, "nobody serves it"
    address = f"127.0.0.1:{proxy._admin}"
    syncs: list[Program] = []
    for node, more in (("proxy-1", ["--proxy", address]), ("node-1", [])):
        fleet.data(node).mkdir(parents=True)
        words = ["sync", "--data", str(fleet.data(node)), "--node", node, "--poll", "0.5", *more]
        syncs.append(fleet.start(node, *words))
        until((fleet.store / "node" / node).exists, "it has said how it does")
    told = status(fleet, "proxy-1")
    assert (told["proxy_requests"], told["proxy_errors"]) == (5, 5)
    assert status(fleet, "node-1")["proxy_requests"] is None
    rows = {row["node"]: row["status"] for row in fleet.boxlink("status", "--fleet")["nodes"]}
    assert (rows["proxy-1"]["proxy_requests"], rows["node-1"]["proxy_errors"]) == (5, None)


@contextmanager
def answering(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """The address of something that takes one connection after the other."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.recv(1 << 16)
                    answer(connection)
                except OSError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(20)


_HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
_LINE = b'boxlink_proxy_responses_total{status="200"} 1\n'


def _drip(connection: socket.socket) -> None:
    connection.sendall(_HEAD)
    for _ in range(1000):
        connection.sendall(b"#")
        time.sleep(0.01)


def _pour(connection: socket.socket) -> None:
    connection.sendall(_HEAD + _LINE)
    for _ in range(80):
        connection.sendall(b"#" * 65_535 + b"\n")


@pytest.mark.parametrize(
    "answer",
    [
        _drip,
        _pour,
        lambda connection: connection.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"),
        lambda connection: connection.sendall(_HEAD + b"<html>}{ no proxy\n"),
        lambda connection: connection.sendall(b"\xff" * 100),
        lambda connection: connection.sendall(_HEAD + b'boxlink_proxy_responses_total{status="200"} NaN\n'),
    ],
    ids=["a byte now and then", "without end", "500", "no proxy", "no HTTP", "no figures"],
)
def test_one_that_does_not_tell_in_time_tells_nothing(
    answer: Callable[[socket.socket], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_report, "_DEADLINE_S", 0.5)
    with answering(answer) as address:
        assert proxy_figures(address) is None


def test_one_that_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(lambda connection: connection.sendall(_HEAD + _LINE)) as address:
        assert proxy_figures(address) == ProxyFigures(1, 0)
        assert ProxyAdmin(address).traffic().requests == 1
    assert proxy_figures(address) is None
    assert proxy_figures(None) is None
