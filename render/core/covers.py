"""The list of a wall's covers, in path order, kept as one string of bytes: a cover costs its path and 8 bytes."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from synclib.core.entry import Entry, Kind
from synclib.errors import Unsupported

# Files whose names promise a picture. What the bytes really hold is seen when the cover is drawn.
SUFFIXES = (b".jpg", b".jpeg", b".png", b".webp", b".gif", b".avif")
COVERS_MAX = 16 << 20


class Covers:
    """Paths of covers by index."""

    def __init__(self) -> None:
        self._paths = bytearray()
        self._stops = array("Q", [0])

    def __len__(self) -> int:
        return len(self._stops) - 1

    def append(self, path: bytes) -> None:
        if len(self) == COVERS_MAX:
            raise Unsupported(f"a wall has room for {COVERS_MAX} covers", hint="publish the covers as several datasets")
        self._paths += path
        self._stops.append(len(self._paths))

    def path(self, index: int) -> bytes:
        """The path of a cover, 0 <= index < len."""
        return bytes(self._paths[self._stops[index] : self._stops[index + 1]])

    def stem(self, index: int) -> bytes:
        """The file's name without its suffix: what stands for a title where there is none, and a catalog's id."""
        return self.path(index).rpartition(b"/")[2].rpartition(b".")[0]


def is_cover(entry: Entry) -> bool:
    """Whether an entry gets a place on the wall."""
    return entry.kind == Kind.FILE and entry.name.lower().endswith(SUFFIXES)


def collect_covers(entries: Iterable[Entry]) -> Covers:
    """The covers among ``entries``, in their order."""
    covers = Covers()
    for entry in entries:
        if is_cover(entry):
            covers.append(entry.path)
    return covers
