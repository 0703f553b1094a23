"""The store of answers: what it finds, what leaves it, and that it stays within its bytes."""

from __future__ import annotations

import pytest

from proxy.cache import VARIANTS_MAX, Cache, Stored
from proxy.core.freshness import Freshness
from proxy.core.message import Fields

FRESH = Freshness(60, 0, 0, False, False, 0, None)


def stored(key: bytes, body: bytes = b"x", **selecting: str) -> Stored:
    chosen = tuple((name.encode(), value.encode()) for name, value in selecting.items())
    return Stored(key, chosen, 200, b"OK", Fields(), body, FRESH)


def test_the_newest_match_is_found() -> None:
    cache = Cache(1 << 20)
    first, second = stored(b"k", a="1"), stored(b"k", a="2")
    cache.add(first)
    cache.add(second)
    assert cache.find(b"k", Fields(((b"a", b"1"),))) is first
    assert cache.find(b"k", Fields(((b"a", b"3"),))) is None
    newer = stored(b"k", a="1")
    cache.add(newer)
    assert cache.find(b"k", Fields(((b"a", b"1"),))) is newer
    assert first.is_retired
    assert len(cache) == 2


def test_an_answer_that_varies_on_other_fields_replaces_all() -> None:
    cache = Cache(1 << 20)
    cache.add(stored(b"k"))
    cache.add(stored(b"k", a="1"))
    assert cache.find(b"k", Fields()) is None
    assert len(cache) == 1


def test_variants_and_invalidation_are_bounded_by_key() -> None:
    cache = Cache(1 << 20)
    for number in range(VARIANTS_MAX * 2):
        cache.add(stored(b"k", a=str(number)))
    assert len(cache) == VARIANTS_MAX
    cache.add(stored(b"other"))
    cache.invalidate(b"k")
    assert not cache.holds(b"k")
    assert (len(cache), cache.holds(b"other")) == (1, True)
    cache.invalidate(b"other")
    assert cache.bytes_used == 0


def test_what_is_used_survives_a_scan_and_what_returns_is_kept_longer() -> None:
    cache = Cache(400_000)
    for number in range(10):
        cache.add(stored(b"hot%d" % number, b"x" * 10_000))
    for number in range(10):
        cache.find(b"hot%d" % number, Fields()).touches += 1  # type: ignore[union-attr]
    for number in range(1000):
        cache.add(stored(b"cold%d" % number, b"x" * 10_000))
        assert cache.bytes_used <= 400_000
    assert all(cache.holds(b"hot%d" % number) for number in range(10))
    assert cache.evictions > 900
    assert not cache.holds(b"cold0")
    returning = stored(b"cold990", b"x")
    cache.add(returning)
    cache.add(stored(b"cold400", b"x"))
    assert cache.find(b"cold400", Fields()) is not None


def test_more_than_fits_is_a_bug_of_the_caller() -> None:
    with pytest.raises(ValueError, match="larger"):
        Cache(1 << 20).add(stored(b"k", b"x" * (1 << 20)))
