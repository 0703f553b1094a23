"""The side door of ``boxlink up``: /healthz and /metrics, answered by the supervisor's own loop.

Not by a thread: the supervisor forks, and a child of a process with threads may wait for ever for what one of them
held. So nothing here waits: whoever is slow is hung up on.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import selectors
import socket
import traceback
from dataclasses import dataclass

from proxy.admin import Pages, encode_page, find_page, json_page
from proxy.core.request import HEAD_BYTES_MAX
from synclib.clock import Clock

_DEADLINE_S = 5.0
_CLIENTS_MAX = 16


@dataclass
class _Client:
    connection: socket.socket
    due_at: float
    head: bytes = b""


class UpAdmin:
    """``listener``: it listens. One request a connection."""

    def __init__(self, listener: socket.socket, pages: Pages, clock: Clock) -> None:
        self._listener, self._pages, self._clock = listener, pages, clock
        self._clients: list[_Client] = []
        self._spare = _spare()
        self._selector: selectors.BaseSelector | None = None

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Answer whenever the selector's loop calls the data of what is ready."""
        self._selector = selector
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    @property
    def due_at(self) -> float:
        """When :meth:`sweep` has somebody to hang up on; monotonic, inf for nobody."""
        return min((client.due_at for client in self._clients), default=math.inf)

    def sweep(self) -> None:
        now = self._clock.monotonic()
        for client in [client for client in self._clients if client.due_at <= now]:
            self._end(client)

    def close(self) -> None:
        for client in list(self._clients):
            self._end(client)
        self._listener.close()
        if self._spare >= 0:
            os.close(self._spare)

    def _accept(self) -> None:
        assert self._selector is not None
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._hang_up()
            return  # else it has gone again
        if len(self._clients) >= _CLIENTS_MAX:
            self._end(self._clients[0])  # it has been slow for longest, and whoever comes may be a probe
        connection.setblocking(False)
        client = _Client(connection, self._clock.monotonic() + _DEADLINE_S)
        self._clients.append(client)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(client))

    def _hang_up(self) -> None:
        """There is no descriptor left: one that waits and cannot be taken would keep the loop busy for nothing."""
        if self._spare >= 0:
            os.close(self._spare)
        with contextlib.suppress(OSError):
            self._listener.accept()[0].close()
        self._spare = _spare()

    def _read(self, client: _Client) -> None:
        try:
            data = client.connection.recv(HEAD_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        client.head += data
        end = client.head.find(b"\r\n\r\n")
        if data and end < 0 and len(client.head) <= HEAD_BYTES_MAX:
            return
        if 0 <= end <= HEAD_BYTES_MAX:
            with contextlib.suppress(OSError):
                client.connection.sendall(self._answer(client.head[: end + 4]))  # the socket takes it at once, or not
        self._end(client)

    def _answer(self, head: bytes) -> bytes:
        try:
            method, page = find_page(self._pages, head)
            assert isinstance(page, tuple), "pages of this door are made at once"
            return encode_page(method, page)
        except Exception:  # a bug of ours: whoever asks for figures must not end what runs
            traceback.print_exc()
            return encode_page(b"GET", json_page({"error": "a bug: see the log"}, 500))

    def _end(self, client: _Client) -> None:
        if client not in self._clients:
            return
        assert self._selector is not None
        self._clients.remove(client)
        self._selector.unregister(client.connection)
        client.connection.close()


def _spare() -> int:
    """A descriptor to give up when there is no other; -1 where another process has taken the last one."""
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
