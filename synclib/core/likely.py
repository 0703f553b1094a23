"""What a start-up is likely to need of a dataset of which no trace says it yet."""

from __future__ import annotations

from collections.abc import Iterable

from synclib.core.entry import CHUNK_BYTES_MAX, Entry, Kind
from synclib.core.trace import Touch

# Of what stands at the top, this many entries are looked at.
LOOKED_AT = 2000
BYTES_MAX = 8 << 20
_WHOLE_BYTES_MAX = 256 << 10
_END_BYTES = 64 << 10


def likely(top: Iterable[Entry]) -> list[Touch]:
    """Of the files of the topmost folder, the smallest first: the small ones whole, for they are settings, catalogs and
    indexes; of others both ends, in which archives, databases, tables and models say what is in them. No more than
    BYTES_MAX come of it."""
    found: list[Touch] = []
    left = BYTES_MAX
    files = (entry for entry in top if entry.kind == Kind.FILE and entry.size)
    for number, entry in enumerate(sorted(files, key=lambda entry: (entry.size, entry.path))):
        is_small = entry.size <= _WHOLE_BYTES_MAX
        left -= entry.size if is_small else 2 * CHUNK_BYTES_MAX  # what is touched comes with its chunk
        if left < 0:
            break
        if is_small:
            found.append(Touch(entry.path, 0, entry.size, number))
        else:
            found.append(Touch(entry.path, 0, _END_BYTES, number))
            found.append(Touch(entry.path, entry.size - _END_BYTES, _END_BYTES, number))
    return found
