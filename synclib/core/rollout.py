"""A rolling upgrade, as its journal has it, and what to do next: each old node is replaced by a new one, in batches.

    step      waiting -> starting -> draining -> done          the new node runs and is ready before the old one drains
              any of them -> undone                            when it is rolled back: the old one runs again, alone
    rollout   running -> done
              running -> paused -> running                     an operator's word
              running, paused -> rolling back -> rolled back, or failed where an old node does not come back

The journal is written before anything is done, and whatever is done may be done again: a driver that is killed leaves
a journal from which any other goes on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from synclib.core.machine import Machine
from synclib.core.names import upgrade_key
from synclib.core.registration import Dataset
from synclib.core.role import Name as RoleName
from synclib.errors import Corrupt

JOURNAL_BYTES_MAX = 1 << 20
_DAMAGED = "see who may write to the store; take that object away, and look which nodes run"
NODES_MAX = 1000
REASON_MAX = 1000
_ID = re.compile(r"[0-9]{1,18}")
_IDS_MAX = 10**18


def _one_line(text: str) -> str:
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


# Texts that are shown as a part of a line: none may begin a line of its own, which would be taken for ours.
_Line = Annotated[str, AfterValidator(_one_line)]


class Phase(StrEnum):
    WAITING = "waiting"
    STARTING = "starting"
    DRAINING = "draining"
    DONE = "done"
    UNDONE = "undone"


class State(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    ROLLING_BACK = "rolling back"
    DONE = "done"
    ROLLED_BACK = "rolled back"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        return self in (State.DONE, State.ROLLED_BACK, State.FAILED)


class NodeSpec(BaseModel):
    """What is needed to start a node, the same each time. ``role``: its name, never a file: whoever can write to the
    store would say what runs here. ``release``: NAME@SEQ, empty for the program that runs here; ``pins``: datasets that
    stand at a seq; ``snapshot``: where it begins: the snapshot of one of them; ``machine``: of a cloud's: so it is
    started again as it was, by whomever."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    node: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*\.?$", max_length=128)
    role: RoleName
    release: str = Field(default="", max_length=160)
    pins: dict[Dataset, Annotated[int, Field(ge=1, lt=10**18)]] = {}
    snapshot: str = Field(default="", pattern=r"^(snap-[0-9a-z]{1,64})?$")
    values: dict[str, str] = {}
    machine: Machine | None = None


class Step(BaseModel):
    """One node for another. ``downtime_ms``: of a swap: the longest time that the node's own port went without an
    answer, as it was seen from where the driver ran; None where that was not seen from beginning to end."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    old: NodeSpec
    new: NodeSpec
    batch: int = Field(ge=0)
    phase: Phase = Phase.WAITING
    downtime_ms: float | None = Field(default=None, ge=0)


class Rollout(BaseModel):
    """``upgrade/<id>``. ``swap``: a dataset: the nodes stay, and their volumes of it are swapped (core/swap.py), so
    that old and new of a step have one name. ``epoch`` rises with each driver that takes over: an older one stops.
    ``proxy``: the admin address of the one that was watched first, empty for none, and ``p99_ms_before`` how long it
    waited for the slowest hundredth before any node was changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    v: Literal[1] = 1
    id: str = Field(min_length=1, max_length=160)
    role: RoleName
    place: _Line = Field(default="", max_length=4400)  # where its nodes are: only there it can be gone on with
    swap: Dataset | Literal[""] = ""
    steps: list[Step] = Field(min_length=1, max_length=NODES_MAX)
    state: State = State.RUNNING
    reason: _Line = Field(default="", max_length=REASON_MAX)  # why it is paused, rolled back or failed
    epoch: int = Field(default=1, ge=1)
    driver: _Line = Field(default="", max_length=128)
    proxy: _Line = Field(default="", max_length=300)
    p99_ms_before: float | None = Field(default=None, ge=0)
    at: _Line = Field(max_length=64)

    def batch(self) -> int:
        """The batch that is at work: the first with a step that is not done; behind the last one where all are."""
        return next((step.batch for step in self.steps if step.phase is not Phase.DONE), self.steps[-1].batch + 1)


def ids_of(role: str, names: Iterable[str]) -> tuple[str, str]:
    """The newest id of a role's journals among ``names``, empty for none, and the one after it. Corrupt where there
    is none after it."""
    prefix = f"{role}-"
    ids = {int(name.removeprefix(prefix)): name for name in names if _ID.fullmatch(name.removeprefix(prefix))}
    newest = max(ids, default=0)
    if newest + 1 >= _IDS_MAX:
        raise Corrupt(
            "an upgrade's journal has the last number that there is", key=upgrade_key(ids[newest]), hint=_DAMAGED
        )
    return ids.get(newest, ""), f"{role}-{newest + 1:06}"


