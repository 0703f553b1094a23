"""A set of content ids that takes 16 MiB however many it holds; it may say that it has one which it has not."""

from __future__ import annotations

import struct

# Ten million ids make it wrong in 1 of 200 cases, a million hardly ever.
_BITS = 1 << 27
_POSITIONS = struct.Struct("<4I")


class ContentSet:
    """Takes ids whose first 16 bytes are spread evenly, as those of hashes are."""

    def __init__(self) -> None:
        self._bits = bytearray()  # until there is anything in it
        self.count = 0

    def add(self, content: bytes) -> None:
        if not self.count:
            self._bits = bytearray(_BITS // 8)
        self.count += 1
        for position in _POSITIONS.unpack_from(content):
            self._bits[(position % _BITS) >> 3] |= 1 << (position & 7)

    def __contains__(self, content: bytes) -> bool:
        return self.count > 0 and all(
            self._bits[(position % _BITS) >> 3] >> (position & 7) & 1 for position in _POSITIONS.unpack_from(content)
        )
