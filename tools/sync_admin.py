"""The side door of ``boxlink sync``: /healthz and /metrics, answered by a thread of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proxy.admin import Page, Pages, json_page, serve_admin
from synclib.clock import Clock
from synclib.engine.node import Node
from synclib.errors import Invalid, Unavailable
from synclib.store.meter import Meter
from tools.addresses import show_address
from tools.mount_rows import mount_rows
from tools.sync_metrics import Seen, exposition

_START_S = 10.0


class SyncAdmin:
    """What can be asked of a node's daemon."""

    def __init__(self, node: Node, meter: Meter, clock: Clock, state: Path, data: Path) -> None:
        self._node, self._meter, self._clock = node, meter, clock
        self._state, self._data = state, data
        self._started_at = clock.wall_ns() / 1e9

    def pages(self) -> Pages:
        return {b"/healthz": self._health, b"/metrics": self._metrics}

    def _health(self) -> Page:
        """200 while it advances, else 503 with what does not."""
        late = self._node.late()
        failed = {
            name: int(one.errors.total())
            for name, one in self._node.figures().datasets.items()
            if one.failed_at is not None
        }
        return json_page({"is_advancing": not late, "stuck": late, "failing": failed}, 503 if late else 200)

    async def _metrics(self) -> Page:
        mounts = await asyncio.to_thread(self._mounts)  # one of them may take its time to answer, or not to
        seen = Seen(
            self._node.figures(),
            self._meter,
            mounts,
            self._clock.wall_ns() / 1e9,
            self._started_at,
            self._node.late(),
        )
        return 200, "text/plain; version=0.0.4; charset=utf-8", exposition(seen)

    def _mounts(self) -> Sequence[dict[str, Any]]:
        """Those below this daemon's data directory."""
        top = os.path.realpath(self._data) + os.sep
        return [row for row, _, spec in mount_rows(self._state, is_clearing=False) if spec.target.startswith(top)]


def serve_in_thread(pages: Pages, host: str, port: int) -> str:
    """Answer on an address until the process ends; the address, with the port that was taken. Invalid where it cannot
    be listened on."""
    told: list[object] = []
    is_told = threading.Event()

    async def serve() -> None:
        try:
            server = await serve_admin(pages, host, port)
        except (OSError, socket.gaierror) as error:
            told.append(error)
            is_told.set()
            return
        told.append(show_address(*server.sockets[0].getsockname()[:2]))
        is_told.set()
        await server.serve_forever()

    threading.Thread(target=lambda: asyncio.run(serve()), name="admin", daemon=True).start()
    if not is_told.wait(_START_S):
        raise Unavailable("the admin address does not come up")
    if isinstance(told[0], OSError):
        raise Invalid(f"--admin cannot be listened on: {told[0].strerror or told[0]}", hint="choose a free address")
    return str(told[0])