def parse_rollout(data: bytes, key: str) -> Rollout:
    """A journal that is what its key says."""
    try:
        found = Rollout.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        message = f"an upgrade's journal: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise Corrupt(message, key=key, hint=_DAMAGED) from error
    if key != upgrade_key(found.id) or found.id.rpartition("-")[0] != found.role:
        raise Corrupt("an upgrade's journal is another's", key=key, hint=_DAMAGED)
    if any(spec.role != found.role for step in found.steps for spec in (step.old, step.new)):
        raise Corrupt("an upgrade's journal is of several roles", key=key, hint=_DAMAGED)
    if found.state is State.RUNNING and any(step.phase is Phase.UNDONE for step in found.steps):
        raise Corrupt("an upgrade's journal goes on and back at once", key=key, hint=_DAMAGED)
    return found


def batches(count: int, size: int) -> Iterator[int]:
    """The batch of each of ``count`` steps: one node alone, then a tenth, then ``size`` at a time."""
    sizes = [1, max(1, count // 10)]
    number = 0
    while count > 0:
        now = min(count, sizes[number] if number < len(sizes) else size)
        now = min(now, size)
        yield from [number] * now
        count -= now
        number += 1


@dataclass(frozen=True, slots=True)
class View:
    """What is seen of a node. ``is_there``: its processes run, or nothing says that they do not; ``is_ready``: it
    answers, and the proxy sends to it; ``why``: what is missing for that; ``is_refused``: it will not come.
    ``may_come``: it is not seen, but may have been asked for so lately that it could not be: it is not gone yet.
    ``downtime_ms``: of a swap (Step)."""

    is_there: bool = False
    is_ready: bool = False
    why: str = "it does not run"
    is_refused: bool = False
    may_come: bool = False
    downtime_ms: float | None = None


GONE = View()


@dataclass(frozen=True, slots=True)
class Start:
    spec: NodeSpec


@dataclass(frozen=True, slots=True)
class Drain:
    """End a node in order: it takes no new requests, finishes those it has, and ends."""

    spec: NodeSpec


Effect = Start | Drain


@dataclass(frozen=True, slots=True)
class Decision:
    """``rollout`` goes into the journal before ``effects`` are carried out; either may be as before, or empty."""

    rollout: Rollout
    effects: tuple[Effect, ...] = ()


def views_wanted(rollout: Rollout) -> list[NodeSpec]:
    """The nodes that :func:`decide` must see."""
    if rollout.state is State.ROLLING_BACK:
        return [spec for step in rollout.steps for spec in (step.old, step.new)]
    steps = _at_work(rollout)
    return [spec for step in steps for spec in (step.old, step.new)] + (serving(rollout) if _is_between(steps) else [])


def serving(rollout: Rollout) -> list[NodeSpec]:
    """The new nodes that have taken the place of their old ones."""
    return [step.new for step in rollout.steps if step.phase is Phase.DONE]


def decide(rollout: Rollout, views: Mapping[str, View], waited_s: float, ready_s_max: float, alarm: str) -> Decision:
    """What to do next. ``waited_s``: how long nothing has changed in the journal. ``alarm``: what the proxy's figures
    say against going on; empty where they say nothing."""
    if rollout.state is State.RUNNING:
        return _forward(rollout, views, waited_s, ready_s_max, alarm)
    if rollout.state is State.ROLLING_BACK:
        return _back(rollout, views, waited_s, ready_s_max)
    return Decision(rollout)


def gone_of(rollout: Rollout) -> list[NodeSpec]:
    """The nodes that are no longer needed at a rollout's end; none of a swap, whose nodes stay."""
    if rollout.swap or rollout.state not in (State.DONE, State.ROLLED_BACK):
        return []
    return [step.old if rollout.state is State.DONE else step.new for step in rollout.steps]


def rolled_back(rollout: Rollout, reason: str) -> Rollout:
    """The rollout when it turns round. One that is being rolled back, or is at its end, stays as it is."""
    if rollout.state not in (State.RUNNING, State.PAUSED):
        return rollout
    return rollout.model_copy(update={"state": State.ROLLING_BACK, "reason": reason_of(reason)})


def reason_of(*texts: str) -> str:
    """Why, as a journal holds it: one line, for what nodes and services say may have several."""
    return _one_line(" ".join("; ".join(text for text in texts if text).split()))[:REASON_MAX]


def _forward(rollout: Rollout, views: Mapping[str, View], waited_s: float, ready_s_max: float, alarm: str) -> Decision:
    steps = _at_work(rollout)
    if alarm:
        return Decision(rolled_back(rollout, alarm))
    if _is_between(steps):
        fallen = [spec for spec in serving(rollout) if not _view(views, spec).is_ready]
        if fallen and waited_s > ready_s_max:
            why = f"{fallen[0].node} was ready, and is not any more: {_view(views, fallen[0]).why}"
            return Decision(rolled_back(rollout, why))
        if fallen:
            return Decision(rollout, tuple(Start(spec) for spec in fallen if not _view(views, spec).is_there))
    if not steps:
        return Decision(rollout.model_copy(update={"state": State.DONE}))
    if _is_between(steps):
        return Decision(_moved(rollout, steps, Phase.STARTING))
    starting = [step for step in steps if step.phase is Phase.STARTING]
    if starting:
        lacking = [step for step in starting if not _view(views, step.new).is_ready]
        if not lacking:
            return Decision(_moved(rollout, starting, Phase.DRAINING))
        if waited_s > ready_s_max:
            first = lacking[0].new.node
            why = _view(views, lacking[0].new).why
            return Decision(rolled_back(rollout, f"{first} was not ready within {ready_s_max:.0f} s: {why}"))
        return Decision(rollout, tuple(Start(step.new) for step in lacking if not _view(views, step.new).is_there))
    draining = [step for step in steps if step.phase is Phase.DRAINING]
    # A new one that fails while the old one goes cannot be waited for in vain: the old ones are still known.
    gone = [step for step in draining if not _view(views, step.old).is_there]
    if gone:
        return Decision(_moved(rollout, gone, Phase.DONE))
    return Decision(rollout, tuple(Drain(step.old) for step in draining))


def _back(rollout: Rollout, views: Mapping[str, View], waited_s: float, ready_s_max: float) -> Decision:
    left = [step for step in rollout.steps if step.phase is not Phase.UNDONE]
    if not left:
        return Decision(rollout.model_copy(update={"state": State.ROLLED_BACK}))
    undone = [step for step in left if _view(views, step.old).is_ready and _is_gone(_view(views, step.new))] + [
        step for step in left if step.phase is Phase.WAITING
    ]
    if undone:
        return Decision(_moved(rollout, undone, Phase.UNDONE))
    lacking = [step for step in left if not _view(views, step.old).is_ready]
    if lacking and waited_s > ready_s_max:
        why = f"{lacking[0].old.node} did not come back within {ready_s_max:.0f} s: {_view(views, lacking[0].old).why}"
        failed = {"state": State.FAILED, "reason": reason_of(rollout.reason, why)}
        return Decision(rollout.model_copy(update=failed))
    effects: list[Effect] = []
    for step in left:
        old, new = _view(views, step.old), _view(views, step.new)
        if not old.is_there:
            effects.append(Start(step.old))
        # The new one serves until the old one does again; one that never was ready serves nobody.
        if new.is_there and (old.is_ready or not new.is_ready):
            effects.append(Drain(step.new))
    return Decision(rollout, tuple(effects))


def _is_gone(view: View) -> bool:
    return not view.is_there and not view.may_come


def _at_work(rollout: Rollout) -> list[Step]:
    """The steps of the batch at work that are not done."""
    batch = rollout.batch()
    return [step for step in rollout.steps if step.batch == batch and step.phase is not Phase.DONE]


def _is_between(steps: Sequence[Step]) -> bool:
    """Whether a batch is over and the next, with these steps, has not begun."""
    return all(step.phase is Phase.WAITING for step in steps)


def _view(views: Mapping[str, View], spec: NodeSpec) -> View:
    return views.get(spec.node, GONE)


def _moved(rollout: Rollout, steps: Sequence[Step], phase: Phase) -> Rollout:
    moving = {step.new.node for step in steps}
    return rollout.model_copy(
        update={
            "steps": [
                step.model_copy(update={"phase": phase}) if step.new.node in moving else step for step in rollout.steps
            ]
        }
    )


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a proxy counted: requests, those answered 5xx, and the slowest hundredth's wait for the first byte."""

    requests: int
    failures: int
    p99_ms: float


def alarm_of(before: Traffic, now: Traffic) -> str:
    """What speaks against going on, of what came since ``before``: failures where there were none to speak of, or
    answers that take several times as long."""
    requests, failures = now.requests - before.requests, now.failures - before.failures
    if failures > max(3, requests // 100):
        return f"{failures} of {requests} requests failed at the proxy"
    if now.p99_ms > 3 * before.p99_ms + 1000:
        return f"the proxy waits {now.p99_ms:.0f} ms for the slowest hundredth, {before.p99_ms:.0f} ms before"
    return ""
