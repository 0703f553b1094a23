"""The instances of a role as a fleet that can be rolled (synclib/engine/rollout.py, Fleet).

An instance drains as its machine shuts down: TerminateInstances lets the operating system stop its services first, and
``boxlink up`` among them ends its processes in order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from synclib.core.rollout import NodeSpec, Traffic, View
from synclib.errors import Conflict
from synclib.volume.aws_calls import Calls
from tools.fleet.ec2_instances import Instance, instances, run_instance, tag_instances, terminate
from tools.fleet.instance_request import PINS_TAG, Machine, Start, pins_text, requests
from tools.fleet.pins import parse_pins
from tools.fleet.readiness import Readiness
from tools.fleet.settings_tags import settings_of

_LIVE = ("pending", "running")
_ATTEMPTS = 8


class Ec2Fleet:
    """``machine``: what new instances are. ``store``: its URL."""

    def __init__(
        self,
        ec2: Any,
        readiness: Readiness,
        machine: Machine,
        store: str,
        calls: Calls | None = None,
    ) -> None:
        self._ec2, self._readiness, self._machine = ec2, readiness, machine
        self._store, self._calls = store, calls
        self._draining: set[str] = set()

    def running(self, role: str) -> list[NodeSpec]:
        """What runs of a role, as its instances' tags say. Invalid for a tag that no launch of ours writes."""
        found = {
            instance.tags["boxlink:node"]: instance
            for instance in instances(self._ec2, (), {"boxlink:role": role}, self._calls)
            if instance.state in _LIVE and instance.tags.get("boxlink:node")
        }
        return [
            NodeSpec(
                node=name,
                role=role,
                release=instance.tags.get("boxlink:release", ""),
                pins=parse_pins(instance.tags.get(PINS_TAG, "").split()),
                values=settings_of(instance.tags),
            )
            for name, instance in sorted(found.items())
        ]

    def look(self, specs: Sequence[NodeSpec]) -> dict[str, View]:
        roles = {spec.role for spec in specs}
        there = {
            instance.tags.get("boxlink:node", "")
            for role in roles
            for instance in instances(self._ec2, (), {"boxlink:role": role}, self._calls)
            if instance.state not in ("terminated", "stopped")
        }
        return self._readiness.look(specs, there.__contains__, self._draining)

    def start(self, spec: NodeSpec) -> None:
        """A node that has ended is started again as another instance: EC2 remembers the token of the first."""
        self._draining.discard(spec.node)
        start = Start(
            spec.node,
            spec.role,
            self._store,
            spec.release,
            values=spec.values,
            pins=spec.pins,
            is_from_snapshot=bool(spec.snapshot),
        )
        tries = requests(self._machine, start)
        for attempt in range(_ATTEMPTS):
            try:
                run_instance(self._ec2, [_renamed(request, attempt) for request in tries], self._calls)
            except Conflict:
                continue
            return
        raise Conflict(f"{spec.node} was started and ended {_ATTEMPTS} times", hint="see its console, and its log")

    def check(self, spec: NodeSpec) -> None:
        """Invalid where no instance could be asked for. What its role says is looked at before: ReleaseRoles."""
        start = Start(spec.node, spec.role, self._store, spec.release, values=spec.values, pins=spec.pins)
        requests(self._machine, start)

    def drain(self, spec: NodeSpec) -> None:
        self._draining.add(spec.node)
        terminate(self._ec2, [instance.id for instance in self._of(spec)], self._calls)

    def note_pins(self, spec: NodeSpec) -> None:
        """A running node stays at other seqs from now on: let its instance say so."""
        tag_instances(
            self._ec2, [instance.id for instance in self._of(spec)], {PINS_TAG: pins_text(spec.pins)}, self._calls
        )

    def traffic(self) -> Traffic | None:
        return self._readiness.traffic()

    def clear(self, specs: Sequence[NodeSpec]) -> None:
        """Instances leave nothing."""

    def _of(self, spec: NodeSpec) -> list[Instance]:
        found = instances(self._ec2, (), {"boxlink:node": spec.node}, self._calls)
        return [instance for instance in found if instance.state in _LIVE]


def _renamed(request: Mapping[str, object], attempt: int) -> dict[str, object]:
    if not attempt:
        return dict(request)
    token = hashlib.sha256(f"{request['ClientToken']} {attempt}".encode()).hexdigest()
    return {**request, "ClientToken": token}
