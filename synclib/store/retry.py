"""A store that tries again, where trying again cannot do harm.

Reads, listings, deletes and unconditional writes may be repeated; a listing goes on after the last key it gave. A
conditional write is repeated only when the store says that nothing was done (NotApplied): otherwise one's own first
try would look like someone else's, so what is Unavailable for others is Ambiguous there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from synclib.clock import Clock, Entropy
from synclib.errors import Ambiguous, Unavailable
from synclib.store.base import Body, Buffer, Fetched, ObjectInfo, Store
from synclib.store.outcome import NotApplied

TRIES = 8
DEADLINE_S = 120.0  # after this no further try begins
PAUSE_FIRST_S = 0.1
PAUSE_MAX_S = 10.0

T = TypeVar("T")


class RetryStore:
    def __init__(self, store: Store, clock: Clock, entropy: Entropy) -> None:
        self.url = store.url
        self.store = store
        self._clock = clock
        self._entropy = entropy

    def get(self, key: str, *, size_max: int, if_none_match: str | None = None) -> Fetched | None:
        return self._repeat(lambda: self.store.get(key, size_max=size_max, if_none_match=if_none_match))

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        return self._repeat(lambda: self.store.get_ranges(key, ranges))

    def get_suffix(self, key: str, length: int) -> Fetched:
        return self._repeat(lambda: self.store.get_suffix(key, length))

    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        return self._repeat(
            lambda: self.store.put(key, body, if_absent=if_absent, if_match=if_match),
            is_conditional=if_absent or if_match is not None,
        )

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        self._repeat(lambda: self.store.delete(key, if_match=if_match), is_conditional=if_match is not None)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """Each key found is progress: tries and deadline count from the last one."""
        pauses = _Pauses(self._clock, self._entropy)
        while True:
            try:
                for info in self.store.list(prefix, after=after):
                    after = info.key
                    pauses = _Pauses(self._clock, self._entropy)
                    yield info
                return
            except Unavailable as error:
                pauses.wait_or_raise(error)

    def _repeat(self, call: Callable[[], T], *, is_conditional: bool = False) -> T:
        pauses = _Pauses(self._clock, self._entropy)
        while True:
            try:
                return call()
            except Ambiguous:
                raise
            except Unavailable as error:
                if is_conditional and not isinstance(error, NotApplied):
                    raise Ambiguous(error.message, hint=error.hint, key=error.key) from error
                pauses.wait_or_raise(error)


def untried(store: Store) -> Store:
    """The same store, but that fails at once: for work that nobody waits for, and that has a pace of its own."""
    return store.store if isinstance(store, RetryStore) else store


class _Pauses:
    """Exponential pauses with full jitter, within a number of tries and a deadline."""

    def __init__(self, clock: Clock, entropy: Entropy) -> None:
        self._clock = clock
        self._entropy = entropy
        self._deadline = clock.monotonic() + DEADLINE_S
        self._failures = 0

    def wait_or_raise(self, error: Unavailable) -> None:
        self._failures += 1
        pause = self._entropy.uniform() * min(PAUSE_MAX_S, PAUSE_FIRST_S * 2**self._failures)
        if self._failures >= TRIES or self._clock.monotonic() + pause > self._deadline:
            raise error
        self._clock.sleep(pause)
