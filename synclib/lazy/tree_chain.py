"""The chain of a seq as a tree is served from it: blocks come when they are looked up, and are kept on the disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from synclib.core.manifest import RunRef
from synclib.disk.pieces import PieceCache
from synclib.lazy.chain import Chain
from synclib.lazy.not_here import before_waiting
from synclib.lazy.open import CachedRuns
from synclib.lazy.run_reader import Request, StoreRuns
from synclib.store.base import Buffer, Store

_KEPT_BYTES = 1 << 30
# The tails of all runs in one round trip: a chain has up to 46 of them (docs/decisions/0014-a-budget-puts-off.md).
_ASKED_AT_ONCE = 48


@contextlib.contextmanager
def opened_chain(store: Store, root: str, runs: Sequence[RunRef], directory: Path) -> Iterator[Chain]:
    """``directory``: where a dataset's caches are. What was looked up before costs no request, nor does it need the
    store; it is verified like what comes from there."""
    with (
        ThreadPoolExecutor(_ASKED_AT_ONCE) as executor,
        contextlib.closing(PieceCache(directory / "tree", _KEPT_BYTES)) as cache,
    ):
        yield Chain.of(CachedRuns(_WaitedFor(store, executor), cache), root, runs)


class _WaitedFor(StoreRuns):
    """Asked for only by those who may wait."""

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        before_waiting()
        return super().get_ranges(key, ranges)

    def get_many(self, requests: Sequence[Request]) -> list[list[Buffer]]:
        before_waiting()
        return super().get_many(requests)
