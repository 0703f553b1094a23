"""How long a server goes without an answer: asked every few milliseconds, from a thread of its own."""

from __future__ import annotations

import http.client
import threading
from dataclasses import dataclass

from synclib.clock import Clock

_EVERY_S = 0.005
_TIMEOUT_S = 2.0
_ANSWER_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Gap:
    """``longest_ms``: between two answers that followed one another, and from the last one to now; ``refused``: of all
    that were ``asked``, those that were not answered with a 200."""

    longest_ms: float
    asked: int
    refused: int


class Probe:
    """Asks from its making until :meth:`end`. ``address``: HOST:PORT. ``path``: one that every server of a fleet
    answers with 200 while it serves (tools/fleet/readiness.py)."""

    def __init__(self, address: str, clock: Clock, path: str = "/healthz") -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port, self._path, self._clock = host.strip("[]"), int(port), path, clock
        self._asked = self._refused = 0
        self._longest_s = 0.0
        self._last = clock.monotonic()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)
        self._thread.start()

    def gap(self) -> Gap:
        """Until now."""
        now_s = self._clock.monotonic() - self._last
        return Gap(max(self._longest_s, now_s) * 1000, self._asked, self._refused)

    def end(self) -> Gap:
        self._ending.set()
        self._thread.join()
        return self.gap()

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        while not self._ending.is_set():
            is_answered = self._ask(connection)
            now = self._clock.monotonic()
            self._asked += 1
            if is_answered:
                self._longest_s = max(self._longest_s, now - self._last)
                self._last = now
            else:
                self._refused += 1
            self._ending.wait(_EVERY_S)
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection) -> bool:
        try:
            connection.request("GET", self._path)
            answer = connection.getresponse()
            answer.read(_ANSWER_BYTES_MAX)
            return answer.status == 200
        except (OSError, http.client.HTTPException):
            connection.close()
            return False
