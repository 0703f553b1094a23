"""What is there in place of a path that is not: for the hint of an error, so of a bounded cost."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from synclib.core import names
from synclib.core.entry import Kind
from synclib.lazy.chain import Chain

_NAMES_AT_ONCE = 200
_DEPTH_MAX = 32


class Near(NamedTuple):
    """``directory``: the deepest part of the path that is there; ``lacking``: the name that it does not have;
    ``names``: some that it has, in order: the first ones, and those that share the beginning of the one that is
    lacking. ``is_directory`` is False where that part is no directory: it has no names then."""

    directory: bytes
    lacking: bytes
    names: list[bytes]
    is_directory: bool = True


def near(chain: Chain, path: bytes) -> Near | None:
    """None where the path is there, or is too deep to be looked into."""
    directory = b""
    for name in path.split(b"/")[:_DEPTH_MAX]:
        entry = chain.lookup(names.sort_key(directory, name))
        if entry is None:
            return Near(directory, name, _names(chain, directory, name))
        directory = entry.path
        if entry.kind != Kind.DIRECTORY and directory != path:
            return Near(directory, b"", [], is_directory=False)
    return None


def _names(chain: Chain, directory: bytes, lacking: bytes) -> list[bytes]:
    """A listing may have millions: what is most like the name begins like it, and else it is among the first or not
    found."""
    found: set[bytes] = set()
    stop = names.sort_key(directory, b"")[:-1] + b"\1"
    for length in sorted({0, 1, len(lacking) // 2, max(0, len(lacking) - 1)}):
        start = names.sort_key(directory, lacking[:length])
        some = itertools.islice(chain.entries(start, stop, with_hashes=False), _NAMES_AT_ONCE)
        found.update(entry.name for entry in some)
    return sorted(found)
