"""How far a store is: the delay of each answer, the width of the line, what is refused and what breaks off.

Pure and seeded: the delay of a request follows from the seed, from what is asked for and from how often that was asked
before, so that the same run meets the same delays whatever threads do meanwhile.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from statistics import NormalDist

from blake3 import blake3

_NORMAL = NormalDist()
_P99 = _NORMAL.inv_cdf(0.99)


@dataclass(frozen=True)
class Distance:
    """Delays to the first byte are log-normal, with this median and this 99th percentile. 0: no limit, or never.

    ``connection_bytes_per_s``: of one answer; ``bytes_per_s``: of all together. Above ``requests_per_s`` requests are
    refused (503). ``reset_share``: of the requests, the answer breaks off somewhere.
    """

    p50_s: float = 0.035
    p99_s: float = 0.200
    connection_bytes_per_s: int = 0
    bytes_per_s: int = 0
    requests_per_s: int = 0
    reset_share: float = 0.0


NEAR = Distance(0.0, 0.0)


@dataclass(frozen=True)
class Fate:
    """What becomes of a request. ``breaks_at``: after which share of the answer it is reset; None: never."""

    first_byte_s: float
    breaks_at: float | None


class Fates:
    """Draws them. Not safe between threads."""

    def __init__(self, distance: Distance, seed: int) -> None:
        self._distance, self._seed = distance, seed
        self._asked: dict[str, int] = {}

    def draw(self, what: str) -> Fate:
        """For the next request of ``what``: key and range, or a listing."""
        turn = self._asked[what] = self._asked.get(what, 0) + 1
        digest = blake3(f"{self._seed} {turn} {what}".encode()).digest(24)
        delay, reset, place = (number / 2.0**64 for number in struct.unpack("<3Q", digest))
        breaks_at = place if reset < self._distance.reset_share else None
        return Fate(delay_s(self._distance, delay), breaks_at)


def delay_s(distance: Distance, share: float) -> float:
    """The delay that ``share`` of all requests do not exceed."""
    if distance.p50_s <= 0:
        return 0.0
    sigma = math.log(max(distance.p99_s / distance.p50_s, 1)) / _P99
    return distance.p50_s * math.exp(sigma * _NORMAL.inv_cdf(min(max(share, 1e-9), 1 - 1e-9)))


class Line:
    """A line of some width that answers share, one piece after the other. Not safe between threads."""

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0

    def send(self, now_s: float, length: int) -> float:
        """When a piece that is handed over now has gone through."""
        if not self._bytes_per_s:
            return now_s
        self._free_at = max(self._free_at, now_s) + length / self._bytes_per_s
        return self._free_at


class Turnstile:
    """Lets through so many requests a second, as many at once after a rest. Not safe between threads."""

    def __init__(self, requests_per_s: int) -> None:
        self._rate = requests_per_s
        self._left = float(requests_per_s)
        self._at = 0.0

    def admits(self, now_s: float) -> bool:
        """Whether a request that comes now is answered, and not refused."""
        if not self._rate:
            return True
        self._left = min(self._left + (now_s - self._at) * self._rate, float(self._rate))
        self._at = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True


def round_trips(spans: list[tuple[float, float]]) -> int:
    """How many of these requests, each from its beginning to its end, came one after the other: the longest row of
    them in which none begins before the one before it has ended."""
    count, free_at = 0, -math.inf
    for begin, end in sorted(spans, key=lambda span: span[1]):
        if begin >= free_at:
            count, free_at = count + 1, end
    return count
