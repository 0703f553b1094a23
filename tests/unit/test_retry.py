from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from synclib.clock import ManualClock, SeededEntropy
from synclib.errors import Ambiguous, BoxlinkError, Conflict, Corrupt, Missing, Unavailable
from synclib.store.base import ObjectInfo, Store
from synclib.store.memory import MemoryStore
from synclib.store.outcome import NotApplied
from synclib.store.retry import DEADLINE_S, TRIES, RetryStore


class Failing(MemoryStore):
    """Fails the next calls with the given errors; ``applies`` says whether a put is carried out before it fails."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[BoxlinkError] = []
        self.calls = 0
        self.applies = False

    def _maybe_fail(self) -> None:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)

    def get(self, key, **kwargs):  # type: ignore[no-untyped-def]
        self._maybe_fail()
        return super().get(key, **kwargs)

    def get_ranges(self, key, ranges):  # type: ignore[no-untyped-def]
        self._maybe_fail()
        return super().get_ranges(key, ranges)

    def get_suffix(self, key, length):  # type: ignore[no-untyped-def]
        self._maybe_fail()
        return super().get_suffix(key, length)

    def put(self, key, body, **kwargs):  # type: ignore[no-untyped-def]
        if self.applies and self.errors:
            super().put(key, body, **kwargs)
        self._maybe_fail()
        return super().put(key, body, **kwargs)

    def delete(self, key, **kwargs):  # type: ignore[no-untyped-def]
        self._maybe_fail()
        return super().delete(key, **kwargs)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        self.calls += 1
        for number, info in enumerate(super().list(prefix, after=after)):
            if number == 2 and self.errors:
                raise self.errors.pop(0)
            yield info


def wrapped(*errors: BoxlinkError) -> tuple[RetryStore, Failing, ManualClock]:
    failing, clock = Failing(), ManualClock()
    failing.put("a", b"1")
    failing.calls = 0
    failing.errors = list(errors)
    return RetryStore(failing, clock, SeededEntropy(3)), failing, clock


REPEATED: list[Callable[[Store], object]] = [
    lambda store: store.get("a", size_max=9),
    lambda store: store.get_ranges("a", [(0, 1)]),
    lambda store: store.get_suffix("a", 1),
    lambda store: store.put("a", b"2"),
    lambda store: store.delete("a"),
]
CONDITIONAL: list[Callable[[Store], object]] = [
    lambda store: store.put("b", b"2", if_absent=True),
    lambda store: store.put("a", b"2", if_match='"1"'),
    lambda store: store.delete("a", if_match='"1"'),
]


@pytest.mark.parametrize("call", REPEATED)
def test_what_may_be_repeated_is(call: Callable[[Store], object]) -> None:
    store, failing, _ = wrapped(Unavailable("1"), NotApplied("2"), Unavailable("3"))
    call(store)
    assert failing.calls == 4


@pytest.mark.parametrize("call", REPEATED)
def test_tries_are_bounded(call: Callable[[Store], object]) -> None:
    store, failing, clock = wrapped(*(Unavailable(str(number)) for number in range(100)))
    with pytest.raises(Unavailable) as caught:
        call(store)
    assert not isinstance(caught.value, Ambiguous)
    assert failing.calls == TRIES
    assert 0 < clock.monotonic() < DEADLINE_S


@pytest.mark.parametrize("call", CONDITIONAL)
def test_a_conditional_write_is_tried_once_and_ambiguous(call: Callable[[Store], object]) -> None:
    for error in (Unavailable("lost", hint="look"), Ambiguous("lost", hint="look")):
        store, failing, _ = wrapped(error)
        with pytest.raises(Ambiguous) as caught:
            call(store)
        assert (caught.value.message, caught.value.hint, failing.calls) == ("lost", "look", 1)


@pytest.mark.parametrize("call", CONDITIONAL)
def test_a_conditional_write_that_did_nothing_is_repeated(call: Callable[[Store], object]) -> None:
    store, failing, _ = wrapped(NotApplied("busy"), NotApplied("busy"))
    call(store)
    assert failing.calls == 3


def test_ones_own_write_never_looks_like_a_conflict() -> None:
    store, failing, _ = wrapped(Unavailable("applied, but the answer was lost"))
    failing.applies = True
    with pytest.raises(Ambiguous):
        store.put("b", b"mine", if_absent=True)
    fetched = store.get("b", size_max=9)
    assert fetched is not None
    assert fetched.data == b"mine"


@pytest.mark.parametrize("error", [Missing("m"), Conflict("c"), Corrupt("c")])
def test_other_errors_pass(error: BoxlinkError) -> None:
    store, failing, clock = wrapped(error)
    with pytest.raises(type(error)):
        store.get("a", size_max=9)
    assert (failing.calls, clock.monotonic()) == (1, 0)


def test_no_try_begins_after_the_deadline() -> None:
    class Slow(Failing):
        def _maybe_fail(self) -> None:
            clock.advance(DEADLINE_S / 2)
            super()._maybe_fail()

    clock, failing = ManualClock(), Slow()
    failing.errors = [Unavailable("slow") for _ in range(9)]
    with pytest.raises(Unavailable):
        RetryStore(failing, clock, SeededEntropy(3)).get("a", size_max=9)
    assert failing.calls == 2


def test_a_listing_goes_on_after_its_last_key() -> None:
    store, failing, _ = wrapped()
    for number in range(9):
        failing.put(f"n{number}", b"")
    failing.errors = [Unavailable("1"), Unavailable("2"), Unavailable("3")]
    failing.calls = 0
    assert [info.key for info in store.list("n")] == [f"n{number}" for number in range(9)]
    assert failing.calls == 4


def test_a_listing_that_makes_no_progress_ends() -> None:
    class Dead(MemoryStore):
        def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
            raise Unavailable("dead")

    with pytest.raises(Unavailable):
        list(RetryStore(Dead(), ManualClock(), SeededEntropy(1)).list(""))
