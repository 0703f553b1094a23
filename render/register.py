"""The registration of a server in the store: put when ready, renewed within its lease, taken away at the end.

A store that cannot be reached stops nothing: the server goes on serving, and the registration is put again as soon as
the store answers. (A proxy lets no lease run out while it cannot read the store either.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from structlog.typing import FilteringBoundLogger

from synclib.clock import Clock
from synclib.core.registration import REGISTRATION_BYTES_MAX, Registration, parse_registration
from synclib.errors import BoxlinkError, Conflict, Corrupt, Missing
from synclib.store.base import Store

HANDLES = ("/tiles/*", "/", "/wall.json", "/static/*")
CACHE = "365d"
LEASE_S = 30.0
_RETRY_S = 2.0
_LAST_TRIES = 3
_LATER_S = 1.0


@dataclass(frozen=True)
class Identity:
    """What a registration says that does not change."""

    key: str
    node: str
    release: str = ""
    dataset: str = ""
    lease_s: float = LEASE_S


class Registrar:
    """Keeps one registration; its thread runs from :meth:`start` to :meth:`drain`."""

    def __init__(
        self,
        store: Store,
        identity: Identity,
        clock: Clock,
        log: FilteringBoundLogger,
        answers: Callable[[], tuple[int, int]] = lambda: (0, 0),
        walls: Callable[[], list[int]] = list,
        probe: Callable[[], str] = str,
    ) -> None:
        """``answers``: how many requests were answered so far, and how many of them with 5xx; ``walls``: the seqs whose
        walls are served; ``probe``: the path of something that it can answer only when it does its work."""
        self._store = store
        self._identity = identity
        self._clock = clock
        self._log = log
        self._answers, self._walls, self._probe = answers, walls, probe
        # Seconds since 1970, then counted up: a restarted server's first body differs from the last one's.
        self._renewed = clock.wall_ns() // 1_000_000_000
        self._seq = 0
        self._is_settled = False
        self._etag: str | None = None
        self._body = b""
        self._tried: list[bytes] = []  # since the last answer: one of them may stand there
        self._later, self._later_since = "", 0.0  # the etag of what a later server put there, and when it was seen
        self._wake = threading.Event()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="register", daemon=True)
        self.is_registered = threading.Event()

    def show_seq(self, seq: int) -> None:
        """Say the seq that is served now."""
        self._seq = seq
        self._wake.set()

    def settle(self) -> None:
        """Say that this server holds all that it means to."""
        self._is_settled = True
        self._wake.set()

    def start(self) -> None:
        self._thread.start()

    def drain(self) -> bool:
        """Say ``draining`` and renew no more; False where the store could not be told."""
        self._stop()
        return self._try_last(lambda: self._put("draining"), "the store could not be told of the drain")

    def remove(self) -> bool:
        """Take the registration away, if it is still ours; False where that failed, and its lease must run out."""
        self._stop()
        return self._try_last(self._delete, "the registration could not be taken away; its lease will run out")

    def _stop(self) -> None:
        self._is_stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._is_stopping:
            wait_s = self._identity.lease_s / 3
            try:
                self._put("active")
            except BoxlinkError as error:
                self._log.warning("the registration was not renewed", **error.as_dict())
                wait_s = min(_RETRY_S, wait_s)
            # Where another has registered here that one may end any moment.
            self._wake.wait(min(_LATER_S, wait_s) if self._later else wait_s)
            self._wake.clear()

    def _put(self, state: Literal["active", "draining"]) -> None:
        self._renewed += 1
        requests, errors = self._answers()
        registration = Registration(
            handles=list(HANDLES),
            probe=self._probe(),
            cache=CACHE,
            state=state,
            lease_s=self._identity.lease_s,
            node=self._identity.node,
            release=self._identity.release,
            dataset=self._identity.dataset,
            seq=self._seq,
            walls=[seq for seq in self._walls() if seq != self._seq],
            settled=self._is_settled,
            requests=requests,
            errors=errors,
            renewed=self._renewed,
        )
        self._body = registration.model_dump_json().encode()
        self._tried.append(self._body)
        try:
            # Never over what a server that came later to the same address has said: its word stands.
            self._etag = self._store.put(self._identity.key, self._body, if_match=self._etag)
        except Conflict:
            if not self._put_over():
                return
        self._tried.clear()
        self.is_registered.set()

    def _put_over(self) -> bool:
        """Whether it was put, though what stands there is not what was put last: where that is gone, is ours (its
        answer was lost), or is a later server's that has not renewed it within its lease."""
        key = self._identity.key
        try:
            found = self._store.get(key, size_max=REGISTRATION_BYTES_MAX)
        except Missing:
            self._etag, self._later = self._store.put(key, self._body, if_absent=True), ""
            return True
        assert found is not None
        if found.data not in self._tried and not self._is_left(found.data, found.etag):
            return False
        self._etag, self._later = self._store.put(key, self._body, if_match=found.etag), ""
        return True

    def _is_left(self, data: bytes, etag: str) -> bool:
        """Whether a later server's registration was left behind, judged by our own clock since it changed."""
        try:
            lease_s = parse_registration(data).lease_s
        except Corrupt:
            return True
        now = self._clock.monotonic()
        if self._later != etag:
            self._log.info("another server has registered on this address", key=self._identity.key)
            self._later, self._later_since = etag, now
        return now - self._later_since > lease_s

    def _delete(self) -> None:
        key = self._identity.key
        if not self._body:
            return
        try:
            if self._etag is not None:
                self._store.delete(key, if_match=self._etag)
                return
        except Conflict:
            pass
        # A put whose answer was lost may stand there, or a newer server on the same address, whose it then is.
        try:
            found = self._store.get(key, size_max=REGISTRATION_BYTES_MAX)
        except Missing:
            return
        if found is not None and found.data == self._body:
            self._store.delete(key, if_match=found.etag)

    def _try_last(self, action: Callable[[], None], failure: str) -> bool:
        for is_last in [False] * (_LAST_TRIES - 1) + [True]:
            try:
                action()
            except BoxlinkError as error:
                if is_last or not error.is_retryable:
                    self._log.warning(failure, **error.as_dict())
                    return False
                self._clock.sleep(0.5)
            else:
                return True
        return False
