"""How long a cold node takes to its first tile, and how little it reads for it (``make demo ARGS=--lazy``)."""

from __future__ import annotations

import json
import time
from typing import Any

from tools.demo.processes import Demo, DemoError

_DRAWN_S_MAX = 60.0


class FirstTile:
    """Told of each step as it is reached; all times are since synch.active was touched."""

    def __init__(self, demo: Demo, dataset_bytes: int) -> None:
        self._demo, self._dataset_bytes = demo, dataset_bytes
        self._asked_ns = (demo.data / "covers/synch.active").stat().st_mtime_ns
        self._down_s = 0.0

    def _since_asked(self) -> float:
        return (time.time_ns() - self._asked_ns) / 1e9

    def down(self) -> None:
        """synch.down is there."""
        self._down_s = self._since_asked()
        found = json.loads((self._demo.data / "covers/synch.down").read_text())
        if found["mode"] != "lazy":
            self._demo.say(f"    {found['reason']}")

    def ready(self, ready: dict[str, Any]) -> None:
        """render serves: fetch a tile of covers at their full size, and say what it took."""
        ready_s = self._since_asked()
        port = int(ready["listen"].rpartition(":")[2])
        wall = json.loads(self._demo.fetch("/wall.json", port)[2])
        self._fetch(f"/tiles/{wall['wall']}/{wall['zoom_max']}/0/0.jpg", port)
        tile_s = self._since_asked()
        self._demo.say(
            f"the first tile: synch.down {self._down_s:.2f} s after synch.active was touched, render ready after "
            f"{ready_s:.2f} s, the tile after {tile_s:.2f} s"
        )
        mounted = self._demo.find_event("sync", "mounted")
        if mounted is None:
            self._demo.say(f"    the node restored all of the {self._dataset_bytes:,} bytes before")
            return
        # The head is read before anything is mounted.
        costs = [{"requests": 1, "round_trips": 1, "bytes_down": 0}, mounted, ready]
        for mount in self._demo.boxlink("status")["mounts"]:
            costs.append({**mount, "requests": sum(mount["requests"].values())})
        requests, trips, size = (
            sum(cost[name] for cost in costs) for name in ("requests", "round_trips", "bytes_down")
        )
        self._demo.say(
            f"    for it node, mount and render asked the store {requests} times, in {trips} round trips at most, for "
            f"{size:,} bytes: {100 * size / self._dataset_bytes:.1f} % of the dataset's {self._dataset_bytes:,}"
        )

    def _fetch(self, path: str, port: int) -> None:
        deadline = time.monotonic() + _DRAWN_S_MAX
        while (answer := self._demo.fetch(path, port))[0] != 200:
            if answer[0] != 503 or time.monotonic() > deadline:
                raise DemoError(f"{path} answers {answer[0]}: {answer[2][:200]!r}")
            time.sleep(0.02)
