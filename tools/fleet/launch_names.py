"""Names of new instances. They are noted before anything is asked of EC2: whoever is killed and runs the same command
again goes on with the same names, and so pays for nothing twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from synclib.clock import Clock, Entropy, ulid_bytes, ulid_text
from synclib.core.names import check_node
from synclib.disk.atomic import write_atomic
from synclib.disk.faults import disk_errors
from synclib.errors import BoxlinkError


@contextmanager
def launch_names(
    state: Path, role: str, count: int, wanted: object, clock: Clock, entropy: Entropy, *, is_dry_run: bool
) -> Iterator[list[str]]:
    """``wanted``: all that is asked for, as JSON has it. The names are forgotten when the block ends without error;
    those of a dry run are the next one's that is none."""
    asked = json.dumps([role, count, wanted], sort_keys=True)
    path = state / "launch" / f"{blake3(asked.encode()).hexdigest(16)}.json"
    names = _noted(path, count)
    if names is None:
        names = [f"{role}-{ulid_text(ulid_bytes(clock, entropy)).lower()}" for _ in range(count)]
        with disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(names).encode())
    yield names
    if not is_dry_run:
        path.unlink(missing_ok=True)


def _noted(path: Path, count: int) -> list[str] | None:
    """What an earlier run noted and did not finish; None where there is nothing of the kind."""
    try:
        found = json.loads(path.read_bytes())
        names = [check_node(str(name)) for name in found]
    except (OSError, ValueError, TypeError, BoxlinkError):
        return None
    return names if len(names) == count else None
