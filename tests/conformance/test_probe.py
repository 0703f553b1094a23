"""Stores that honour conditions pass the probe; each way of not honouring them is found."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from synclib.clock import SystemClock, SystemEntropy
from synclib.errors import Conflict, Unsupported
from synclib.store.base import Body, Store
from synclib.store.memory import MemoryStore
from synclib.store.probe import probe_conditional_writes


def probe(store: Store) -> None:
    probe_conditional_writes(store, SystemClock(), SystemEntropy())


def test_every_store_here_passes(store: Store) -> None:
    probe(store)
    assert list(store.list("")) == []


class IgnoresAbsent(MemoryStore):
    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        return super().put(key, body, if_match=if_match)


class IgnoresMatch(MemoryStore):
    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        return super().put(key, body, if_absent=if_absent)


class IgnoresMatchOnDelete(MemoryStore):
    def delete(self, key: str, *, if_match: str | None = None) -> None:
        super().delete(key)


class RefusesButWrites(MemoryStore):
    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        try:
            return super().put(key, body, if_absent=if_absent, if_match=if_match)
        except Conflict:
            super().put(key, body)
            raise


class AlwaysConflicts(MemoryStore):
    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        if if_match is not None:
            raise Conflict("always")
        return super().put(key, body, if_absent=if_absent)


class RefusesConditions(MemoryStore):
    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        if if_absent:
            raise Unsupported("S3 answered 501 NotImplemented")
        return super().put(key, body, if_match=if_match)


class DeletesNothing(MemoryStore):
    def delete(self, key: str, *, if_match: str | None = None) -> None:
        if if_match is None or self._find(key)[1] != if_match:
            super().delete(key, if_match=if_match)


class ChecksAndThenWrites(MemoryStore):
    """Honours conditions when asked one at a time; a race has several winners."""

    def __init__(self) -> None:
        super().__init__()
        self._under_way = 0
        self._changed = threading.Condition()

    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        with self._changed:
            old = self._objects.get(key)
            if (if_absent and old) or (if_match is not None and (old is None or old[1] != if_match)):
                raise Conflict("checked")
            if body.startswith(b"racer"):  # type: ignore[union-attr]
                self._under_way += 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._under_way >= 2, timeout=30)
        return super().put(key, body)


@pytest.mark.parametrize(
    "broken",
    [
        IgnoresAbsent,
        IgnoresMatch,
        IgnoresMatchOnDelete,
        RefusesButWrites,
        AlwaysConflicts,
        RefusesConditions,
        DeletesNothing,
        ChecksAndThenWrites,
    ],
)
def test_a_store_that_ignores_conditions_is_found(broken: Callable[[], Store]) -> None:
    store = broken()
    with pytest.raises(Unsupported) as caught:
        probe(store)
    assert "conditional writes" in caught.value.message
    assert caught.value.hint
    assert list(store.list("")) == []
