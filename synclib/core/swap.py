"""Swapping the one volume that a node stands on: for where no second node may stand beside it.

An operator's wish is an object in the store, ``swap/<node>``; the node carries it out, and says in ``node/<node>``
which wish it took on last and what became of it. A wish stays there afterwards: a node that is
started anew finds in it where it stood.

    step      waiting -> starting -> done        the node lets its volume go, and goes on with one of the new snapshot
              starting -> undone                 when it is taken back: with the former snapshot, or from the store
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from synclib.core.registration import Dataset, NodeStatus
from synclib.core.rollout import Decision, NodeSpec, Phase, Rollout, Start, State, Step, View, reason_of, rolled_back
from synclib.errors import Corrupt

WISH_BYTES_MAX = 4 << 10
_FROM = re.compile(r"from snapshot (snap-[0-9a-z]{1,64}), seq ([0-9]{1,18})(?:;.*)?", re.DOTALL)
_PASSES = ("unavailable", "conflict", "ambiguous")  # kinds of error that may be gone at the node's next try


class Wish(BaseModel):
    """``swap/<node>``. ``snapshot``: what the volume is to be made of; empty: the node goes on with what it has, or
    from the store. ``seq``: where the dataset is to stand, 0 for its head. ``is_kept``: it will not be taken back, so
    that the former volume may go."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    v: Literal[1] = 1
    id: str = Field(min_length=1, max_length=200)
    dataset: Dataset
    seq: int = Field(ge=0, lt=10**18)
    snapshot: str = Field(default="", pattern=r"^(snap-[0-9a-z]{1,64})?$")
    is_kept: bool = False

    @property
    def words(self) -> str:
        """As ``synch.active`` has it."""
        seq = [f"seq={self.seq}"] if self.seq else []
        return " ".join([*seq, f"from={self.snapshot or 'snapshot'}"])


def parse_wish(data: bytes, key: str) -> Wish:
    try:
        return Wish.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        message = f"a wish to swap: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise Corrupt(message, key=key, hint="see who may write to the store; take that object away") from error


def stands_on(status: NodeStatus, dataset: str) -> tuple[str, int]:
    """(snapshot, seq) of the volume that a node takes a dataset's bytes from, as it says; ("", 0) where it has none."""
    found = _FROM.fullmatch(status.reason.get(dataset, ""))
    return ("", 0) if found is None else (found[1], int(found[2]))


@dataclass(frozen=True, slots=True)
class Swapped:
    """What became of a wish. ``why``: what is still missing; ``is_refused``: that will not come."""

    is_done: bool
    why: str = ""
    is_refused: bool = False


def became_of(wish: Wish, status: NodeStatus | None) -> Swapped:
    """As the node says."""
    if status is None or status.swap != wish.id:
        return Swapped(is_done=False, why="it has not taken the swap on: does it run, and may it read swap/?")
    error = status.errors.get(wish.dataset, "")
    if error:
        return Swapped(is_done=False, why=error, is_refused=error.partition(":")[0] not in _PASSES)
    seq = status.seq.get(wish.dataset, 0)
    if wish.seq and seq != wish.seq:
        return Swapped(is_done=False, why=f"it stands at seq {seq}, not at {wish.seq}")
    snapshot, _ = stands_on(status, wish.dataset)
    # What has every byte of the seq already takes none from a volume.
    if wish.snapshot and snapshot not in ("", wish.snapshot):
        return Swapped(is_done=False, why=f"it stands on {snapshot} still")
    return Swapped(is_done=True)


def swaps_wanted(rollout: Rollout) -> list[NodeSpec]:
    """The nodes that :func:`decide_swap` must see, as they are meant to be."""
    if rollout.state is State.ROLLING_BACK:
        return [step.old for step in _left(rollout)]
    return [step.new for step in _left(rollout)[:1]]


def decide_swap(
    rollout: Rollout, views: Mapping[str, View], waited_s: float, ready_s_max: float, alarm: str
) -> Decision:
    """What to do next, one node after the other (core/rollout.py, decide). A node is asked by starting what it is to
    be: it runs all the while."""
    if rollout.state is State.RUNNING and alarm:
        return Decision(rolled_back(rollout, alarm))
    left = _left(rollout)
    if rollout.state is State.RUNNING:
        if not left:
            return Decision(rollout.model_copy(update={"state": State.DONE}))
        return _forward(rollout, left[0], views, waited_s, ready_s_max)
    if rollout.state is State.ROLLING_BACK:
        if not left:
            return Decision(rollout.model_copy(update={"state": State.ROLLED_BACK}))
        return _back(rollout, left[-1], views, waited_s, ready_s_max)
    return Decision(rollout)


def _forward(rollout: Rollout, step: Step, views: Mapping[str, View], waited_s: float, ready_s_max: float) -> Decision:
    if step.phase is Phase.WAITING:
        return Decision(_moved(rollout, step, Phase.STARTING, None))
    view = views.get(step.new.node, View())
    if view.is_ready:
        return Decision(_moved(rollout, step, Phase.DONE, view.downtime_ms))
    if view.is_refused or waited_s > ready_s_max:
        late = "" if view.is_refused else f" within {ready_s_max:.0f} s"
        return Decision(rolled_back(rollout, f"{step.new.node} did not go on with the new volume{late}: {view.why}"))
    return Decision(rollout, (Start(step.new),))


def _back(rollout: Rollout, step: Step, views: Mapping[str, View], waited_s: float, ready_s_max: float) -> Decision:
    if step.phase is Phase.WAITING:
        return Decision(_moved(rollout, step, Phase.UNDONE, None))
    view = views.get(step.old.node, View())
    if view.is_ready:
        return Decision(_moved(rollout, step, Phase.UNDONE, step.downtime_ms))
    if view.is_refused or waited_s > ready_s_max:
        reason = reason_of(rollout.reason, f"{step.old.node} did not come back: {view.why}")
        return Decision(rollout.model_copy(update={"state": State.FAILED, "reason": reason}))
    return Decision(rollout, (Start(step.old),))


def _left(rollout: Rollout) -> list[Step]:
    end = Phase.UNDONE if rollout.state is State.ROLLING_BACK else Phase.DONE
    return [step for step in rollout.steps if step.phase is not end]


def _moved(rollout: Rollout, moving: Step, phase: Phase, downtime_ms: float | None) -> Rollout:
    moved = moving.model_copy(update={"phase": phase, "downtime_ms": downtime_ms})
    return rollout.model_copy(update={"steps": [moved if step == moving else step for step in rollout.steps]})
