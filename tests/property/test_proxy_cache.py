"""The store of answers against a dictionary that forgets nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.cache import Cache, Stored
from proxy.core.freshness import Freshness
from proxy.core.message import Fields

FRESH = Freshness(60, 0, 0, False, False, 0, None)
BYTES_MAX = 60_000

_KEYS = st.sampled_from([b"a", b"b", b"c", b"d", b"e"])
_STEPS = st.one_of(
    st.tuples(st.just("add"), _KEYS, st.sampled_from([None, b"1", b"2"]), st.integers(0, 12_000)),
    st.tuples(st.just("find"), _KEYS, st.sampled_from([None, b"1", b"2"])),
    st.tuples(st.just("invalidate"), _KEYS),
)


@given(st.lists(_STEPS, max_size=60))
def test_it_finds_the_last_that_was_added_or_nothing_and_stays_within_its_bytes(steps: list[tuple]) -> None:
    cache = Cache(BYTES_MAX)
    model: dict[tuple[bytes, bytes | None], Stored] = {}
    for step in steps:
        match step:
            case ("add", key, value, size):
                stored = Stored(key, ((b"x", value),), 200, b"OK", Fields(), b"y" * size, FRESH)
                cache.add(stored)
                model[key, value] = stored
            case ("find", key, value):
                found = cache.find(key, Fields(() if value is None else ((b"x", value),)))
                assert found is None or found is model.get((key, value))
                if found is not None:
                    assert not found.is_retired
                    found.touches += 1
            case ("invalidate", key):
                cache.invalidate(key)
                model = {known: stored for known, stored in model.items() if known[0] != key}
                assert not cache.holds(key)
        alive = [stored for stored in model.values() if not stored.is_retired]
        assert cache.bytes_used == sum(stored.size for stored in alive) <= BYTES_MAX
        assert len(cache) == len(alive)
