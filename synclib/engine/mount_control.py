"""What a mount's worker tells of itself, and does when it is told to: answers to small requests, which never wait for a
read."""

from __future__ import annotations

import os

import msgspec

from synclib import __version__
from synclib.clock import Clock
from synclib.core.entry import ADDRESS_MAX
from synclib.engine.cache_work import CacheWork
from synclib.errors import Invalid
from synclib.store.meter import Meter

_PIN_RANGES_MAX = 100_000


class Figures(msgspec.Struct, tag="figures", tag_field="do", frozen=True):
    """How it does."""


class Evict(msgspec.Struct, tag="evict", tag_field="do", frozen=True):
    """Let go what takes more than so many bytes."""

    to_bytes: int


class Pin(msgspec.Struct, tag="pin", tag_field="do", frozen=True):
    """Never evict what lies in these ranges [first, stop) of units, which are a path's."""

    path: str
    ranges: list[tuple[int, int]]


class Unpin(msgspec.Struct, tag="unpin", tag_field="do", frozen=True):
    path: str


class Rate(msgspec.Struct, tag="rate", tag_field="do", frozen=True):
    """What work in the background may read or fetch; 0: no limit."""

    bytes_per_s: int


class Ready(msgspec.Struct, tag="ready", tag_field="do", frozen=True):
    """Whoever reads there has started up."""


Request = Figures | Evict | Pin | Unpin | Rate | Ready


class MountControl:
    """Of one worker. Safe between threads."""

    def __init__(self, work: CacheWork, meter: Meter, restarts: int, clock: Clock, published_at_ns: int) -> None:
        """``published_at_ns``: when the seq was."""
        self._clock, self._published_at_ns = clock, published_at_ns
        self._blob, self._cache, self._upkeep, self._hydrator = work.blob, work.cache, work.upkeep, work.hydrator
        self._start_up, self._meter, self._restarts = work.start_up, meter, restarts

    def answer(self, request: Request) -> dict[str, object]:
        """Any BoxlinkError where it cannot be done."""
        match request:
            case Evict(to_bytes):
                return {"cache_bytes": self._upkeep.evict_to(max(to_bytes, 0))}
            case Pin(path, ranges):
                if len(ranges) > _PIN_RANGES_MAX or not all(0 <= a < b <= ADDRESS_MAX for a, b in ranges):
                    raise Invalid("no such ranges can be pinned", path=path)
                self._upkeep.pin(path, ranges)
                return {"pinned": self._upkeep.pinned}
            case Unpin(path):
                if not self._upkeep.unpin(path):
                    raise Invalid("it is not pinned", hint="boxlink status tells what is", path=path)
                return {"pinned": self._upkeep.pinned}
            case Rate(bytes_per_s):
                self._upkeep.rate.bytes_per_s = max(bytes_per_s, 0) or None
                self._hydrator.set_rate(max(bytes_per_s, 0))
                return {"rate": self._upkeep.rate.bytes_per_s}
            case Ready():
                self._start_up.end()
        return self.figures()

    def figures(self) -> dict[str, object]:
        """How the mount does: times in milliseconds, of the latest thousand faults."""
        counts, kept = self._blob.counts, self._cache.counts
        taken = sorted(counts.fault_s.copy())  # at once: others add to it
        return {
            "worker": os.getpid(),
            "version": __version__,
            "restarts": self._restarts,
            "age_s": max(round((self._clock.wall_ns() - self._published_at_ns) / 1e9, 1), 0.0),
            "reads": counts.reads,
            "hits": kept.hits,
            "faults": counts.faults,
            "errors": counts.errors,
            "fetched_chunks": counts.fetched_chunks,
            "fetched_bytes": counts.fetched_bytes,
            "volume_chunks": counts.near_chunks,
            "volume_bytes": counts.near_bytes,
            "cache_bytes": self._cache.held_bytes(),
            "cache_bytes_max": self._cache.limits.limit_bytes,
            "evicted_chunks": kept.evicted_chunks,
            "evicted_bytes": kept.evicted_bytes,
            "unkept_chunks": kept.unkept,
            "damaged_chunks": kept.damaged,
            "scrubbed_bytes": self._upkeep.scrubbed.bytes,
            "pinned": self._upkeep.pinned,
            "rate": self._upkeep.rate.bytes_per_s,
            "fault_p50_ms": round(taken[len(taken) // 2] * 1000, 3) if taken else 0.0,
            "fault_p99_ms": round(taken[len(taken) * 99 // 100] * 1000, 3) if taken else 0.0,
            **self._hydrator.figures(),
            **self._meter.as_dict(),
            "round_trips": self._meter.round_trips,
        }
