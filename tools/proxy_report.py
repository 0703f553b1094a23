"""What the proxy beside a node answered, for the node's report."""

from __future__ import annotations

from synclib.engine.report import ProxyFigures
from synclib.errors import Unavailable

_DEADLINE_S = 2.0  # the node's other work waits for it
_BYTES_MAX = 4 << 20


def proxy_figures(address: str | None) -> ProxyFigures | None:
    """``address``: its ``--admin``. None where there is none, or it does not tell in time."""
    if address is None:
        return None
    from tools.fleet.proxy_admin import ProxyAdmin

    try:
        traffic = ProxyAdmin(address, _DEADLINE_S, _BYTES_MAX).traffic()
    except (Unavailable, ValueError):  # it may be no proxy that answers there
        return None
    return ProxyFigures(traffic.requests, traffic.failures)
