"""What an upgrade changes of each node, and the rollout that does it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from synclib.core.machine import Machine
from synclib.core.rollout import NodeSpec, Rollout
from synclib.core.snapshot_tags import parse_tags
from synclib.engine.rollout import plan
from synclib.errors import Conflict, Invalid, Missing
from synclib.store.base import Store
from synclib.volume.base import SnapshotState, VolumeDriver
from tools.fleet.pins import parse_pins
from tools.fleet.swap_fleet import standing

if TYPE_CHECKING:
    from tools.fleet.ec2_fleet import Ec2Fleet
    from tools.fleet.local_fleet import LocalFleet


@dataclass(frozen=True)
class Change:
    """``swap``: the dataset whose volumes are swapped; empty where new nodes take the place of old ones."""

    release: str | None
    pins: Mapping[str, int]
    snapshot: str
    values: Mapping[str, str]
    swap: str = ""
    machine: Machine | None = None

    @classmethod
    def of(
        cls,
        release: str | None,
        seq: str | None,
        snapshot: str,
        values: Mapping[str, str],
        *,
        is_swap: bool,
        machine: Machine | None = None,
    ) -> Change:
        """Invalid where nothing is to be changed. ``seq``: DATASET=SEQ."""
        pins = parse_pins([] if seq is None else [seq])
        if release is None and not pins and not values:
            raise Invalid("to what?", hint="--release NAME@SEQ, --seq DATASET=SEQ, --snapshot ID, or --set NAME=VALUE")
        return cls(release, pins, snapshot, values, next(iter(pins)) if is_swap else "", machine)

    def new_of(self, old: NodeSpec) -> NodeSpec:
        """What takes the place of a node, but for its name."""
        change: dict[str, object] = {} if self.release is None else {"release": self.release}
        change |= {} if self.machine is None else {"machine": self.machine}
        change |= {"pins": {**old.pins, **self.pins}, "values": {**old.values, **self.values}}
        return old.model_copy(update={**change, "snapshot": self.snapshot})

    def is_so(self, old: NodeSpec) -> bool:
        new = self.new_of(old)
        # Where a node began is no part of what it is, nor on which machine; which volume it stands on is what a swap is
        # about.
        new = new.model_copy(update={"machine": old.machine})
        return (new if self.swap else new.model_copy(update={"snapshot": old.snapshot})) == old


def seq_of(driver: VolumeDriver, snapshot: str) -> str:
    """DATASET=SEQ of what a complete snapshot holds. Conflict for one that is not complete."""
    found = driver.snapshots([snapshot])
    if not found:
        raise Missing(f"there is no snapshot {snapshot}", hint="boxlink snapshot ls")
    tags = parse_tags(found[0].tags)
    if not tags.is_complete or found[0].state is not SnapshotState.COMPLETED:
        raise Conflict(
            f"snapshot {snapshot} is not complete", hint=f"boxlink snapshot show {snapshot} says what is missing"
        )
    return f"{tags.dataset}={tags.seq}"


def planned(olds: Sequence[NodeSpec], name: str, store: Store, change: Change, size: int, place: str) -> Rollout | None:
    """None where every node is what it should be already. ``olds``: those that run; ``name``: the id that the rollout
    is to have."""
    name = _free(name, olds)
    if change.swap:
        olds = [standing(store, old, change.swap) for old in olds]
    stale = [old for old in olds if not change.is_so(old)]
    if olds and not stale:
        return None
    if change.swap:
        return plan(name, stale, change.new_of, 1, "", place, change.swap)
    numbers = {old.node: number for number, old in enumerate(stale, 1)}

    def new_of(old: NodeSpec) -> NodeSpec:
        return change.new_of(old).model_copy(update={"node": f"{name}-{numbers[old.node]}"})

    return plan(name, stale, new_of, size, "", place)


def _where(rollout: Rollout) -> str:
    """The option that says where its nodes are."""
    _, is_local, directory = rollout.place.partition(":")
    return f"--local {shlex.quote(directory)} " if is_local else ""


def _free(name: str, olds: Sequence[NodeSpec]) -> str:
    """The id, or the next one after which no node is named: a journal that was taken away would be begun anew, and its
    new nodes be those that run."""
    stem, _, number = name.rpartition("-")
    while any(old.node.startswith(f"{stem}-{number}-") for old in olds):
        number = f"{int(number) + 1:06}"
    return f"{stem}-{number}"


def check_ready(nodes: LocalFleet | Ec2Fleet, rollout: Rollout) -> None:
    """Conflict where an old node is not ready now: it could not be taken back to."""
    olds = [step.old for step in rollout.steps]
    for name, view in nodes.look(olds).items():
        if not view.is_ready:
            raise Conflict(
                f"{name} is not ready as it is: {view.why}",
                hint="an upgrade replaces nodes that serve and are registered; mend it, or stop it",
            )


def check_same(rollout: Rollout, change: Change) -> None:
    """Conflict where what is under way is not this change."""
    for step in rollout.steps:
        # On what machine is asked of whoever begins it, and stands in the journal for who goes on.
        known = {"node": step.new.node, **({} if change.machine is not None else {"machine": step.new.machine})}
        if rollout.swap != change.swap or change.new_of(step.old).model_copy(update=known) != step.new:
            raise Conflict(
                f"{rollout.id} is under way, to something else",
                hint=f"finish it with its own options, or boxlink upgrade {rollout.role} {_where(rollout)}--abort",
            )
