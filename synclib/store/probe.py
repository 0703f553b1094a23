"""Whether a store honours the conditions that everything here stands on.

Many S3-compatible servers take ``If-Match`` and ``If-None-Match`` and ignore them: then two publishers would both
believe that they had won. ``boxlink init`` asks first, and whoever publishes asks again now and then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from synclib.clock import Clock, Entropy, ulid_bytes, ulid_text
from synclib.errors import BoxlinkError, Conflict, Missing, Unsupported
from synclib.store.base import Store

_RACERS = 6
_SIZE_MAX = 64

T = TypeVar("T")


def probe_conditional_writes(store: Store, clock: Clock, entropy: Entropy) -> None:
    """Unsupported when the store does not honour conditions; leaves nothing behind."""
    key = f"probe/{ulid_text(ulid_bytes(clock, entropy))}"
    first = _must_succeed("a create of what is not there", lambda: store.put(key, b"first", if_absent=True))
    try:
        _must_conflict("a create of what is there", lambda: store.put(key, b"again", if_absent=True))
        _must_hold(store, key, b"first")
        second = _must_succeed("a replacement by the right etag", lambda: store.put(key, b"second", if_match=first))
        _must_conflict("a replacement by an old etag", lambda: store.put(key, b"late", if_match=first))
        _must_conflict("a delete by an old etag", lambda: store.delete(key, if_match=first))
        _must_hold(store, key, b"second")
        _must_have_one_winner(store, key, second)
        store.delete(key)
        _must_have_one_winner(store, key, None)
        etag = store.put(key, b"last")
        _must_succeed("a delete by the right etag", lambda: store.delete(key, if_match=etag))
        _must_be_gone(store, key)
    finally:
        store.delete(key)


def probe_conditions_at(store: Store, key: str, data: bytes, other: bytes) -> None:
    """As :func:`probe_conditional_writes`, in four requests and by one who may write only some keys: ``key`` is new,
    and neither ``data`` nor ``other``, which is not the same, does harm there if it stays."""
    etag = _must_succeed("a create of what is not there", lambda: store.put(key, data, if_absent=True))
    try:
        _must_conflict("a create of what is there", lambda: store.put(key, other, if_absent=True))
        wrong = '"0"' if etag != '"0"' else '"1"'
        _must_conflict("a replacement by another etag", lambda: store.put(key, other, if_match=wrong))
    finally:
        store.delete(key)


def _must_succeed(what: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except (Conflict, Unsupported) as error:
        raise _unsupported(f"{what} was refused ({error.message})") from error


def _must_conflict(what: str, call: Callable[[], object]) -> None:
    try:
        call()
    except Conflict:
        return
    raise _unsupported(f"{what} was let through")


def _must_hold(store: Store, key: str, wanted: bytes) -> None:
    fetched = store.get(key, size_max=_SIZE_MAX)
    if fetched is None or fetched.data != wanted:
        raise _unsupported("a write was applied that was refused, or lost that was accepted")


def _must_be_gone(store: Store, key: str) -> None:
    try:
        store.get(key, size_max=_SIZE_MAX)
    except Missing:
        return
    raise _unsupported("a delete by the right etag was not applied")


def _must_have_one_winner(store: Store, key: str, etag: str | None) -> None:
    """Write at once from several threads under the same condition: exactly one may win, and its bytes must stay."""
    barrier = threading.Barrier(_RACERS)
    winners: list[bytes] = []
    errors: list[BaseException] = []

    def write(body: bytes) -> None:
        try:
            barrier.wait(timeout=60)
            store.put(key, body, if_absent=etag is None, if_match=etag)
            winners.append(body)
        except Conflict:
            pass
        except (BoxlinkError, threading.BrokenBarrierError) as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(b"racer %d" % index,), daemon=True) for index in range(_RACERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    if len(winners) != 1:
        raise _unsupported(f"{len(winners)} of {_RACERS} writers at once were told that they won")
    _must_hold(store, key, winners[0])


def _unsupported(what: str) -> Unsupported:
    return Unsupported(
        f"this store does not honour conditional writes: {what}",
        hint="use a server with If-Match and If-None-Match on PUT and If-Match on DELETE (docs/stores.md)",
    )
