"""Reading what nodes wrote into the store: their status, registrations and logs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime
from itertools import islice

from synclib.clock import Clock
from synclib.core.fleet import Row, Seen, doubt_s, is_live, may_follow, row_of
from synclib.core.names import check_node, dataset_root, log_prefix, node_key, node_prefix
from synclib.core.registration import NODE_STATUS_BYTES_MAX, Channel, NodeStatus, Registration, parse_node_status
from synclib.engine.logship import read_segment
from synclib.engine.registrations import registrations
from synclib.errors import BoxlinkError, Corrupt, Invalid, Missing
from synclib.lazy.dataset import Dataset
from synclib.store.base import Store, in_spite_of_strangers

NODES_MAX = 10_000
_LINE_MAX = 16 << 10  # a line of JSON that is cut can no longer be read


def fleet_rows(store: Store, clock: Clock, lag_max: int, *, with_logs: bool) -> tuple[list[Row], list[str]]:
    """A row for each node, by name, and what in the store could not be read."""
    problems: list[str] = []
    statuses = _statuses(store, problems)
    served = _registrations(store, problems)
    names = sorted(statuses.keys() | served.keys())
    heads = _heads(store, {name for status in statuses.values() for name in status.seq}, problems)
    rows = []
    for name in names:
        status = statuses.get(name)
        silent_s = 0.0 if status is None else age_s(status, clock)
        line = last_line(store, name) if with_logs else ""
        rows.append(row_of(Seen(name, status, silent_s, served.get(name, {}), line), heads, lag_max))
    return rows, problems


def live_nodes(store: Store, clock: Clock) -> dict[str, NodeStatus]:
    """What those say of themselves that run, by name."""
    statuses = _statuses(store, [])
    return {name: found for name, found in statuses.items() if is_live(found, age_s(found, clock))}


def followers(
    store: Store,
    clock: Clock,
    name: str,
    channel: Channel | None,
    problems: list[str],
    say: Callable[[str], None],
    *,
    is_waited_for: bool,
) -> list[str]:
    """The nodes that run and may follow a channel (None: a damaged one). Of those that are silent, or told at a time
    that is still to come, ``is_waited_for``: whether they say more is seen, and ``say`` is told of it."""
    found = {node: one for node, one in _statuses(store, problems).items() if may_follow(one, name, channel)}
    doubts_s = {node: doubt_s(one, age_s(one, clock)) for node, one in found.items()}
    live = [node for node, one in found.items() if not doubts_s[node] and is_live(one, age_s(one, clock))]
    doubted = {node: wait_s for node, wait_s in doubts_s.items() if wait_s}
    if not live and doubted and is_waited_for:
        keys = {node_key(node): node for node in doubted}
        etags = {info.key: info.etag for info in store.list(node_prefix()) if info.key in keys}
        live = [keys[key] for key in renewing(store, clock, etags, max(doubted.values()), say)]
    return sorted(live)


def renewing(
    store: Store, clock: Clock, etags: Mapping[str, str], wait_s: float, say: Callable[[str], None]
) -> list[str]:
    """Which of these objects (etags by key) are written anew within a time."""
    say(f"it is seen for {wait_s:.0f} s whether {', '.join(sorted(etags))} is written anew")
    clock.sleep(wait_s)
    found: list[str] = []
    for key, etag in etags.items():
        now = next((info.etag for info in store.list(key) if info.key == key), etag)
        if now != etag:
            found.append(key)
    return found


def age_s(status: NodeStatus, clock: Clock) -> float:
    """Since a node said something; negative where its clock is ahead. ValueError where its time is none."""
    return clock.wall_ns() / 1e9 - _seconds(status.at)


def _statuses(store: Store, problems: list[str]) -> dict[str, NodeStatus]:
    found: dict[str, NodeStatus] = {}
    for info in islice(in_spite_of_strangers(store.list(node_prefix()), problems.append), NODES_MAX):
        try:
            name = check_node(info.key.removeprefix(node_prefix()))
            fetched = store.get(info.key, size_max=NODE_STATUS_BYTES_MAX)
            assert fetched is not None
            found[name] = parse_node_status(fetched.data, info.key)
            _seconds(found[name].at)
        except Missing:
            continue
        except (Corrupt, Invalid, ValueError) as error:
            found.pop(info.key.removeprefix(node_prefix()), None)
            problems.append(f"{info.key}: {error}")
    return found


def _registrations(store: Store, problems: list[str]) -> dict[str, dict[str, Registration]]:
    found: dict[str, dict[str, Registration]] = defaultdict(dict)
    for key, _, registration in registrations(store, problems.append, NODES_MAX):
        found[registration.node or key][key] = registration
    return found


def _heads(store: Store, names: set[str], problems: list[str]) -> dict[str, int]:
    heads: dict[str, int] = {}
    for name in sorted(names):
        try:
            heads[name] = Dataset(store, dataset_root(name)).read_head().manifest.seq
        except BoxlinkError as error:
            problems.append(f"{name}: {error.message}")
    return heads


def last_line(store: Store, node: str) -> str:
    """The last whole line that a node sent up; empty where there is none that reads."""
    try:
        infos = list(store.list(log_prefix(node)))
        if not infos:
            return ""
        # The newest of each file; which of the files was written last nothing but their lines could say.
        newest = {info.key.rpartition("/")[0]: info.key for info in infos}
        lines = [_last_of(store, key) for key in newest.values()]
        return max(lines, key=_said_at, default="")[:_LINE_MAX]
    except BoxlinkError:
        return ""


def _last_of(store: Store, key: str) -> str:
    lines = read_segment(store, key).decode("utf-8", "replace").splitlines()
    return lines[-1] if lines else ""


def _said_at(line: str) -> str:
    """Lines of JSON with a field ``at`` in the order of their time; others before them."""
    try:
        return str(json.loads(line)["at"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _seconds(text: str) -> float:
    """Seconds since 1970 of an RFC 3339 time."""
    return datetime.fromisoformat(text).timestamp()
