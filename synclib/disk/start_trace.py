"""What start-ups need of a cache first, as a file beside it: found without a listing, and without the store; it stays
when room is made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from synclib.core.entry import ADDRESS_UNIT
from synclib.core.extent_map import Extent
from synclib.core.frame import DECODE_ERRORS, pack_frame, unpack_frame
from synclib.core.trace import TOUCHES_MAX
from synclib.disk.atomic import write_atomic
from synclib.disk.faults import disk_errors
from synclib.errors import BoxlinkError

_MAGIC = b"BXLY"
_NAME = "start-trace"

# (milliseconds since a start, extent)
Found = Sequence[tuple[int, Extent]]


class StartTrace(msgspec.Struct, array_like=True, frozen=True):
    """Of the content, in its packs, that has that word: what the dataset's traces name, and what this node read at its
    last start. A few megabytes at most."""

    word: str = ""
    told: Found = ()
    own: Found = ()

    def merged(self) -> list[tuple[int, Extent]]:
        """Each extent once, in the order of when it was first needed."""
        found: dict[int, tuple[int, Extent]] = {}
        for at_ms, extent in sorted([*self.told, *self.own], key=lambda item: item[0]):
            found.setdefault(extent.position, (at_ms, extent))
        return list(found.values())


def read_start_trace(directory: Path) -> StartTrace:
    """An empty one where there is none that reads: it is advice, and comes again from the store."""
    try:
        return msgspec.msgpack.decode(unpack_frame(_MAGIC, (directory / _NAME).read_bytes()), type=StartTrace)
    except (OSError, BoxlinkError, *DECODE_ERRORS):
        return StartTrace()


def write_start_trace(directory: Path, trace: StartTrace) -> None:
    """Durable when it returns; what is too much is left out, the last first."""
    trace = StartTrace(trace.word, trace.told[:TOUCHES_MAX], trace.own[:TOUCHES_MAX])
    with disk_errors():
        write_atomic(directory / _NAME, pack_frame(_MAGIC, msgspec.msgpack.encode(trace)))


class Spared:
    """Which chunks of the cache in ``directory`` stay whatever else is read: the first ones that a start-up needs."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _NAME
        self._seen: tuple[int, int, int] | None = None
        self._found: list[tuple[int, Extent]] = []
        self._units: set[int] = set()

    def refresh(self, bytes_max: int) -> None:
        """See what is kept now, of which no more is spared than that."""
        seen = self._look()
        if seen != self._seen:
            self._seen, self._found = seen, read_start_trace(self._path.parent).merged()
        self._units = set()
        for _, extent in self._found:
            bytes_max -= extent.chunk.plain_bytes
            if bytes_max < 0:
                break
            self._units.add(extent.position // ADDRESS_UNIT)

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def holds(self, unit: int) -> bool:
        """Whether the chunk that begins there is one of them."""
        return unit in self._units
