"""What the engine is given: the machine it runs on, and how its worker processes reach the store."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from synclib.clock import Clock, Entropy
from synclib.store.base import Store
from synclib.store.meter import Meter

# Called with (what is being done, how much is done, how much there is or 0 if not known yet); bytes or paths.
Progress = Callable[[str, int, int], None]


def no_progress(what: str, done: int, total: int) -> None:
    """For callers that show nothing."""


@dataclass(frozen=True, slots=True)
class Host:
    """This machine: its name, its clock and entropy, and where it keeps state and caches."""

    node: str
    clock: Clock
    entropy: Entropy
    state: Path
    cache: Path

    def dataset_cache(self, store_url: str, root: str) -> Path:
        """The cache directory of one dataset of one store."""
        return self.cache / blake3(f"{store_url}\0{root}".encode()).hexdigest(16)


@dataclass(frozen=True)
class Connect:
    """How another process opens the same store."""

    url: str
    s3: tuple[tuple[str, str | None], ...] = ()

    @functools.cached_property
    def opened(self) -> tuple[Store, Meter]:
        from synclib.store.open import open_store

        return open_store(self.url, dict(self.s3))

    def __getstate__(self) -> dict[str, object]:
        return {"url": self.url, "s3": self.s3}


@functools.lru_cache(maxsize=4)
def connect_once(connect: Connect) -> tuple[Store, Meter]:
    """The store of this process for a Connect: opened once, however many jobs come."""
    return connect.opened
