"""The backends that registrations name: who takes which path, and how each is doing."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping

import structlog
import xxhash

from proxy.core import balance, health
from proxy.core.health import Event, Health, State
from proxy.core.route import RouteTable
from proxy.upstream import Pool
from synclib.clock import Clock
from synclib.core.registration import Registration, parse_proxy_key

GONE_SHOWN = 64
IN_FLIGHT_MAX = 512  # requests under way at one backend; more than that would only queue there
_LATENCIES = 1024


class Backend:
    """One address. Counts are since it was first seen."""

    def __init__(self, key: str, registration: Registration, now: float) -> None:
        ip, port = parse_proxy_key(key)
        self.key = key
        self.address = f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"
        self.seed = xxhash.xxh3_64_intdigest(key.encode())
        self.pool = Pool(str(ip), port)
        self.registration = registration
        self.health = Health(State(registration.state), changed_at=now)
        self.is_suspect = False  # a request to it broke or had no answer in time: it is probed
        self._proven: tuple[str, str] | None = None  # who answered its probe
        self.why_unproven = ""
        self.in_flight = 0
        self.requests = 0
        self.errors = 0
        self.latencies: deque[float] = deque(maxlen=_LATENCIES)

    @property
    def takes_requests(self) -> bool:
        return self.health.takes_requests

    @property
    def is_proven(self) -> bool:
        """Whether it has done what its registration names as its probe, if it names any."""
        return not self.registration.probe or self._proven == self.who

    def prove(self, why_not: str) -> None:
        """Its probe was answered by who is registered there now; or why not."""
        self._proven, self.why_unproven = None if why_not else self.who, why_not

    @property
    def who(self) -> tuple[str, str]:
        """Node and release that are registered there."""
        return self.registration.node, self.registration.release

    def p99_ms(self) -> float | None:
        """Of the last answers, request to first byte of the body; None before the first."""
        if not self.latencies:
            return None
        ordered = sorted(self.latencies)
        return round(ordered[math.ceil(0.99 * len(ordered)) - 1] * 1000, 3)

    def as_dict(self) -> dict[str, object]:
        registration = self.registration
        return {
            "address": self.address,
            "state": self.health.state.value,
            "ejected": self.health.is_ejected,
            "proven": self.is_proven,
            "requests": self.requests,
            "errors": self.errors,
            "p99_ms": self.p99_ms(),
            "in_flight": self.in_flight,
            "handles": list(registration.handles),
            "cache": registration.cache,
            "node": registration.node,
            "release": registration.release,
            "seq": registration.seq,
        }


class Backends:
    def __init__(self, clock: Clock, log: structlog.typing.FilteringBoundLogger) -> None:
        self._clock = clock
        self._log = log
        self._known: dict[str, Backend] = {}
        self._table: RouteTable[Backend] = RouteTable({})
        self.is_store_readable = True
        self.has_news = asyncio.Event()  # somebody is to be proven

    def __iter__(self) -> Iterator[Backend]:
        return iter(list(self._known.values()))

    def apply(self, standing: Mapping[str, Registration]) -> None:
        """Take over what the store says now; what is not in it is gone."""
        now = self._clock.monotonic()
        for key, registration in standing.items():
            backend = self._known.get(key)
            if backend is None:
                backend = self._known[key] = Backend(key, registration, now)
                self._log.info("backend", address=backend.address, state=registration.state, node=registration.node)
            backend.registration = registration
            self.report(backend, Event.ANNOUNCED_ACTIVE if registration.state == "active" else Event.ANNOUNCED_DRAINING)
        for key, backend in self._known.items():
            if key not in standing:
                self.report(backend, Event.WITHDRAWN)
                backend.prove("it is gone")
        if any(not backend.is_proven for backend in self._known.values()):
            self.has_news.set()
        self._forget_gone()
        self._table = RouteTable(
            {
                backend: backend.registration.handles
                for backend in self._known.values()
                if backend.health.state is not State.GONE
            }
        )

    def report(self, backend: Backend, event: Event) -> None:
        """Tell of a backend what was seen of it."""
        if event is Event.ANSWERED:
            backend.is_suspect = False
        before, after = backend.health, health.step(backend.health, self._clock.monotonic(), event)
        backend.health = after
        if not after.takes_requests:
            backend.pool.close_idle()
        if (before.state, before.is_ejected) != (after.state, after.is_ejected):
            self._log.info(
                "backend", address=backend.address, state=after.state.value, ejected=after.is_ejected, why=event.value
            )

    def report_proof(self, backend: Backend, why_not: str) -> None:
        """Tell how a backend answered its probe: empty for well."""
        before = backend.why_unproven
        backend.prove(why_not)
        if not why_not:
            self._log.info("backend", address=backend.address, state=backend.health.state.value, proven=True)
        elif why_not != before:
            self._log.warning("backend", address=backend.address, proven=False, why=why_not)

    def choose(self, path: bytes, tried: Collection[Backend] = ()) -> Backend | None:
        """The backend for a path, of those that take requests and were not tried yet; one that is not proven only where
        no other can take it."""
        for pool in self._table.pools(path):
            able = [
                backend
                for backend in pool
                if backend.takes_requests and backend.in_flight < IN_FLIGHT_MAX and backend not in tried
            ]
            if able:
                able = [backend for backend in able if backend.is_proven] or able
                return balance.choose(path, able, lambda backend: backend.seed, lambda backend: backend.in_flight)
        return None

    def why_none(self, path: bytes) -> str:
        """Why nobody takes a path: ``no-backend`` registered it, or all are ``draining``, ``failed`` or ``busy``."""
        registered = [backend for pool in self._table.pools(path) for backend in pool]
        if not registered:
            return "no-backend"
        if any(backend.takes_requests for backend in registered):
            return "busy"
        return "failed" if any(backend.health.state is State.ACTIVE for backend in registered) else "draining"

    def _forget_gone(self) -> None:
        gone = [backend for backend in self._known.values() if backend.health.state is State.GONE]
        gone.sort(key=lambda backend: backend.health.changed_at)
        for backend in gone[: max(0, len(gone) - GONE_SHOWN)]:
            del self._known[backend.key]
