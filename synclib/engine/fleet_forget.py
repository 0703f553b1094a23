"""What a node that is gone left in the store is taken away: what it said of itself, was asked, and registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from synclib.clock import Clock
from synclib.core.fleet import is_live, silence_s
from synclib.core.names import check_node, node_key, swap_key
from synclib.core.registration import NODE_STATUS_BYTES_MAX, parse_node_status
from synclib.engine.fleet import age_s
from synclib.engine.registrations import PREFIX, registrations
from synclib.errors import Conflict, Corrupt, Missing
from synclib.store.base import Store


def forget_node(store: Store, clock: Clock, name: str, say: Callable[[str], None], *, is_dry_run: bool) -> list[str]:
    """The keys of what a node left, which are deleted; its logs stay. Empty where nothing is known of it. ``name``: as
    ``boxlink status --fleet`` shows it: for what only registered, and named no node, the key of that.

    Conflict for a node that runs: it told lately how it does, or writes anew what it registered, or told at a time that
    is still to come. Whether it does that is waited for, as long as it may take; a dry run does not wait.
    """
    found = {one.key: one for one in registrations(store) if (one.registration.node or one.key) == name}
    status = None if name.startswith(PREFIX) else _status(store, clock, check_node(name))
    etags = {key: one.etag for key, one in found.items()}
    # Last what names the node: whoever is killed before finds it again.
    if status is not None:
        etags[node_key(name)] = status.etag
    waits_s = [one.registration.lease_s for one in found.values()] + ([status.wait_s] if status is not None else [])
    if not is_dry_run:
        _wait_for_life(store, clock, name, etags, max(waits_s, default=0.0), say)
        if status is not None:
            store.delete(swap_key(name))  # nobody takes on what it was asked
        for key, etag in etags.items():
            store.delete(key, if_match=etag)
    return list(etags)


def _wait_for_life(
    store: Store, clock: Clock, name: str, etags: dict[str, str], wait_s: float, say: Callable[[str], None]
) -> None:
    """Conflict where one of these objects is written anew meanwhile."""
    if not wait_s:
        return
    say(f"it is seen for {wait_s:.0f} s whether {name} renews what it wrote")
    clock.sleep(wait_s)
    for key, etag in etags.items():
        now = next((info.etag for info in store.list(key) if info.key == key), etag)
        if now != etag:
            raise Conflict(f"{name} runs: it renews what it wrote", hint="end it first", key=key)


class _Silent(NamedTuple):
    """What a node said last, and how long it is to be waited whether it says more."""

    etag: str
    wait_s: float = 0.0


def _status(store: Store, clock: Clock, name: str) -> _Silent | None:
    """None where it said nothing. What is damaged is as good as silent: who runs writes it anew."""
    key = node_key(name)
    try:
        fetched = store.get(key, size_max=NODE_STATUS_BYTES_MAX)
    except Missing:
        return None
    assert fetched is not None
    try:
        status = parse_node_status(fetched.data, key)
        silent_s = age_s(status, clock)
    except ValueError:
        return _Silent(fetched.etag)
    except Corrupt:
        return _Silent(fetched.etag)
    if silent_s < -silence_s(status):
        return _Silent(fetched.etag, silence_s(status))
    if is_live(status, silent_s):
        raise Conflict(
            f"{name} runs: it told {max(silent_s, 0):.0f} s ago how it does",
            hint="end it first (SIGTERM, or boxlink launch ROLE --local DIR --stop); one that was killed is taken for "
            f"gone {silence_s(status):.0f} s after its last word",
            key=key,
        )
    return _Silent(fetched.etag)
