"""The registrations in the store: read every few seconds, believed only from where they may come.

A poll is one listing, and a GET for each object that changed. It runs in a thread of its own, since a store may take
its time to fail.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import islice

import structlog

from proxy.core.lease import Leases
from proxy.core.networks import Network, is_welcome
from proxy.metrics import Counters
from synclib.clock import Clock, Entropy
from synclib.core.registration import REGISTRATION_BYTES_MAX, Registration, parse_proxy_key, parse_registration
from synclib.errors import BoxlinkError, Corrupt, Missing
from synclib.store.base import ObjectInfo, Store, in_spite_of_strangers

PREFIX = "proxy/"
REGISTRATIONS_MAX = 1000
_JITTER = 0.2


class Registry:
    """What the store says of backends. Not safe between threads: one polls."""

    def __init__(
        self,
        store: Store,
        networks: list[Network],
        clock: Clock,
        counters: Counters,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._store = store
        self._networks = networks
        self._clock = clock
        self._counters = counters
        self._log = log
        self._leases = Leases()
        self._read: dict[str, tuple[str, Registration | None]] = {}  # by key: etag, and what was accepted
        self._complained: set[tuple[str, str]] = set()

    def poll(self) -> dict[str, Registration]:
        """The registrations that stand now, by key. Unavailable (or another kind) when the store cannot be read."""
        started = self._clock.monotonic()
        try:
            listing = in_spite_of_strangers(
                self._store.list(PREFIX), lambda message: self._complain(PREFIX, "stranger", message)
            )
            listed = list(islice(listing, REGISTRATIONS_MAX + 1))
        except BoxlinkError:
            self._leases.suspend()
            self._counters.polls["failed"] += 1
            raise
        if len(listed) > REGISTRATIONS_MAX:
            self._complain(PREFIX, "too-many", f"only the first {REGISTRATIONS_MAX} registrations are read")
            del listed[REGISTRATIONS_MAX:]
        self._leases.observe({info.key: info.etag for info in listed}, started, self._clock.monotonic())
        self._read = {info.key: read for info in listed if (read := self._look(info)) is not None}
        self._counters.polls["ok"] += 1
        return {
            key: registration
            for key, (_, registration) in self._read.items()
            if registration is not None and not self._leases.has_lapsed(key, registration.lease_s)
        }

    def _look(self, info: ObjectInfo) -> tuple[str, Registration | None] | None:
        """(etag, registration) of one object; no registration when it is not accepted, None when it is gone."""
        before = self._read.get(info.key)
        if before is not None and before[0] == info.etag:
            return before
        try:
            address, _ = parse_proxy_key(info.key)
            if not is_welcome(address, self._networks):
                self._complain(info.key, "unwelcome", "its address lies outside --allow")
                return info.etag, None
            fetched = self._store.get(info.key, size_max=REGISTRATION_BYTES_MAX)
            assert fetched is not None  # no etag was given
            return info.etag, parse_registration(fetched.data)
        except Missing:
            return None
        except Corrupt as error:
            self._complain(info.key, "malformed", error.message)
            return info.etag, None
        except BoxlinkError as error:
            # Its etag is new, so its backend lives; what it says is read next time.
            self._complain(info.key, "unread", error.message)
            return None if before is None else ("", before[1])

    def _complain(self, key: str, reason: str, message: str) -> None:
        """Count, and say once for each key and reason."""
        self._counters.ignored[reason] += 1
        if (key, reason) not in self._complained and len(self._complained) < REGISTRATIONS_MAX:
            self._complained.add((key, reason))
            self._log.warning("registration ignored", key=key[:200], reason=reason, message=message)


class Poller:
    """Polls at once, then every ``interval_s`` (with jitter), in a thread of its own.

    ``on_standing``, ``on_failure`` and ``on_crash`` (a bug: it polls no more) are called in that thread.
    """

    def __init__(
        self,
        registry: Registry,
        interval_s: float,
        entropy: Entropy,
        on_standing: Callable[[dict[str, Registration]], None],
        on_failure: Callable[[BoxlinkError], None],
        on_crash: Callable[[BaseException], None],
    ) -> None:
        self._registry = registry
        self._interval_s = interval_s
        self._entropy = entropy
        self._on_standing = on_standing
        self._on_failure = on_failure
        self._on_crash = on_crash
        self._stopping = threading.Event()
        # A daemon, so that a store that hangs does not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="registry", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._on_standing(self._registry.poll())
            except BoxlinkError as error:
                self._on_failure(error)
            except BaseException as error:
                self._on_crash(error)
                raise
            self._stopping.wait(self._interval_s * (1 - _JITTER / 2 + _JITTER * self._entropy.uniform()))
