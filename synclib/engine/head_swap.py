"""Replacing the head: the only linearisation point (I5)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec

from synclib.clock import ulid_bytes, ulid_text
from synclib.core import names
from synclib.core.manifest import RECENT_COMMITS, Head, decode_head, encode_head, manifest_digest
from synclib.engine.host import Host
from synclib.errors import Ambiguous, BoxlinkError, Conflict
from synclib.lazy.dataset import Dataset, HeadState

ATTEMPTS = 30


def swap_head(dataset: Dataset, old: HeadState, new: Head, commit: str) -> HeadState:
    """Put ``new`` in the place of ``old``, as ``commit``. Conflict when another was there first, Ambiguous when the
    answer was lost."""
    new = msgspec.structs.replace(new, commits=[*old.head.commits, commit][-RECENT_COMMITS:])
    key = names.head_key(dataset.root)
    data = encode_head(new)
    # What nobody could read again (a clock before 1970) must not become the head.
    _, manifest = decode_head(data, dataset.root)
    etag = dataset.store.put(key, data, if_absent=old.etag is None, if_match=old.etag)
    return HeadState(new, manifest, etag)


def archive(dataset: Dataset, head: HeadState) -> None:
    """Make the manifest in a committed head an object of its own (decision 0002).

    Its name is its digest, so to write it again is to write the same.
    """
    if head.etag is not None:
        data = head.head.manifest
        dataset.store.put(names.manifest_key(dataset.root, head.manifest.seq, manifest_digest(data)), data)


def archive_later(dataset: Dataset, head: HeadState) -> None:
    """The same for a head that was just put: if it fails now, whoever replaces the head does it."""
    with contextlib.suppress(BoxlinkError):
        archive(dataset, head)


def wait_after_conflict(host: Host, attempt: int) -> None:
    host.clock.sleep(host.entropy.uniform() * min(2.0, 0.05 * 2**attempt))


def update_head(
    dataset: Dataset,
    host: Host,
    change: Callable[[HeadState], Head | None],
    check: Callable[[], None] = lambda: None,
) -> HeadState | None:
    """Replace the head by what ``change`` makes of it, again with each head that others put meanwhile.

    None when ``change`` says so. ``check`` is called between the reading of a head and its replacement. A commit whose
    answer was lost is recognised by its name in the head; the state returned may then be a later one.
    """
    tried: set[str] = set()
    for attempt in range(ATTEMPTS):
        state = dataset.read_head()
        if not tried.isdisjoint(state.head.commits):
            return state
        new = change(state)
        if new is None:
            return None
        check()
        if new.manifest != state.head.manifest:
            archive(dataset, state)
        commit = ulid_text(ulid_bytes(host.clock, host.entropy))
        # Whatever the answer: it may be lost, the write may be applied later, and what says that another was there
        # first may mean our own first try.
        tried.add(commit)
        try:
            done = swap_head(dataset, state, new, commit)
        except (Conflict, Ambiguous):
            wait_after_conflict(host, attempt)
            continue
        if new.manifest != state.head.manifest:
            archive_later(dataset, done)
        return done
    raise Conflict(
        f"{dataset.name} changes faster than this can be committed", hint="run it again when others are done"
    )
