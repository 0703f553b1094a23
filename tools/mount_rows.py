"""The mounts of this machine as `boxlink status --json` has them: what is mounted where, and how it does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.mount_control import ask
from tools.mount_spec import MountSpec, all_specs
from tools.mounted import forget, is_served

_ASK_S = 2.0
# All of them together: whoever scrapes waits some ten seconds.
_ALL_S = 6.0
_ASK_LEAST_S = 0.05


def mount_rows(state: Path, *, is_clearing: bool) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None, MountSpec]]:
    """Each mount's row, what its worker answered (None where none does), and its spec. No mount is touched.

    ``is_clearing``: what is kept of mounts that were on the cache's file and have ended goes; not while others may be
    making one."""
    deadline = time.monotonic() + _ALL_S
    for directory, spec in all_specs(state):
        is_alive = is_served(spec)
        if spec.is_native and not is_alive:
            if is_clearing:
                forget(directory)  # it was unmounted, or the machine was started anew
            continue
        seconds = min(_ASK_S, max(_ASK_LEAST_S, deadline - time.monotonic()))
        figures = ask(directory, seconds=seconds) if is_alive and not spec.is_native else None
        yield _row(spec, figures, is_alive=is_alive), figures, spec


def _row(spec: MountSpec, figures: dict[str, Any] | None, *, is_alive: bool) -> dict[str, Any]:
    prepared = spec.prepared
    whole = {"hydrated_percent": 100.0} if spec.is_native else {}
    return {
        "dataset": prepared.root.partition("/")[2],
        "seq": prepared.seq,
        "digest": prepared.digest,
        "directory": spec.place,
        "read_at": spec.directory,
        "mode": str(prepared.mode),
        "why": prepared.why,
        "served": "native" if spec.is_native else "daemon",
        "state": "serving" if figures or spec.is_native else "no answer" if is_alive else "dead",
        "keeper": spec.keeper_pid,
        "store": spec.store,
        **whole,
        **(figures or {}),
    }
