"""What a node that is gone left in the store is taken away: what it said of itself, was asked, and registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from synclib.clock import Clock
from synclib.core.fleet import doubt_s, is_live, silence_s
from synclib.core.names import check_node, node_key, swap_key
from synclib.core.registration import NODE_STATUS_BYTES_MAX, parse_node_status
from synclib.engine.fleet import age_s, renewing
from synclib.engine.registrations import PREFIX, Registered, registrations
from synclib.errors import Conflict, Corrupt, Invalid, Missing
from synclib.store.base import Store

_DAMAGED_S = 90.0  # who runs writes anew what was damaged by then


def forget_node(store: Store, clock: Clock, name: str, say: Callable[[str], None], *, is_dry_run: bool) -> list[str]:
    """The keys of what a node left, which are deleted; its logs stay. Empty where nothing is known of it. ``name``: as
    ``boxlink status --fleet`` shows it, or the key of a registration, also of one that is damaged.

    Conflict for a node that runs: it told lately how it does, or writes anew what it told or registered. Whether it
    does that is waited for, as long as it may take, unless it said that it ends; a dry run does not wait.
    """
    left = {one.key: _Left(one.etag, one.registration.lease_s) for one in registrations(store) if _is_of(one, name)}
    if name.startswith(PREFIX) and not left:
        left = {info.key: _Left(info.etag, _DAMAGED_S) for info in store.list(name) if info.key == name}
    status = None if name.startswith(PREFIX) else _status_of(store, clock, name, is_registered=bool(left))
    # Last what names the node: whoever is killed before finds it again.
    if status is not None:
        left[node_key(name)] = status
    if not is_dry_run:
        _wait_for_life(store, clock, name, left, say)
        if status is not None:
            store.delete(swap_key(name))  # nobody takes on what it was asked
        for key, one in left.items():
            store.delete(key, if_match=one.etag)
    return list(left)


class _Left(NamedTuple):
    """An object, and how long it is to be waited whether it is written anew."""

    etag: str
    wait_s: float = 0.0


def _is_of(one: Registered, name: str) -> bool:
    return name in (one.registration.node or one.key, one.key)


def _wait_for_life(store: Store, clock: Clock, name: str, left: dict[str, _Left], say: Callable[[str], None]) -> None:
    """Conflict where one of these objects is written anew meanwhile."""
    wait_s = max((one.wait_s for one in left.values()), default=0.0)
    if not wait_s:
        return
    for key in renewing(store, clock, {key: one.etag for key, one in left.items()}, wait_s, say):
        raise Conflict(f"{name} runs: it renews what it wrote", hint="end it first", key=key)


def _status_of(store: Store, clock: Clock, name: str, *, is_registered: bool) -> _Left | None:
    """Invalid for what is no node's name, unless somebody registered by it."""
    try:
        return _status(store, clock, check_node(name))
    except Invalid:
        if not is_registered:
            raise
        return None


def _status(store: Store, clock: Clock, name: str) -> _Left | None:
    """None where it said nothing. What is damaged is as good as silent: who runs writes it anew."""
    key = node_key(name)
    try:
        fetched = store.get(key, size_max=NODE_STATUS_BYTES_MAX)
    except Missing:
        return None
    except Corrupt:  # it is too long
        return next((_Left(info.etag, _DAMAGED_S) for info in store.list(key) if info.key == key), None)
    assert fetched is not None
    try:
        status = parse_node_status(fetched.data, key)
        silent_s = age_s(status, clock)
    except (Corrupt, ValueError):
        return _Left(fetched.etag, _DAMAGED_S)
    wait_s = doubt_s(status, silent_s)
    if not wait_s and is_live(status, silent_s):
        raise Conflict(
            f"{name} runs: it told {max(silent_s, 0):.0f} s ago how it does",
            hint="end it first (SIGTERM, or boxlink launch ROLE --local DIR --stop); one that was killed is taken for "
            f"gone when it says nothing for {silence_s(status):.0f} s",
            key=key,
        )
    return _Left(fetched.etag, wait_s)
