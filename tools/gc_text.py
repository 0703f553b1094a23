"""Why a collection kept what it kept, for people: a line a reason, with when more may go."""

from __future__ import annotations

from collections.abc import Iterator

from synclib.engine.collect import CollectResult
from tools.cli_engine import time_text

_NAMED_MAX = 3
_KEPT_BY = {
    "newest": "as the newest",
    "rule": "by --keep or [gc]",
    "tag": "by tags",
    "lease": "by who reads or publishes",
}


def reasons(done: CollectResult, *, is_dry_run: bool) -> Iterator[str]:
    """Lines without an end."""
    if done.is_replicating:
        yield f"a replication is at work, or was killed: nothing is deleted before it has ended: {_when(done)}"
        return
    if done.kept_by.get("all"):
        yield f"{_seqs(done.kept_by['all'])} kept because neither --keep options nor [gc] let any go"
    elif done.kept_by:
        told = ", ".join(f"{count} {_KEPT_BY[reason]}" for reason, count in done.kept_by.items())
        yield f"{_seqs(sum(done.kept_by.values()))} kept: {told}"
    counts = done.found if is_dry_run else done.swept
    if done.reached and not done.held and not any(number for number, _ in counts.values()):
        yield f"nothing to delete: each of {done.reached} objects is needed by a seq that is kept"
    if done.held:
        yield f"{done.held} {'object more is' if done.held == 1 else 'objects more are'} held: {_when(done)}"


def _when(done: CollectResult) -> str:
    """Who is waited for, and what follows."""
    names = ", ".join(done.waiting_for[:_NAMED_MAX])
    more = len(done.waiting_for) - _NAMED_MAX
    who = f"by {names}{f' and {more} others' if more > 0 else ''}" if names else "by who has ended just now"
    if not done.next_step_ns:
        return f"{who}; the next gc looks again"
    at = time_text(done.next_step_ns)
    if done.is_ended:
        return f"{who}, silent for more than a day; a gc after {at} deletes what is held"
    return (
        f"{who}; gc again when that is done. One that was killed is given up by a gc after {at}, its hold a day later"
    )


def _seqs(count: int) -> str:
    return f"{count} seq is" if count == 1 else f"{count} seqs are"
