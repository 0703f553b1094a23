"""Every entry lies in a directory that is an entry too: a chain for which that does not hold is no tree."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from synclib.core.entry import Entry, Kind
from synclib.errors import Corrupt


def with_parents(entries: Iterable[Entry], top: bytes = b"") -> Iterator[Entry]:
    """All entries below the directory ``top``, in order, as they came; Corrupt at the first whose directory is none.

    The order is that of a depth-first walk, so the directories whose content may still come are a stack: those beside
    the path to the present one, as in a scan.
    """
    pending, children = [top], list[bytes]()
    current: bytes | None = None
    for entry in entries:
        if entry.directory != current:
            pending += reversed(children)
            children = []
            # Directories that are passed over hold nothing.
            while pending and pending[-1] != entry.directory:
                pending.pop()
            if not pending:
                raise no_parent(entry)
            current = pending.pop()
        if entry.kind == Kind.DIRECTORY:
            children.append(entry.path)
        yield entry


def no_parent(entry: Entry) -> Corrupt:
    return Corrupt("an entry lies in what is no directory of its dataset", path=os.fsdecode(entry.path))
