"""One request brought to a backend that answers it: choice, one more try elsewhere, walls that one does not hold."""

from __future__ import annotations

from collections.abc import Callable

from proxy.backends import Backend, Backends
from proxy.core.health import Event
from proxy.core.message import Field, Request, encode_response_head
from proxy.core.request import encode_request, forwarded_fields
from proxy.metrics import Counters
from proxy.upstream import Answer, NotConnected, StaleConnection, converse
from synclib.clock import Clock
from synclib.errors import Corrupt, Unavailable

# How many backends are asked for a wall that the first does not hold: more would let anyone who invents names of
# walls multiply requests by the size of the fleet.
WALL_ASKS_MAX = 16
# After so long no further backend is asked: sixteen that dawdle must not keep one request for minutes.
ASKS_S = 15.0
_REPEATABLE = (b"GET", b"HEAD")
_TRY_ELSEWHERE = (502, 503, 504)
_ASKED_AROUND = ((404, b"unknown"), (503, b"elsewhere"))


class NoBackend(Unavailable):
    """Nobody takes the path now; ``reason`` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"no backend takes this path now: {reason}")
        self.reason = reason


class Opened:
    """An answer under way, with the backend it comes from. Closed exactly once, whole or not."""

    def __init__(self, backend: Backend, answer: Answer, asked_at: float) -> None:
        self.backend = backend
        self.answer = answer
        self.asked_at = asked_at
        self._is_closed = False

    @property
    def is_of_an_unknown_wall(self) -> bool:
        """Whether this server does not hold the wall, or cannot read now what it holds no copy of."""
        head = self.answer.head
        return (head.status, head.fields.get(b"boxlink-wall")) in _ASKED_AROUND

    @property
    def interim(self) -> list[bytes]:
        return [encode_response_head(h.status, h.reason, h.fields) + b"\r\n" for h in self.answer.reader.interim]

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self.backend.in_flight -= 1
        is_reusable = self.answer.reader.may_reuse and self.backend.takes_requests
        self.backend.pool.give_back(self.answer.connection, is_reusable=is_reusable)


class Dispatcher:
    def __init__(self, backends: Backends, clock: Clock, via: bytes, counters: Counters) -> None:
        self.backends = backends
        self.via = via
        self._clock = clock
        self._counters = counters

    async def obtain(
        self, request: Request, client: bytes, conditions: list[Field], is_wanted: Callable[[], bool]
    ) -> Opened:
        """An answer, open at its first byte. NoBackend, TooSlow, Unavailable or Corrupt when there is none.

        A GET or HEAD that fails before the body's first byte, or meets 502, 503 or 504, is tried once more elsewhere.
        An answer for a wall that a backend does not know, or has no copy of, is passed on when no other has it either,
        or when nobody waits for it any more (``is_wanted``), or when asking takes too long.
        """
        until = self._clock.monotonic() + ASKS_S
        wire = encode_request(request, forwarded_fields(request, client, self.via) + conditions)
        is_repeatable = request.method in _REPEATABLE
        tried: list[Backend] = []
        second_best: Opened | None = None
        failure: Unavailable | Corrupt | None = None
        may_retry = is_repeatable
        is_asking_around = False
        try:
            while (backend := self.backends.choose(request.path, tried)) is not None:
                if is_asking_around and (self._clock.monotonic() > until or not is_wanted()):
                    break
                tried.append(backend)
                try:
                    opened = await self._ask(backend, request, wire)
                except _Withdrawn:
                    continue
                except (Unavailable, Corrupt) as error:
                    failure = error
                    if not (may_retry or is_asking_around) or len(tried) >= WALL_ASKS_MAX:
                        break
                    may_retry = False
                    self._counters.retries += 1
                    continue
                if is_repeatable and opened.is_of_an_unknown_wall and len(tried) < WALL_ASKS_MAX:
                    is_asking_around = True
                    self._counters.unknown_walls += 1
                elif may_retry and not is_asking_around and opened.answer.head.status in _TRY_ELSEWHERE:
                    may_retry = False
                    self._counters.retries += 1
                else:
                    return opened
                if second_best is not None:
                    # A wall that one has and cannot read now is not one that nobody knows: 503 is better than 404.
                    worse, opened = sorted((second_best, opened), key=lambda each: each.answer.head.status)
                    worse.close()
                second_best = opened
            if second_best is not None:
                chosen, second_best = second_best, None
                return chosen
        finally:
            if second_best is not None:
                second_best.close()
        raise failure or NoBackend(self.backends.why_none(request.path))

    async def _ask(self, backend: Backend, request: Request, wire: bytes) -> Opened:
        """One request to one backend; what happens is counted for it."""
        asked_at = self._clock.monotonic()
        backend.in_flight += 1
        backend.requests += 1
        try:
            answer = await self._converse(backend, request, wire)
        except BaseException as error:
            backend.in_flight -= 1
            if isinstance(error, _Withdrawn):
                backend.requests -= 1
            elif isinstance(error, Unavailable | Corrupt):
                backend.errors += 1
                if isinstance(error, NotConnected):
                    self.backends.report(backend, Event.FAILED)
                elif isinstance(error, Unavailable):
                    # One request that breaks must not take a backend from all others: a probe shall tell.
                    backend.is_suspect = True
            raise
        backend.latencies.append(self._clock.monotonic() - asked_at)
        self.backends.report(backend, Event.ANSWERED)
        if answer.head.status >= 500:
            backend.errors += 1
        return Opened(backend, answer, asked_at)

    async def _converse(self, backend: Backend, request: Request, wire: bytes) -> Answer:
        # A kept connection may be closed by the backend at the very moment it is used: then it is not known whether
        # the request was carried out, so one that may not be repeated gets a connection of its own.
        if request.method in _REPEATABLE and (connection := backend.pool.take_idle()) is not None:
            try:
                return await converse(connection, request.method, wire)
            except StaleConnection:
                pass
        connection = await backend.pool.connect()
        if not backend.takes_requests:
            connection.close()
            raise _Withdrawn("it was taken out while a connection to it was made")
        return await converse(connection, request.method, wire)


class _Withdrawn(Exception):
    """A backend stopped taking requests before this one was sent to it."""
