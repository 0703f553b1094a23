"""A store that is some milliseconds away: a wrapper with the delays of tools/bench/distance.py, for one process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from synclib.clock import Clock
from synclib.errors import Unavailable
from synclib.store.base import Body, Buffer, Fetched, ObjectInfo, Store
from synclib.store.outcome import NotApplied
from tools.bench.distance import Distance, Fate, Fates, Line, Turnstile

T = TypeVar("T")
_PAGE_KEYS = 1000


class FarStore:
    """Every range is a request of its own, all of a call at the same time. Safe between threads."""

    def __init__(self, store: Store, distance: Distance, clock: Clock, seed: int) -> None:
        self.url, self.store = store.url, store
        self._distance, self._clock = distance, clock
        self._fates, self._line = Fates(distance, seed), Line(distance.bytes_per_s)
        self._turnstile = Turnstile(distance.requests_per_s)
        self._lock = threading.Lock()

    def get(self, key: str, *, size_max: int, if_none_match: str | None = None) -> Fetched | None:
        return self._ask(
            [key], lambda: self.store.get(key, size_max=size_max, if_none_match=if_none_match), _fetched_bytes
        )

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        asked = [f"{key} {start} {stop}" for start, stop in ranges]
        return self._ask(asked, lambda: self.store.get_ranges(key, ranges), lambda found: [len(part) for part in found])

    def get_suffix(self, key: str, length: int) -> Fetched:
        return self._ask([f"{key} -{length}"], lambda: self.store.get_suffix(key, length), _fetched_bytes)

    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        size = len(memoryview(body)) if isinstance(body, bytes | bytearray | memoryview) else os.stat(body).st_size
        return self._ask(
            [f"{key} put"],
            lambda: self.store.put(key, body, if_absent=if_absent, if_match=if_match),
            lambda _: [size],
        )

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        self._ask([f"{key} delete"], lambda: self.store.delete(key, if_match=if_match), lambda _: [0])

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        for number, info in enumerate(self.store.list(prefix, after=after)):
            if number % _PAGE_KEYS == 0:
                self._ask([f"{prefix} list {number}"], lambda: None, lambda _: [0])
            yield info

    def _ask(self, asked: Sequence[str], call: Callable[[], T], sizes: Callable[[T], Sequence[int]]) -> T:
        """One round trip: as long as the longest of what is asked."""
        with self._lock:
            now = self._clock.monotonic()
            if not all(self._turnstile.admits(now) for _ in asked):
                raise NotApplied("too many requests a second", key=asked[0].partition(" ")[0])
            fates = [self._fates.draw(what) for what in asked]
        answer = call()
        self._wait_for(now, tuple(zip(fates, sizes(answer), strict=True)))
        if any(fate.breaks_at is not None for fate in fates):
            raise Unavailable("the connection was reset", key=asked[0].partition(" ")[0])
        return answer

    def _wait_for(self, asked_at: float, answers: Sequence[tuple[Fate, int]]) -> None:
        """Until the last byte of all is here."""
        width = self._distance.connection_bytes_per_s
        done_at = asked_at
        for fate, size in sorted(answers, key=lambda answer: answer[0].first_byte_s):
            first_at = asked_at + fate.first_byte_s
            self._wait_until(first_at)
            sent = size if fate.breaks_at is None else int(size * fate.breaks_at)
            with self._lock:
                through_at = self._line.send(self._clock.monotonic(), sent)
            done_at = max(done_at, through_at, first_at + (sent / width if width else 0.0))
        self._wait_until(done_at)

    def _wait_until(self, at: float) -> None:
        wait_s = at - self._clock.monotonic()
        if wait_s > 0:
            self._clock.sleep(wait_s)


def _fetched_bytes(found: Fetched | None) -> list[int]:
    return [len(found.data) if found else 0]
