"""The nodes of this machine as a fleet that can be rolled (synclib/engine/rollout.py, Fleet)."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from synclib.clock import Clock, Entropy
from synclib.core.rollout import NodeSpec, Traffic, View
from synclib.errors import Invalid, Missing, Unavailable
from synclib.volume.base import VolumeDriver
from tools.fleet.find_role import find_role
from tools.fleet.last_ends import last_ends
from tools.fleet.local_nodes import Wish, check_wish, is_alive, nodes, remove, start, stop
from tools.fleet.local_volumes import release_volumes
from tools.fleet.node_file import LocalNode
from tools.fleet.pins import read_pins
from tools.fleet.proxy_admin import fetch
from tools.fleet.readiness import Readiness

# Longer than the built-in roles take to end by themselves.
DRAIN_S = 90.0


class LocalFleet:
    """Nodes below ``directory``. ``release_directory``: where a release (NAME@SEQ) stands, once it is here.
    ``volumes``: whose volumes a node has; None where they are not this machine's images."""

    def __init__(
        self,
        directory: Path,
        readiness: Readiness,
        environ: Mapping[str, str],
        clock: Clock,
        entropy: Entropy,
        release_directory: Callable[[str], Path | None],
        volumes: Callable[[LocalNode], VolumeDriver | None],
        trust: tuple[Path, ...] = (),
    ) -> None:
        """``trust``: files of the keys that releases which the nodes follow may be signed by."""
        self._directory, self._readiness, self._environ = directory, readiness, environ
        self._clock, self._entropy = clock, entropy
        self._release_directory, self._volumes, self._trust = release_directory, volumes, trust
        self._draining: dict[str, threading.Thread] = {}

    def running(self, role: str) -> list[NodeSpec]:
        """What runs of a role, as it would be started again."""
        return [
            NodeSpec(
                node=node.node,
                role=node.role,
                release=node.release,
                pins=read_pins(node.data),
                values=node.values,
            )
            for node in nodes(self._directory)
            if node.role == role and is_alive(node)
        ]

    def look(self, specs: Sequence[NodeSpec]) -> dict[str, View]:
        known = {node.node: node for node in nodes(self._directory)}
        there = {spec.node for spec in specs if spec.node in known and is_alive(known[spec.node])}
        found = self._readiness.look(specs, there.__contains__, self._draining)
        for spec in specs:
            # A proxy registers nowhere, so it is asked itself; whatever registers has to have.
            if spec.node in there and _is_proxy(known[spec.node]) and (admin := _admin_of(known[spec.node])):
                why = "it drains" if spec.node in self._draining else _ails(admin)
                found[spec.node] = View(is_there=True, is_ready=not why, why=why)
            elif spec.node in there and not found[spec.node].is_ready and (ends := last_ends(known[spec.node])):
                found[spec.node] = replace(found[spec.node], why=f"{found[spec.node].why} ({ends})")
        return found

    def start(self, spec: NodeSpec) -> None:
        if spec.node in self._draining:
            self._draining.pop(spec.node).join()
        start(self._directory, spec.node, self._wish(spec), self._environ, self._clock, self._entropy)

    def check(self, spec: NodeSpec) -> None:
        """Invalid, or Missing, for what would not start."""
        check_wish(self._directory.resolve() / spec.node, self._wish(spec))

    def _wish(self, spec: NodeSpec) -> Wish:
        return Wish(
            self._role_of(spec.role),
            spec.release,
            self._release_directory(spec.release),
            spec.values,
            spec.pins,
            is_from_snapshot=bool(spec.snapshot),
            trust=self._trust if spec.release else (),
        )

    def _role_of(self, role: str) -> str:
        """The file that the nodes here of a role have it from, or its name: what to run is not asked of the store."""
        files = {node.role_file for node in nodes(self._directory) if node.role == role} - {""}
        return min(files, default=role)

    def drain(self, spec: NodeSpec) -> None:
        """In a thread of its own: it takes as long as its requests. Asked once more it only ends as it was asked to."""
        if spec.node in self._draining:
            return
        known = {node.node: node for node in nodes(self._directory)}
        node = known.get(spec.node)
        if node is None:
            return
        thread = threading.Thread(target=stop, args=(node, DRAIN_S), name=f"drain-{spec.node}", daemon=True)
        self._draining[spec.node] = thread
        thread.start()

    def note_pins(self, spec: NodeSpec) -> None:
        """A node that runs here says in its own data directory at which seqs it stays."""

    def traffic(self) -> Traffic | None:
        return self._readiness.traffic()

    def clear(self, specs: Sequence[NodeSpec]) -> list[str]:
        """Their mounts, their volumes, and their directories."""
        known = {node.node: node for node in nodes(self._directory)}
        left: list[str] = []
        for spec in specs:
            node = known.get(spec.node)
            if node is not None and node.role == spec.role and not is_alive(node):
                store = self._environ["BOXLINK_STORE"]
                left += remove(node, functools.partial(release_volumes, self._volumes(node), store, node))
        return left


def _is_proxy(node: LocalNode) -> bool:
    """Whether its role runs a proxy."""
    try:
        role = find_role(node.role_file or node.role, Path(node.release_directory) if node.release_directory else None)
    except (Invalid, Missing):
        return False  # its file is not there any more, or is another one
    return any(os.path.basename(run[0]) == "boxlink" and run[1:2] == ["proxy"] for run in (p.run for p in role.process))


def _admin_of(node: LocalNode) -> str:
    """HOST:PORT of the role's value ``admin``; empty where it has none."""
    port = node.ports.get("admin")
    return f"127.0.0.1:{port}" if port else node.values.get("admin", "")


def _ails(admin: str) -> str:
    """What keeps a proxy from being ready; empty where nothing."""
    try:
        fetch(f"http://{admin}/healthz")
    except Unavailable as error:
        return error.message
    return ""


def environment(store_url: str) -> dict[str, str]:
    """What local nodes get: the store, and settings by their full path."""
    environ = {**os.environ, "BOXLINK_STORE": store_url}
    config = os.environ.get("BOXLINK_CONFIG", "boxlink.toml")
    if os.path.exists(config):
        environ["BOXLINK_CONFIG"] = os.path.abspath(config)
    return environ
