"""Nodes whose volumes are swapped, as a fleet that can be rolled (synclib/engine/rollout.py, Fleet; core/swap.py): here
or on EC2 alike, for all is asked and told by way of the store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

from synclib.clock import Clock
from synclib.core.names import node_key, swap_key
from synclib.core.registration import NODE_STATUS_BYTES_MAX, NodeStatus, parse_node_status
from synclib.core.rollout import NodeSpec, Rollout, Traffic, View
from synclib.core.swap import WISH_BYTES_MAX, Wish, became_of, parse_wish, stands_on
from synclib.errors import Conflict, Corrupt, Missing
from synclib.store.base import Fetched, Store
from tools.fleet.probe import Gap, Probe
from tools.fleet.readiness import Readiness

Look = Callable[[Sequence[NodeSpec]], Mapping[str, View]]


class SwapFleet:
    """``look``: how the nodes do that are to stand so, as the fleet says that they are of. ``gaps``: by node, what was
    seen of each swap."""

    def __init__(self, name: str, dataset: str, store: Store, readiness: Readiness, look: Look, clock: Clock) -> None:
        self._name, self._dataset, self._store, self._readiness = name, dataset, store, readiness
        self._look, self._clock = look, clock
        self._asked: dict[str, str] = {}
        self._probes: dict[str, Probe] = {}
        self.gaps: dict[str, Gap] = {}

    def look(self, specs: Sequence[NodeSpec]) -> dict[str, View]:
        found = self._look(specs)
        return {spec.node: self._with_swap(spec, found[spec.node]) for spec in specs}

    def start(self, spec: NodeSpec) -> None:
        """Ask a node to stand as ``spec`` says, unless it was asked. Conflict where it was asked something else since:
        then it will not do this."""
        wish = self._wish(spec)
        last = _wished(self._store, spec.node)
        if last is None or last.id != wish.id:
            if last is not None and self._asked.get(spec.node) == wish.id:
                raise Conflict(f"it was asked for something else meanwhile: {last.id}", key=swap_key(spec.node))
            # Else somebody who was killed has asked it, and what it does was not seen from its beginning.
            address = self._readiness.address_of(spec.node)
            if address is not None and spec.node not in self._probes:
                self._probes[spec.node] = Probe(address, self._clock)
            self._store.put(swap_key(spec.node), wish.model_dump_json().encode())
        self._asked[spec.node] = wish.id

    def drain(self, spec: NodeSpec) -> None:
        """No node ends."""

    def traffic(self) -> Traffic | None:
        return self._readiness.traffic()

    def clear(self, specs: Sequence[NodeSpec]) -> list[str]:
        """No node ends, and each lets its own volumes go."""
        return []

    def keep(self, rollout: Rollout) -> None:
        """At its end: what the nodes stood on before may go."""
        for step in rollout.steps:
            keep(self._store, step.new.node, rollout.id)

    def _with_swap(self, spec: NodeSpec, view: View) -> View:
        done = became_of(self._wish(spec), _status(self._store, spec.node))
        if not done.is_done:
            return View(is_there=view.is_there, why=done.why, is_refused=done.is_refused)
        if not view.is_ready:
            return view
        probe = self._probes.pop(spec.node, None)
        if probe is not None:
            self.gaps[spec.node] = probe.end()
        gap = self.gaps.get(spec.node)
        return View(is_there=True, is_ready=True, why="", downtime_ms=None if gap is None else round(gap.longest_ms, 1))

    def _wish(self, spec: NodeSpec) -> Wish:
        """What is asked of a node has a name that tells it from what was asked before: by what it is to stand on."""
        seq = spec.pins.get(self._dataset, 0)
        name = f"{self._name}:{spec.snapshot}:{seq}"
        return Wish(id=name, dataset=self._dataset, seq=seq, snapshot=spec.snapshot)


def keep(store: Store, node: str, rollout_id: str) -> None:
    """Nobody will take back what a rollout asked of a node: what it stood on before may go. What another has asked
    since stays as it is."""
    with contextlib.suppress(Missing, Corrupt, Conflict):
        found, wish = _read_wish(store, node)
        if wish.id.startswith(f"{rollout_id}:") and not wish.is_kept:
            kept = wish.model_copy(update={"is_kept": True}).model_dump_json().encode()
            store.put(swap_key(node), kept, if_match=found.etag)


def _wished(store: Store, node: str) -> Wish | None:
    """What a node was asked last; None where it was asked nothing, or what cannot be read."""
    with contextlib.suppress(Missing, Corrupt):
        return _read_wish(store, node)[1]
    return None


def _read_wish(store: Store, node: str) -> tuple[Fetched, Wish]:
    key = swap_key(node)
    found = store.get(key, size_max=WISH_BYTES_MAX)
    assert found is not None
    return found, parse_wish(found.data, key)


def _status(store: Store, node: str) -> NodeStatus | None:
    """What a node says of itself; None where it has said nothing."""
    key = node_key(node)
    try:
        found = store.get(key, size_max=NODE_STATUS_BYTES_MAX)
    except Missing:
        return None
    assert found is not None
    return parse_node_status(found.data, key)


def standing(store: Store, spec: NodeSpec, dataset: str) -> NodeSpec:
    """A node with the snapshot that it stands on, so that it can be taken back to that. Conflict where it stands on
    none: then there is no volume to swap."""
    status = _status(store, spec.node)
    snapshot = "" if status is None else stands_on(status, dataset)[0]
    if not snapshot:
        raise Conflict(
            f"{spec.node} takes the bytes of {dataset} from no volume",
            hint="leave --swap out: then a new node takes its place",
        )
    return spec.model_copy(update={"snapshot": snapshot})
