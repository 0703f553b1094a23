"""Waiting for what moves by itself: from a quarter of a second to two between looks, one look for all.

boto3's own waiters look every 15 s and at one thing each; a start of a node has three such waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from synclib.clock import Clock, Entropy
from synclib.errors import Conflict, Corrupt, Missing, Unavailable
from synclib.volume.base import Snapshot, SnapshotState, Volume, VolumeState

POLL_FIRST_S = 0.25
POLL_MAX_S = 2.0


class Named(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Named)


def wait_until(
    look: Callable[[Sequence[str]], Sequence[T]],
    ids: Sequence[str],
    is_done: Callable[[T], bool],
    *,
    clock: Clock,
    entropy: Entropy,
    deadline_s: float,
) -> list[T]:
    """Look at those that are not done until all are; they come back in the order of ``ids``.

    ``look`` gives those that there are. One that is not there may be too new to be seen, and counts as not done.
    ``is_done`` raises where waiting is in vain. Missing when one was never seen until the deadline, Unavailable when
    one was not done by then.
    """
    done: dict[str, T] = {}
    seen: set[str] = set()
    pauses = _Pauses(clock, entropy, deadline_s)
    while True:
        waiting = [each for each in ids if each not in done]
        try:
            found = look(waiting) if waiting else []
        except Unavailable as error:
            pauses.wait_or_raise(error)
            continue
        seen.update(item.id for item in found)
        done.update((item.id, item) for item in found if is_done(item))
        waiting = [each for each in waiting if each not in done]
        if not waiting:
            return [done[each] for each in ids]
        pauses.wait_or_raise(_late(waiting, seen, deadline_s))


def wait_until_gone(
    look: Callable[[Sequence[str]], Sequence[Named]],
    ids: Sequence[str],
    *,
    clock: Clock,
    entropy: Entropy,
    deadline_s: float,
) -> None:
    """Look until none of them is there."""
    pauses = _Pauses(clock, entropy, deadline_s)
    left = list(ids)
    while left:
        try:
            left = [item.id for item in look(left)]
        except Unavailable as error:
            pauses.wait_or_raise(error)
            continue
        if left:
            pauses.wait_or_raise(Unavailable(f"{', '.join(left)} is still there after {deadline_s:.0f} s"))


def volume_is(wanted: VolumeState) -> Callable[[Volume], bool]:
    """For :func:`wait_until`; Conflict when the volume has failed."""

    def is_so(volume: Volume) -> bool:
        if volume.state is VolumeState.ERROR and wanted is not VolumeState.ERROR:
            raise Conflict(
                f"the volume {volume.id} has failed",
                hint="delete it and make it again; if it was made of a snapshot, see whether that can be read",
            )
        return volume.state is wanted

    return is_so


def snapshot_is_completed(snapshot: Snapshot) -> bool:
    """For :func:`wait_until`; Corrupt when the snapshot has failed."""
    if snapshot.state is SnapshotState.ERROR:
        raise Corrupt(
            f"the snapshot {snapshot.id} has failed: its blocks are not what was said of them, or it was left too long",
            hint="the same command again deletes it and makes another",
        )
    return snapshot.state is SnapshotState.COMPLETED


def _late(waiting: Sequence[str], seen: set[str], deadline_s: float) -> Missing | Unavailable:
    unseen = [each for each in waiting if each not in seen]
    if unseen:
        return Missing(f"there is no {', '.join(unseen)}", hint="was it deleted, or is it in another region?")
    return Unavailable(
        f"{', '.join(waiting)} did not get there within {deadline_s:.0f} s",
        hint="the service is slow or the disk is in use; the same command again goes on waiting",
    )


class _Pauses:
    def __init__(self, clock: Clock, entropy: Entropy, deadline_s: float) -> None:
        self._clock = clock
        self._entropy = entropy
        self._deadline = clock.monotonic() + deadline_s
        self._pause_s = POLL_FIRST_S

    def wait_or_raise(self, error: Missing | Unavailable) -> None:
        pause = self._pause_s * (0.75 + self._entropy.uniform() / 2)
        left = self._deadline - self._clock.monotonic()
        if left <= 0:
            raise error
        self._clock.sleep(min(pause, left))
        self._pause_s = min(POLL_MAX_S, self._pause_s * 2)
