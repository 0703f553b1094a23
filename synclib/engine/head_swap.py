"""Replacing the head: the only linearisation point (I5). Making objects of the manifests that only it holds.

Such an object has a name that is fixed and is written without a condition: one that comes late would bring back, in
part, what was collected meanwhile. So it is written only under a lease of its seq (decision 0007).
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from synclib.clock import ulid_bytes, ulid_text
from synclib.core import names
from synclib.core.manifest import (
    FORMER_BYTES_MAX,
    FORMER_MAX,
    RECENT_COMMITS,
    Head,
    decode_head,
    decode_manifest,
    encode_head,
    manifest_digest,
)
from synclib.engine.host import Host
from synclib.engine.lease import intent
from synclib.errors import Ambiguous, Conflict
from synclib.lazy.dataset import Dataset, HeadState

ATTEMPTS = 30


def swap_head(dataset: Dataset, old: HeadState, new: Head, commit: str) -> HeadState:
    """Put ``new`` in the place of ``old``, as ``commit``. Conflict when another was there first, Ambiguous when the
    answer was lost."""
    new = _with_former(old, new)
    new = msgspec.structs.replace(new, commits=[*old.head.commits, commit][-RECENT_COMMITS:])
    key = names.head_key(dataset.root)
    data = encode_head(new)
    # What nobody could read again (a clock before 1970) must not become the head.
    _, manifest = decode_head(data, dataset.root)
    etag = dataset.store.put(key, data, if_absent=old.etag is None, if_match=old.etag)
    return HeadState(new, manifest, etag)


def _with_former(old: HeadState, new: Head) -> Head:
    """A head that keeps the manifest which it replaces: it need not be an object yet (decision 0007)."""
    if old.etag is None or new.manifest == old.head.manifest:
        return new
    former = [*new.former, old.head.manifest]
    if len(former) > FORMER_MAX or sum(map(len, former)) > FORMER_BYTES_MAX:
        raise Conflict("the head has no room for one more manifest", hint="run it again when others are done")
    return msgspec.structs.replace(new, former=former)


def archive(dataset: Dataset, host: Host, head: HeadState) -> HeadState | None:
    """Write the head's own manifest and the former ones in it as objects, and take these out of the head: it is
    returned, None when others have done so.

    Moved when a collector was at work since the head was read.
    """
    frames = [*head.head.former, head.head.manifest]
    holder = intent(dataset, host)
    try:
        holder.take(head, *{decode_manifest(frame).seq for frame in frames})
        for frame in frames:
            put_manifest(dataset, frame)

        def forget(state: HeadState) -> Head | None:
            left = [frame for frame in state.head.former if frame not in frames]
            return None if left == state.head.former else msgspec.structs.replace(state.head, former=left)

        return update_head(dataset, host, forget, holder.check)
    finally:
        holder.end()


def put_manifest(dataset: Dataset, frame: bytes) -> None:
    """Write one as an object; to write it again is to write the same."""
    key = names.manifest_key(dataset.root, decode_manifest(frame).seq, manifest_digest(frame))
    dataset.store.put(key, frame)


def wait_after_conflict(host: Host, attempt: int) -> None:
    host.clock.sleep(host.entropy.uniform() * min(2.0, 0.05 * 2**attempt))


def update_head(
    dataset: Dataset,
    host: Host,
    change: Callable[[HeadState], Head | None],
    check: Callable[[], None] = lambda: None,
    tried: set[str] | None = None,
) -> HeadState | None:
    """Replace the head by what ``change`` makes of it, again with each head that others put meanwhile.

    None when ``change`` says so; while there is anything in ``tried`` then, a write may have been applied all the same,
    or be yet, and what it names has to stay: a head forgets in time who wrote it. ``check`` is called between the
    reading of a head and its replacement. A commit whose answer was lost is recognised by its name in the head; the
    state returned may then be a later one.
    """
    tried = set() if tried is None else tried
    for attempt in range(ATTEMPTS):
        state = dataset.read_head()
        if not tried.isdisjoint(state.head.commits):
            return state
        new = change(state)
        if new is None:
            return None
        if state.head.is_full and new.manifest != state.head.manifest:
            archive(dataset, host, state)
            continue
        check()
        commit = ulid_text(ulid_bytes(host.clock, host.entropy))
        # Whatever the answer: it may be lost, the write may be applied later, and what says that another was there
        # first may mean our own first try.
        tried.add(commit)
        try:
            return swap_head(dataset, state, new, commit)
        except (Conflict, Ambiguous):
            wait_after_conflict(host, attempt)
    raise Conflict(
        f"{dataset.name} changes faster than this can be committed", hint="run it again when others are done"
    )
