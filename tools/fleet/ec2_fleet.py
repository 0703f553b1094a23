"""The instances of a role as a fleet that can be rolled (synclib/engine/rollout.py, Fleet).

An instance drains as its machine shuts down: TerminateInstances lets the operating system stop its services first, and
``boxlink up`` among them ends its processes in order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from synclib.core.machine import Machine
from synclib.core.rollout import NodeSpec, Traffic, View
from synclib.core.snapshot_tags import store_tag
from synclib.engine.node_volume import release_ended
from synclib.errors import Conflict, Invalid
from synclib.volume.aws_calls import Calls
from synclib.volume.ebs import EbsDriver
from tools.fleet.boot_pins import BootPins
from tools.fleet.ec2_instances import (
    INSTANCE_ID,
    Instance,
    instances,
    real_calls,
    run_instance,
    tag_instances,
    terminate,
)
from tools.fleet.instance_request import PINS_TAG, Start, pins_text, requests, store_of
from tools.fleet.pins import parse_pins
from tools.fleet.readiness import Readiness
from tools.fleet.settings_tags import settings_of

_LIVE, _ENDED = ("pending", "running"), ("terminated", "stopped")
_ATTEMPTS = 8
_NEW_S = 60.0  # for so long a new instance may not be listed (EC2, "Eventual consistency")


class Ec2Fleet:
    """``machine``: what instances are that are not said to be another. ``store``: its URL. ``boots``: what their
    user-data pins, where releases may be unsigned."""

    def __init__(
        self,
        ec2: Any,
        readiness: Readiness,
        machine: Machine | None,
        store: str,
        calls: Calls | None = None,
        boots: BootPins | None = None,
    ) -> None:
        self._boots = boots
        self._ec2, self._readiness, self._machine = ec2, readiness, machine
        self._store, self._calls = store, calls
        self._draining: set[str] = set()
        # By node: when it was asked for last, by us, or by somebody who was killed just before we looked first.
        self._asked: dict[str, float] = {}
        known = calls or real_calls()
        self._clock = known.clock
        self._volumes = EbsDriver(ec2, None, known.clock, known.entropy)  # volumes alone: it reads no block

    def running(self, role: str) -> list[NodeSpec]:
        """What runs of a role, as its instances' tags say. Invalid for a tag that no launch of ours writes."""
        found = {each.tags["boxlink:node"]: each for each in self._of_role(role) if each.state in _LIVE}
        return [
            NodeSpec(
                node=name,
                role=role,
                release=instance.tags.get("boxlink:release", ""),
                pins=parse_pins(instance.tags.get(PINS_TAG, "").split()),
                values=settings_of(instance.tags),
                machine=instance.machine,
            )
            for name, instance in sorted(found.items())
        ]

    def look(self, specs: Sequence[NodeSpec]) -> dict[str, View]:
        listed = self._of_roles(specs)
        there = {each.tags["boxlink:node"] for each in listed if each.state not in _ENDED}
        now = self._clock.monotonic()
        views = self._readiness.look(specs, there.__contains__, self._draining)
        return {
            node: view if view.is_there else replace(view, may_come=now < self._asked.setdefault(node, now) + _NEW_S)
            for node, view in views.items()
        }

    def start(self, spec: NodeSpec) -> None:
        """A node that has ended is started again as another instance: EC2 remembers the token of the first."""
        self._draining.discard(spec.node)
        start = Start(
            spec.node,
            spec.role,
            self._store,
            spec.release,
            "" if self._boots is None else self._boots.of(spec.release),
            values=spec.values,
            pins=spec.pins,
            is_from_snapshot=bool(spec.snapshot),
        )
        tries = requests(self._machine_of(spec), start)
        for attempt in range(_ATTEMPTS):
            try:
                run_instance(self._ec2, [_renamed(request, attempt) for request in tries], self._calls)
            except Conflict:
                continue
            finally:
                self._asked[spec.node] = self._clock.monotonic()
            return
        raise Conflict(f"{spec.node} was started and ended {_ATTEMPTS} times", hint="see its console, and its log")

    def check(self, spec: NodeSpec) -> None:
        """Invalid where no instance could be asked for, or none would boot. ReleaseRoles looks at its role."""
        if self._boots is not None:
            self._boots.check(spec.release)
        start = Start(spec.node, spec.role, self._store, spec.release, values=spec.values, pins=spec.pins)
        requests(self._machine_of(spec), start)

    def _machine_of(self, spec: NodeSpec) -> Machine:
        machine = spec.machine or self._machine
        if machine is None:
            raise Invalid(f"what machine {spec.node} is to be is not known", hint="--image AMI --type TYPE")
        return machine

    def drain(self, spec: NodeSpec) -> None:
        self._draining.add(spec.node)
        terminate(self._ec2, [instance.id for instance in self._of(spec)], self._calls)

    def check_here(self, role: str) -> None:
        """Conflict where no instance of a role was ever seen: elsewhere its nodes would all seem to have ended."""
        if not self._of_role(role):
            raise Conflict(
                f"no instance of role {role} of this store was ever seen here, not even one that has ended",
                hint="is it this region and account that they run in? see AWS_REGION and AWS_PROFILE; if all have "
                "ended for more than an hour, launch one of them again first",
            )

    def note_pins(self, spec: NodeSpec) -> None:
        """A running node stays at other seqs from now on: let its instance say so."""
        tag_instances(
            self._ec2, [instance.id for instance in self._of(spec)], {PINS_TAG: pins_text(spec.pins)}, self._calls
        )

    def traffic(self) -> Traffic | None:
        return self._readiness.traffic()

    def clear(self, specs: Sequence[NodeSpec]) -> list[str]:
        """What runs of these nodes all the same is ended. An instance that ends leaves the volumes that it made to
        start from: those of all that have ended go, of whatever name: a node that was started again had another
        instance before, and EC2 forgets it within the hour."""
        nodes = {spec.node for spec in specs}
        late = [each.id for each in self._of_roles(specs) if each.tags["boxlink:node"] in nodes and each.state in _LIVE]
        terminate(self._ec2, late, self._calls)
        left = release_ended(self._volumes, store_tag(self._store), self._ended)
        return [*(f"instance {each}" for each in late), *(f"volume {volume_id}" for volume_id in left)]

    def _ended(self, ids: frozenset[str]) -> set[str]:
        wanted = sorted(each for each in ids if INSTANCE_ID.fullmatch(each))
        found = instances(self._ec2, wanted, None, self._calls) if wanted else []
        return set(wanted) - {each.id for each in found if each.state != "terminated"}

    def _of_role(self, role: str) -> list[Instance]:
        return self._ours({"boxlink:role": role})

    def _of_roles(self, specs: Sequence[NodeSpec]) -> list[Instance]:
        return [each for role in sorted({spec.role for spec in specs}) for each in self._of_role(role)]

    def _of(self, spec: NodeSpec) -> list[Instance]:
        return [each for each in self._ours({"boxlink:node": spec.node}) if each.state in _LIVE]

    def _ours(self, tags: Mapping[str, str]) -> list[Instance]:
        """Another store's nodes may have the same names."""
        found = instances(self._ec2, (), {**store_of(self._store), **tags}, self._calls)
        return [each for each in found if each.tags.get("boxlink:node")]


def _renamed(request: Mapping[str, object], attempt: int) -> dict[str, object]:
    if not attempt:
        return dict(request)
    token = hashlib.sha256(f"{request['ClientToken']} {attempt}".encode()).hexdigest()
    return {**request, "ClientToken": token}
