"""How the processes of a local node have ended, as its ``boxlink up`` logged it: why it does not get ready."""

from __future__ import annotations

import json
import os

from synclib.disk.regular import open_regular
from tools.fleet.node_file import LocalNode

_TAIL_BYTES = 64 << 10


def last_ends(node: LocalNode) -> str:
    """Which process ended lately other than it was asked to, how often, and how the last time; empty where none did."""
    found: dict[str, tuple[int, str]] = {}
    for line in _tail(node).splitlines():
        try:
            said = json.loads(line)
            if said["event"] == "ended" and (how := said.get("signal") or said.get("code")):
                name = str(said["process"])
                found[name] = found.get(name, (0, ""))[0] + 1, f"signal {how}" if "signal" in said else f"code {how}"
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # the first of them is cut
    times = {1: "once", 2: "twice"}
    return ", ".join(f"{name} ended {times.get(n, f'{n} times')}, with {how}" for name, (n, how) in found.items())


def _tail(node: LocalNode) -> bytes:
    try:
        descriptor = open_regular(node.data / "log" / f"up-{node.pid}.log")
        with open(descriptor, "rb") as file:
            file.seek(max(os.fstat(descriptor).st_size - _TAIL_BYTES, 0))
            return file.read(_TAIL_BYTES)
    except OSError:
        return b""
