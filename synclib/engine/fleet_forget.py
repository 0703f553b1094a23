"""What a node that is gone left in the store is taken away: what it said of itself, was asked, and registered."""

from __future__ import annotations

from collections.abc import Callable

from synclib.clock import Clock
from synclib.core.fleet import is_live, silence_s
from synclib.core.names import check_node, node_key, swap_key
from synclib.core.registration import (
    NODE_STATUS_BYTES_MAX,
    REGISTRATION_BYTES_MAX,
    Registration,
    parse_node_status,
    parse_registration,
)
from synclib.engine.fleet import age_s
from synclib.errors import Conflict, Corrupt, Invalid, Missing
from synclib.store.base import Fetched, Store, in_spite_of_strangers

_PROXY = "proxy/"


def forget_node(store: Store, clock: Clock, name: str, say: Callable[[str], None], *, is_dry_run: bool) -> list[str]:
    """The keys of what a node left, which are deleted; its logs stay. None where nothing is known of it. ``name``: as
    ``boxlink status --fleet`` shows it: for what only registered, and named no node, the key of that.

    Conflict for a node that runs: it told lately how it does, or renews a registration. Whether it does that is waited
    for, as long as its lease is; a dry run does not wait.
    """
    found = _registered(store, name)
    status = None if name.startswith(_PROXY) else _status(store, clock, check_node(name))
    if found and not is_dry_run:
        lease_s = max(registration.lease_s for _, registration in found.values())
        say(f"it is seen for {lease_s:.0f} s whether {name} renews its registration")
        clock.sleep(lease_s)
        now = {info.key: info.etag for info in in_spite_of_strangers(store.list(_PROXY), lambda _: None)}
        for key, (etag, _) in found.items():
            if now.get(key, etag) != etag:
                raise Conflict(f"{name} runs: it renews its registration", hint="end it first", key=key)
    etags = {key: etag for key, (etag, _) in found.items()}
    # Last what names the node: whoever is killed before finds it again.
    if status is not None:
        etags[node_key(name)] = status.etag
    if not is_dry_run:
        if status is not None:
            store.delete(swap_key(name))  # nobody takes on what it was asked
        for key, etag in etags.items():
            store.delete(key, if_match=etag)
    return list(etags)


def _status(store: Store, clock: Clock, name: str) -> Fetched | None:
    """What it said of itself; None where it said nothing. One that is damaged is as good as silent: who runs writes it
    anew."""
    key = node_key(name)
    try:
        fetched = store.get(key, size_max=NODE_STATUS_BYTES_MAX)
        assert fetched is not None
        status = parse_node_status(fetched.data, key)
        silent_s = age_s(status, clock)
    except Missing:
        return None
    except ValueError:
        return fetched
    except Corrupt:
        info = next((info for info in store.list(key) if info.key == key), None)
        return None if info is None else Fetched(b"", info.etag, info.size)
    if is_live(status, silent_s):
        raise Conflict(
            f"{name} runs: it told {silent_s:.0f} s ago how it does",
            hint="end it first (SIGTERM, or boxlink launch ROLE --local DIR --stop); one that was killed is taken for "
            f"gone {silence_s(status):.0f} s after its last word",
            key=key,
        )
    return fetched


def _registered(store: Store, name: str) -> dict[str, tuple[str, Registration]]:
    """(etag, registration) of what a node registered, by key."""
    found: dict[str, tuple[str, Registration]] = {}
    for info in in_spite_of_strangers(store.list(_PROXY), lambda _: None):
        try:
            fetched = store.get(info.key, size_max=REGISTRATION_BYTES_MAX)
            assert fetched is not None
            registration = parse_registration(fetched.data)
        except (Missing, Corrupt, Invalid):
            continue
        if (registration.node or info.key) == name:
            found[info.key] = fetched.etag, registration
    return found
