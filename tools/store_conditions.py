"""Whether a store honours conditional writes, asked by each machine that publishes: once a day, or when it prepares it.

A store that did may have been moved to a server that does not; then two publishers would both believe that they had
won, and one would lose its seq without a word.
"""

from __future__ import annotations

import os
from pathlib import Path

from blake3 import blake3

from synclib.clock import ulid_bytes, ulid_text
from synclib.core.lease import Lease, encode_lease
from synclib.core.names import intent_key
from synclib.disk.faults import disk_errors
from synclib.engine.host import Host
from synclib.lazy.dataset import Dataset
from synclib.store.probe import probe_conditions_at

_BELIEVED_S, _SKEW_S = 24 * 3600, 60


def note_conditions(host: Host, url: str, endpoint: str | None) -> None:
    """It was probed just now, and honours them."""
    path = _note(host, url, endpoint)
    with disk_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path)


def check_conditions(host: Host, dataset: Dataset, endpoint: str | None) -> None:
    """Unsupported where the dataset's store does not honour them. ``endpoint``: of its server, where that is not
    Amazon's. A file:// store is our own code."""
    url = dataset.store.url
    if not url.startswith("s3://") or _is_noted(host, url, endpoint):
        return
    key = intent_key(dataset.root, ulid_text(ulid_bytes(host.clock, host.entropy)))
    # As a publisher's own, of one that needs nothing: a collector takes it away if we are killed here.
    now_ns = host.clock.wall_ns()
    lease, other = (encode_lease(Lease(1, host.node, [], at_ns)) for at_ns in (now_ns, now_ns + 1))
    probe_conditions_at(dataset.store, key, lease, other)
    note_conditions(host, url, endpoint)


def _is_noted(host: Host, url: str, endpoint: str | None) -> bool:
    try:
        age_s = host.clock.wall_ns() / 1e9 - _note(host, url, endpoint).stat().st_mtime
    except OSError:
        return False
    return -_SKEW_S <= age_s < _BELIEVED_S


def _note(host: Host, url: str, endpoint: str | None) -> Path:
    return host.state / "conditions" / blake3(os.fsencode(f"{url} {endpoint or ''}")).hexdigest(16)
