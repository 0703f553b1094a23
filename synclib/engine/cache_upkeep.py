"""What a worker does for its cache beside reads: it evicts, scrubs, and does what it is told by the control socket."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from synclib.clock import Clock
from synclib.disk.blob_cache import BlobCache
from synclib.disk.evictor import Evictor
from synclib.errors import BoxlinkError
from synclib.lazy.blob import Extents
from synclib.lazy.mounted_seqs import MountedSeqs
from synclib.lazy.scrub import ScrubCounts, scrub

_SCRUB_BYTES_PER_S = 4 << 20
_SCRUB_FIRST_S = 600.0
_SCRUB_EVERY_S = 24 * 3600.0


@dataclass
class BackgroundRate:
    """What work that nobody waits for may read or fetch; None: as much as each sees fit."""

    bytes_per_s: int | None = None


class CacheUpkeep:
    """Of a cache, whose mount's map is ``extents``, of ``units``. ``on_error``: told what kept it from evicting."""

    def __init__(
        self,
        cache: BlobCache,
        extents: Extents,
        units: int,
        seqs: MountedSeqs,
        clock: Clock,
        on_error: Callable[[BoxlinkError], None],
    ) -> None:
        self._cache, self._extents, self._units, self._clock = cache, extents, units, clock
        self._seqs, self._on_error = seqs, on_error
        self.rate = BackgroundRate()
        self.scrubbed = ScrubCounts()
        self._evictor = Evictor(cache, cache.path.parent, seqs.look)
        self._scrub_started = 0.0
        self._turn = threading.Lock()  # of the evictor
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._evict, name="evict", daemon=True),
            threading.Thread(target=self._scrub, name="scrub", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._ended.set()
        self._cache.is_short.set()
        for thread in self._threads:
            if thread.is_alive():  # it may never have begun
                thread.join()
        self._seqs.close()

    def evict_to(self, target_bytes: int) -> int:
        """Until the cache takes no more than that; what it takes then. Any BoxlinkError."""
        with self._turn:
            self._evictor.evict_to(target_bytes)
        return self._cache.held_bytes()

    def pin(self, path: str, ranges: Sequence[tuple[int, int]]) -> None:
        self._evictor.pins.pin(path, ranges)

    def unpin(self, path: str) -> bool:
        return self._evictor.pins.unpin(path)

    @property
    def pinned(self) -> list[str]:
        return sorted(self._evictor.pins.by_path)

    def _evict(self) -> None:
        while self._evictor.wait(self._ended):
            try:
                with self._turn:
                    self._evictor.keep_reserve()
            except BoxlinkError as error:  # reads go on without being kept
                self._on_error(error)

    def _scrub(self) -> None:
        pause_s = _SCRUB_FIRST_S
        while not self._ended.wait(pause_s):
            self._scrub_started = self._clock.monotonic()
            try:
                scrub(self._cache, [self._extents], self._units, self._pace)
            except BoxlinkError as error:
                self._on_error(error)
            pause_s = _SCRUB_EVERY_S

    def _pace(self, counts: ScrubCounts) -> bool:
        """Wait as long as what was read may take; whether to go on."""
        self.scrubbed = counts
        per_s = min(_SCRUB_BYTES_PER_S, self.rate.bytes_per_s or _SCRUB_BYTES_PER_S)
        return not self._ended.wait(max(self._scrub_started + counts.bytes / per_s - self._clock.monotonic(), 0))
