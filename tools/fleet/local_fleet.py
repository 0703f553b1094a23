"""The nodes of this machine as a fleet that can be rolled (synclib/engine/rollout.py, Fleet)."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from synclib.clock import Clock, Entropy
from synclib.core.names import check_node
from synclib.core.registration import REGISTRATION_BYTES_MAX, Registration, parse_proxy_key, parse_registration
from synclib.core.rollout import GONE, NodeSpec, Traffic, View
from synclib.errors import Corrupt, Missing, Unavailable
from synclib.store.base import Store
from tools.fleet.local_nodes import Wish, is_alive, nodes, remove, start, stop
from tools.fleet.node_file import LocalNode
from tools.fleet.pins import read_pins, write_pins
from tools.fleet.proxy_admin import ProxyAdmin, fetch

# Longer than the built-in roles take to end by themselves.
DRAIN_S = 90.0


class LocalFleet:
    """Nodes below ``directory``. ``release_directory``: where a release (NAME@SEQ) stands, once it is here."""

    def __init__(
        self,
        directory: Path,
        store: Store,
        environ: Mapping[str, str],
        clock: Clock,
        entropy: Entropy,
        release_directory: Callable[[str], Path | None],
        proxy: ProxyAdmin | None,
    ) -> None:
        self._directory, self._store, self._environ = directory, store, environ
        self._clock, self._entropy = clock, entropy
        self._release_directory, self._proxy = release_directory, proxy
        self._draining: dict[str, threading.Thread] = {}
        self._registrations: dict[str, tuple[str, Registration | None]] = {}  # by key: etag, what it says

    def running(self, role: str) -> list[NodeSpec]:
        """What runs of a role, as it would be started again."""
        return [
            NodeSpec(
                node=node.node,
                role=node.role_file or node.role,
                release=node.release,
                pins=read_pins(node.directory),
                values=node.values,
            )
            for node in nodes(self._directory)
            if node.role == role and is_alive(node)
        ]

    def look(self, specs: Sequence[NodeSpec]) -> dict[str, View]:
        """Unavailable while the store or the proxy does not answer."""
        known = {node.node: node for node in nodes(self._directory)}
        registered = self._registered()
        takes = None if self._proxy is None else self._proxy.takes()
        return {spec.node: self._view(spec, known.get(spec.node), registered, takes) for spec in specs}

    def _view(
        self,
        spec: NodeSpec,
        node: LocalNode | None,
        registered: Mapping[str, tuple[str, Registration]],
        takes: set[str] | None,
    ) -> View:
        if node is None or not is_alive(node):
            return GONE
        if spec.node in self._draining:
            return View(is_there=True, why="it drains")
        if spec.node not in registered:
            return View(is_there=True, why="it has not registered: its data or its program is not ready")
        address, registration = registered[spec.node]
        if registration.state != "active":
            return View(is_there=True, why="it drains")
        wanted = set(spec.pins.values())
        if wanted and registration.seq not in wanted:
            return View(is_there=True, why=f"it serves seq {registration.seq}, not {max(wanted)}")
        if not registration.settled:
            return View(is_there=True, why="it does not hold yet what the others serve")
        if registration.release != spec.release:
            return View(is_there=True, why=f"it runs release {registration.release or 'none'}")
        try:
            fetch(f"http://{address}/healthz")
        except Unavailable as error:
            return View(is_there=True, why=error.message)
        if takes is not None and address not in takes:
            return View(is_there=True, why="the proxy does not send to it yet")
        return View(is_there=True, is_ready=True)

    def _registered(self) -> dict[str, tuple[str, Registration]]:
        """(address, registration) by node; what is damaged is nobody's."""
        read: dict[str, tuple[str, Registration | None]] = {}
        for info in self._store.list("proxy/"):
            before = self._registrations.get(info.key)
            if before is not None and before[0] == info.etag:
                read[info.key] = before
                continue
            with contextlib.suppress(Missing):
                found = self._store.get(info.key, size_max=REGISTRATION_BYTES_MAX)
                assert found is not None
                try:
                    read[info.key] = found.etag, parse_registration(found.data)
                except Corrupt:
                    read[info.key] = found.etag, None
        self._registrations = read
        return {one.node: (_address(key), one) for key, (_, one) in read.items() if one is not None and one.node}

    def start(self, spec: NodeSpec) -> None:
        if spec.node in self._draining:
            self._draining.pop(spec.node).join()
        place = self._directory / check_node(spec.node)
        write_pins(place, spec.pins, is_from_snapshot=bool(spec.snapshot))
        wish = Wish(spec.role, spec.release, self._release_directory(spec.release), spec.values)
        start(self._directory, spec.node, wish, self._environ, self._clock, self._entropy)

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

    def traffic(self) -> Traffic | None:
        if self._proxy is None:
            return None
        try:
            return self._proxy.traffic()
        except Unavailable:
            return None

    def clear(self, specs: Sequence[NodeSpec]) -> None:
        """Take away what nodes that have ended leave here."""
        known = {node.node: node for node in nodes(self._directory)}
        for spec in specs:
            if spec.node in known and not is_alive(known[spec.node]):
                remove(known[spec.node])


def _address(key: str) -> str:
    ip, port = parse_proxy_key(key)
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"


def environment(store_url: str) -> dict[str, str]:
    """What local nodes get: the store, and settings by their full path."""
    environ = {**os.environ, "BOXLINK_STORE": store_url}
    config = os.environ.get("BOXLINK_CONFIG", "boxlink.toml")
    if os.path.exists(config):
        environ["BOXLINK_CONFIG"] = os.path.abspath(config)
    return environ
