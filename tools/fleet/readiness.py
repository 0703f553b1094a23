"""Whether nodes are ready, as the store, they themselves and the proxy say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence

from synclib.core.registration import REGISTRATION_BYTES_MAX, Registration, parse_proxy_key, parse_registration
from synclib.core.rollout import GONE, NodeSpec, Traffic, View
from synclib.errors import Corrupt, Missing, Unavailable
from synclib.store.base import Store, in_spite_of_strangers
from tools.fleet.proxy_admin import ProxyAdmin, fetch


class Readiness:
    """``proxy``: whose word counts too; None where there is none to ask."""

    def __init__(self, store: Store, proxy: ProxyAdmin | None) -> None:
        self._store, self._proxy = store, proxy
        self._read: dict[str, tuple[str, Registration | None]] = {}  # by key: etag, what it says
        self._known: dict[str, tuple[str, Registration]] = {}  # by node: address, what it said last

    def look(
        self, specs: Sequence[NodeSpec], is_there: Callable[[str], bool], draining: Collection[str]
    ) -> dict[str, View]:
        """``is_there``: whether a node's processes run; ``draining``: who was asked to end. Unavailable while the store
        or the proxy does not answer."""
        registered = self._registered()
        self._known |= registered
        shared = self._sharing(registered)
        takes = None if self._proxy is None else self._proxy.takes()
        found: dict[str, View] = {}
        for spec in specs:
            if not is_there(spec.node):
                found[spec.node] = GONE
                continue
            why = "it drains" if spec.node in draining else _lacking(spec, {**shared, **registered}, takes)
            found[spec.node] = View(is_there=True, is_ready=not why, why=why)
        return found

    def _sharing(self, registered: Mapping[str, tuple[str, Registration]]) -> dict[str, tuple[str, Registration]]:
        """Nodes whose address another one has registered since: both serve there (tools/shared_listener.py)."""
        addresses = {address for address, _ in registered.values()}
        return {node: known for node, known in self._known.items() if known[0] in addresses}

    def address_of(self, node: str) -> str | None:
        """Where a node's server answers, as :meth:`look` saw it last."""
        found = _by_node(self._read)
        return found[node][0] if node in found else None

    def traffic(self) -> Traffic | None:
        """What the proxy counted; None where it does not say."""
        with contextlib.suppress(Unavailable):
            return None if self._proxy is None else self._proxy.traffic()
        return None

    def _registered(self) -> dict[str, tuple[str, Registration]]:
        """(address, registration) by node; what is damaged is nobody's."""
        read: dict[str, tuple[str, Registration | None]] = {}
        for info in in_spite_of_strangers(self._store.list("proxy/"), lambda message: None):
            before = self._read.get(info.key)
            if before is not None and before[0] == info.etag:
                read[info.key] = before
                continue
            with contextlib.suppress(Missing):
                found = self._store.get(info.key, size_max=REGISTRATION_BYTES_MAX)
                assert found is not None
                try:
                    parse_proxy_key(info.key)
                    read[info.key] = found.etag, parse_registration(found.data)
                except Corrupt:
                    read[info.key] = found.etag, None
        self._read = read
        return _by_node(read)


def _by_node(read: Mapping[str, tuple[str, Registration | None]]) -> dict[str, tuple[str, Registration]]:
    return {one.node: (_address(key), one) for key, (_, one) in read.items() if one is not None and one.node}


def _lacking(spec: NodeSpec, registered: Mapping[str, tuple[str, Registration]], takes: Collection[str] | None) -> str:
    """What a node lacks to be ready; empty where nothing."""
    if spec.node not in registered:
        return "it has not registered: its data or its program is not ready"
    address, registration = registered[spec.node]
    if registration.state != "active":
        return "it drains"
    wanted = spec.pins.get(registration.dataset)
    if wanted is not None and registration.seq != wanted:
        return f"it serves seq {registration.seq}, not {wanted}"
    if not registration.settled:
        return "it does not hold yet what the others serve"
    if registration.release != spec.release:
        return f"it runs release {registration.release or 'none'}, not {spec.release or 'none'}"
    try:
        fetch(f"http://{address}/healthz")
        if registration.probe:
            fetch(f"http://{address}{registration.probe}")
    except Unavailable as error:
        return error.message
    return "" if takes is None or address in takes else "the proxy does not send to it yet"


def _address(key: str) -> str:
    ip, port = parse_proxy_key(key)
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"
