"""What a node does about one dataset, as a pure function of what it sees (architecture: markers are the interface).

synch.up            publish the directory
synch.active        bring it to the head, or to the seq that is asked for, and keep it there
neither             leave the files, and say so in synch.down
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from synclib.core.markers import Active, Down
from synclib.errors import Conflict


class Do(enum.Enum):
    NOTHING = "nothing"
    PUBLISH = "publish"
    RESTORE = "restore"  # bring the files to the target, then answer
    ANSWER = "answer"  # the files are right: only synch.down is not
    RELEASE = "release"  # nobody asks any more: say that it is not followed
    WITHDRAW = "withdraw"  # synch.down stands over files that are not what it says


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of one dataset at one moment."""

    active: Active | None  # what synch.active asks for; None: there is none
    is_up: bool  # whether synch.up stands there
    down: Down | None  # what synch.down says
    local_seq: int  # the seq whose files stand here; 0: none
    local_digest: str
    is_restoring: bool  # whether a restore began and did not end
    is_checked: bool  # whether this process has looked at every file once
    target_seq: int = 0  # what the store says is wanted: the head, or the seq asked for; 0: not known
    target_digest: str = ""


RELEASED = "not followed: synch.active was removed"


def decide(seen: Seen) -> Do:
    """The next thing to do. Conflict where the store would take the node back (I2)."""
    if seen.down is not None and seen.is_restoring:
        return Do.WITHDRAW
    if seen.is_up:
        return Do.PUBLISH
    if seen.active is None:
        is_answered = seen.down is not None and seen.down.mode != "publish" and seen.down.reason != RELEASED
        return Do.RELEASE if is_answered else Do.NOTHING
    if not seen.target_seq:
        return Do.NOTHING
    is_same = (seen.local_seq, seen.local_digest) == (seen.target_seq, seen.target_digest)
    if seen.active.seq is None and not is_same and seen.target_seq <= seen.local_seq:
        raise Conflict(
            f"the store's head is at seq {seen.target_seq}, behind or beside seq {seen.local_seq} that stands here",
            hint=f"is it the right store? 'seq={seen.target_seq}' in synch.active takes the older one",
        )
    if not is_same or seen.is_restoring or not seen.is_checked:
        return Do.RESTORE
    down = seen.down
    if down is None or (down.seq, down.digest) != (seen.local_seq, seen.local_digest) or down.mode == "publish":
        return Do.ANSWER
    return Do.ANSWER if down.reason == RELEASED else Do.NOTHING


def poll_delay(poll_s: float, since_change_s: float | None, uniform: float) -> float:
    """Seconds until the head is read again: about a second for two minutes after a change, with jitter of a fifth."""
    base = min(1.0, poll_s) if since_change_s is not None and since_change_s < 120 else poll_s
    return base * (0.8 + 0.4 * uniform)
