"""Clock and entropy as arguments, so that a whole fleet can be replayed from one seed.

Nothing below ``tools/`` reads the time or draws a random number in any other way.
"""

from __future__ import annotations

import os
import time
from typing import Protocol

_CLOCK_REALTIME_COARSE = 5  # linux/time.h; Python has no name for it


class Clock(Protocol):
    def wall_ns(self) -> int:
        """Nanoseconds since 1970-01-01 UTC; may jump. For people and mtimes, never for durations."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never falls. For leases, deadlines and durations."""

    def sleep(self, seconds: float) -> None:
        """Return after at least ``seconds`` of :meth:`monotonic`."""


class Entropy(Protocol):
    def token(self, length: int) -> bytes:
        """``length`` bytes that nobody else draws."""

    def uniform(self) -> float:
        """A number in [0, 1), for jitter."""


class SystemClock:
    def wall_ns(self) -> int:
        return time.time_ns()

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def stamp_clock_ns() -> int:
    """The kernel's clock that stamps changes of files, which moves in ticks (clock_gettime(2), CLOCK_REALTIME_COARSE).

    No argument like the others: it is asked only about stamps that the same kernel made.
    """
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


class SystemEntropy:
    def token(self, length: int) -> bytes:
        return os.urandom(length)

    def uniform(self) -> float:
        # 53 bits, as random.random() has: its module takes as long to import as a small verb to run.
        return (int.from_bytes(os.urandom(7), "big") >> 3) * 2.0**-53


def now_text(clock: Clock) -> str:
    """RFC 3339, UTC."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(clock.wall_ns() / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class ManualClock:
    """A clock that stands still until told; sleeping moves it at once."""

    def __init__(self, wall_ns: int = 1_700_000_000_000_000_000) -> None:
        self._wall_ns = wall_ns
        self._monotonic = 0.0

    def wall_ns(self) -> int:
        return self._wall_ns

    def monotonic(self) -> float:
        return self._monotonic

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        self._monotonic += seconds
        self._wall_ns += int(seconds * 1e9)


class SeededEntropy:
    """Deterministic entropy: the same seed draws the same values."""

    def __init__(self, seed: int) -> None:
        import random

        self._random = random.Random(seed)

    def token(self, length: int) -> bytes:
        return self._random.randbytes(length)

    def uniform(self) -> float:
        return self._random.random()


CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ulid_bytes(clock: Clock, entropy: Entropy) -> bytes:
    """A 16-byte ULID (https://github.com/ulid/spec): 48 bits of milliseconds, 80 bits of entropy."""
    milliseconds = clock.wall_ns() // 1_000_000 & (1 << 48) - 1
    return milliseconds.to_bytes(6, "big") + entropy.token(10)


def ulid_from_text(text: str) -> bytes:
    """The 16 bytes of a ULID's 26 characters; ValueError for any other text."""
    if len(text) != 26:
        raise ValueError("a ULID has 26 characters")
    number = 0
    for character in text:
        number = number << 5 | CROCKFORD.index(character)
    return number.to_bytes(17, "big")[-16:]


def ulid_text(ulid: bytes) -> str:
    """The 26 characters of a ULID (Crockford's base 32, most significant first)."""
    number = int.from_bytes(ulid, "big")
    return "".join(CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))
