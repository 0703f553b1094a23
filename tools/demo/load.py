"""A steady load on a proxy that misses nothing: what was answered, with which bytes."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import threading
from collections.abc import Mapping


class Load:
    """Clients that ask for one path after the other over kept connections. Half of the requests have a query of their
    own: no cache has the answer. ``failed``: an answer other than 200, none at all, or one that broke off."""

    def __init__(self, port: int, expected: Mapping[str, bytes], clients: int = 4) -> None:
        self.answered = self.failed = self.wrong = 0
        self.first_failure = ""
        self._port, self._expected = port, dict(expected)
        self._paths = sorted(self._expected)
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, name="load", daemon=True) for _ in range(clients)]

    def expect(self, more: Mapping[str, bytes]) -> None:
        """Ask for these from now on, too."""
        with self._lock:
            self._expected = {**more, **self._expected}
            self._paths = sorted(self._expected)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _run(self) -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)) as connection:
            while not self._stopping.is_set():
                with self._lock:
                    number = next(self._numbers)
                    path = self._paths[number // 2 % len(self._paths)]
                self._ask(connection, path, f"?n={number}" if number % 2 else "")

    def _ask(self, connection: http.client.HTTPConnection, path: str, query: str) -> None:
        try:
            connection.request("GET", path + query)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self._fail(f"{path}: {error!r}")
            return
        if answer.status != 200:
            self._fail(f"{path}: {answer.status} {body[:100]!r}")
            return
        with self._lock:
            self.answered += 1
            self.wrong += body != self._expected[path]

    def _fail(self, text: str) -> None:
        with self._lock:
            self.failed += 1
            self.first_failure = self.first_failure or text
