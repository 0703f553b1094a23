"""Which backend of several: rendezvous hashing by path, with bounded load.

A path goes to the same backend while that one stands and is not much busier than the others, so each render server's
memory holds its own share of the tiles. When a backend comes or goes only its share moves. What would load a backend
beyond ``LOAD_FACTOR`` times the mean goes to the next in that path's order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import xxhash

T = TypeVar("T")

LOAD_FACTOR = 1.25


def order(path: bytes, backends: Iterable[T], seed: Callable[[T], int]) -> list[T]:
    """All backends, the one whose hash with the path is highest first."""
    return sorted(backends, key=lambda backend: xxhash.xxh3_64_intdigest(path, seed(backend)), reverse=True)


def choose(path: bytes, backends: list[T], seed: Callable[[T], int], load: Callable[[T], int]) -> T:
    """The backend for a path; ``load`` counts what each has in flight. ``backends`` may not be empty."""
    if len(backends) == 1:
        return backends[0]
    bound = math.ceil(LOAD_FACTOR * (sum(map(load, backends)) + 1) / len(backends))
    for backend in order(path, backends, seed):
        if load(backend) < bound:
            return backend
    raise AssertionError("the mean lies below the bound, so some backend does")
