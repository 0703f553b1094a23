from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from render.register import Identity, Registrar
from synclib.clock import SystemClock
from synclib.core.names import proxy_key
from synclib.core.registration import Registration, parse_registration
from synclib.errors import Ambiguous, Missing, Unavailable
from synclib.store.base import Body
from synclib.store.memory import MemoryStore

KEY = proxy_key("127.0.0.1", 8080)


class RecordingStore(MemoryStore):
    """Keeps what was put, in order; fails while told so."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Registration] = []
        self.is_away = False
        self.loses_answers = False

    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        if self.is_away:
            raise Unavailable("away")
        etag = super().put(key, body, if_absent=if_absent, if_match=if_match)
        assert isinstance(body, bytes)
        self.written.append(parse_registration(body))
        if self.loses_answers:
            raise Ambiguous("lost")
        return etag

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        if self.is_away:
            raise Unavailable("away")
        super().delete(key, if_match=if_match)

    def has_key(self) -> bool:
        try:
            return self.get(KEY, size_max=10_000) is not None
        except Missing:
            return False


class FastClock(SystemClock):
    def sleep(self, seconds: float) -> None:
        super().sleep(min(seconds, 0.01))


def _registrar(store: MemoryStore) -> Registrar:
    return Registrar(store, Identity(KEY, "node-1", lease_s=1), FastClock(), structlog.get_logger())


def _until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit, "it never came true"
        threading.Event().wait(0.005)


def test_a_life() -> None:
    store = RecordingStore()
    registrar = _registrar(store)
    registrar.show_seq(7)
    registrar.start()
    _until(lambda: len(store.written) >= 3)
    registrar.show_seq(8)
    _until(lambda: store.written[-1].seq == 8)
    assert registrar.drain()
    assert store.written[-1].state == "draining"
    count = len(store.written)
    assert registrar.remove()
    assert not store.has_key()
    assert len(store.written) == count
    first = store.written[0]
    assert (first.state, first.cache, first.node, first.seq) == ("active", "365d", "node-1", 7)
    assert first.handles == ["/tiles/*", "/", "/wall.json", "/static/*"]
    renewals = [one.renewed for one in store.written]
    assert renewals == sorted(set(renewals))


def test_a_store_that_is_away_stops_nothing() -> None:
    store = RecordingStore()
    store.is_away = True
    registrar = _registrar(store)
    registrar.start()
    assert not registrar.is_registered.wait(0.05)
    store.is_away = False
    assert registrar.is_registered.wait(20)
    store.is_away = True
    assert not registrar.drain()
    assert not registrar.remove()
    assert store.has_key()


def test_a_lost_answer_is_recognised_at_the_end() -> None:
    store = RecordingStore()
    registrar = _registrar(store)
    registrar.start()
    _until(lambda: bool(store.written))
    store.loses_answers = True
    registrar.drain()
    store.loses_answers = False
    assert registrar.remove()
    assert not store.has_key()


def test_a_newer_server_at_the_address_keeps_its_registration() -> None:
    store = RecordingStore()
    registrar = _registrar(store)
    registrar.start()
    _until(lambda: bool(store.written))
    registrar.drain()
    store.put(KEY, b"I handle '/tiles/*'.")
    assert registrar.remove()
    assert store.has_key()


def test_what_was_never_registered_is_not_removed() -> None:
    store = RecordingStore()
    store.put(KEY, b"I handle '/tiles/*'.")
    assert _registrar(store).remove()
    assert store.has_key()


def test_a_later_server_on_the_same_address_keeps_its_registration_until_it_leaves_it() -> None:
    store = RecordingStore()
    old, new = _registrar(store), _registrar(store)
    old.start()
    _until(old.is_registered.is_set)
    new.show_seq(7)
    new.start()
    _until(lambda: store.written[-1].seq == 7)
    count = len(store.written)
    _until(lambda: len(store.written) > count + 2)
    assert {one.seq for one in store.written[count:]} == {7}, "the old one does not write over it"
    assert old.drain()
    assert {one.state for one in store.written[count:]} == {"active"}, "nor does it say that it drains"
    old.remove()
    assert store.has_key()
    new.drain()
    new.remove()
    assert not store.has_key()


def test_one_that_a_later_server_has_left_behind_is_put_again() -> None:
    store = RecordingStore()
    old, new = _registrar(store), _registrar(store)
    old.start()
    _until(old.is_registered.is_set)
    new.show_seq(7)
    new.start()
    _until(lambda: store.written[-1].seq == 7)
    new._stop()  # as if killed: it stands there, and is renewed no more
    _until(lambda: store.written[-1].seq == 0)
    old.drain()
    old.remove()
    assert not store.has_key()
