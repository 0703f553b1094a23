"""Which requests wait for one fetch (request collapsing)."""

from __future__ import annotations

import math
from collections import OrderedDict

from proxy.cache import Cache, Stored
from proxy.core.cache_key import primary_key
from proxy.core.message import Request
from proxy.dispatch import Dispatcher
from proxy.fetch import Fetch
from synclib.clock import Clock

_UNSHAREABLE_KEYS_MAX = 4096
_UNSHAREABLE_S = 10.0


class Fetches:
    """All fetches under way; those that may turn out to be for several are found by key."""

    def __init__(self, dispatcher: Dispatcher, cache: Cache, clock: Clock) -> None:
        self._dispatcher = dispatcher
        self._cache = cache
        self._clock = clock
        self._joinable: dict[bytes, Fetch] = {}
        self._live: dict[bytes, set[Fetch]] = {}
        # Keys whose last answer was for one request alone, and until when nobody waits for the next one.
        self._unshareable: OrderedDict[bytes, float] = OrderedDict()

    def start(self, request: Request, client: bytes, stale: Stored | None = None) -> Fetch:
        """A fetch for one request alone."""
        fetch = Fetch(request, client, stale, self._dispatcher, self._cache, self._clock, self._end)
        self._live.setdefault(fetch.key, set()).add(fetch)
        return fetch

    def join_or_start(self, request: Request, client: bytes, stale: Stored | None) -> tuple[Fetch, bool]:
        """(the fetch for this key, whether this request started it)."""
        key = primary_key(request)
        fetch = self._joinable.get(key)
        if fetch is not None and (fetch.head is None or fetch.is_shareable):
            return fetch, False
        fetch = self.start(request, client, stale)
        if self._unshareable.get(key, -math.inf) <= self._clock.monotonic():
            self._joinable[key] = fetch
        return fetch, True

    def is_joinable(self, key: bytes) -> bool:
        return key in self._joinable

    def detach(self, key: bytes) -> None:
        """What is under way for a key was asked before the resource changed: it is passed on, but not stored."""
        self._joinable.pop(key, None)
        for fetch in self._live.get(key, ()):
            fetch.detach()

    def cancel_all(self) -> None:
        for fetches in list(self._live.values()):
            for fetch in list(fetches):
                fetch.cancel()

    def _end(self, fetch: Fetch) -> None:
        live = self._live[fetch.key]
        live.discard(fetch)
        if not live:
            del self._live[fetch.key]
        was_joinable = self._joinable.get(fetch.key) is fetch
        if was_joinable:
            del self._joinable[fetch.key]
        if fetch.is_shareable:
            self._unshareable.pop(fetch.key, None)
        elif was_joinable and fetch.head is not None:
            self._unshareable[fetch.key] = self._clock.monotonic() + _UNSHAREABLE_S
            if len(self._unshareable) > _UNSHAREABLE_KEYS_MAX:
                self._unshareable.popitem(last=False)
