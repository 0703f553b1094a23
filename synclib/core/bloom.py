"""A Bloom filter over sort keys: says of most paths that a run does not have them (Bloom, CACM 13(7), 1970).

10 bits a key and 4 positions from two halves of one XXH3-128 (Kirsch and Mitzenmacher, "Less Hashing, Same
Performance", ESA 2006): some 1.2 % of other keys pass.
"""

from __future__ import annotations

from collections.abc import Iterable

import xxhash

_BITS_PER_KEY = 10
_POSITIONS = 4
_HALF = (1 << 64) - 1


def build_bloom(keys: Iterable[bytes], count: int) -> bytes:
    """The filter of ``count`` keys."""
    bits = bytearray((count * _BITS_PER_KEY + 7) // 8 or 1)
    size = len(bits) * 8
    for key in keys:
        hashed = xxhash.xxh3_128_intdigest(key)
        step, position = hashed >> 64 | 1, hashed & _HALF
        for _ in range(_POSITIONS):
            at = position % size
            bits[at >> 3] |= 1 << (at & 7)
            position += step
    return bytes(bits)


def may_hold(bloom: bytes, key: bytes) -> bool:
    """Whether a key may be among those that a filter was built of. An empty filter says nothing: it may."""
    if not bloom:
        return True
    size = len(bloom) * 8
    hashed = xxhash.xxh3_128_intdigest(key)
    step, position = hashed >> 64 | 1, hashed & _HALF
    for _ in range(_POSITIONS):
        at = position % size
        if not bloom[at >> 3] >> (at & 7) & 1:
            return False
        position += step
    return True
