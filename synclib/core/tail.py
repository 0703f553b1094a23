"""The end of an object that is opened from its end (runs, maps): an index, compressed, then a footer of 64 bytes.

tail           zstd of MessagePack
footer  64 B   place of the tail, its lengths, its BLAKE3-256, version, magic
"""

from __future__ import annotations

import struct

from blake3 import blake3

from synclib.core import zstd
from synclib.core.frame import VERSION, check_version
from synclib.errors import Corrupt

TAIL_PLAIN_MAX = 256 << 20
# zstd makes what it cannot compress longer by less than 1/128.
TAIL_STORED_MAX = TAIL_PLAIN_MAX + (TAIL_PLAIN_MAX >> 7)
_FOOTER = struct.Struct("<QII32sHH4x4s4x")
FOOTER_BYTES = _FOOTER.size


def seal_tail(magic: bytes, plain: bytes, offset: int) -> bytes:
    """The end of an object whose tail begins at ``offset``: tail and footer."""
    stored = zstd.compress(plain)
    return stored + _FOOTER.pack(offset, len(stored), len(plain), blake3(stored).digest(), VERSION, 0, magic)


def open_tail(
    magic: bytes, what: str, data: bytes | memoryview, object_bytes: int, digest: bytes | None
) -> tuple[bytes, int]:
    """(the index, its offset) from the last bytes of an object, which must be exactly tail and footer.

    ``what``: the kind of object, as errors call it. ``digest``: BLAKE3-256 of ``data``, where its parent says it.
    """
    if digest is not None and blake3(data).digest() != digest:
        raise Corrupt(f"a {what}'s tail does not have the digest that names it")
    if len(data) < FOOTER_BYTES:
        raise Corrupt(f"a {what} is too short for its footer")
    offset, stored_bytes, plain_bytes, stored_digest, version, _, found = _FOOTER.unpack_from(
        data, len(data) - FOOTER_BYTES
    )
    check_version(magic, found, version, 0)
    if stored_bytes + FOOTER_BYTES != len(data) or offset + len(data) != object_bytes or plain_bytes > TAIL_PLAIN_MAX:
        raise Corrupt(f"a {what}'s tail is not where its footer says")
    stored = data[:stored_bytes]
    if blake3(stored).digest() != stored_digest:
        raise Corrupt(f"a {what}'s tail does not have its digest")
    return zstd.decompress(stored, plain_bytes), offset


def tail_bytes(magic: bytes, what: str, footer: bytes | memoryview) -> int:
    """How many of an object's last bytes are tail and footer; ``footer``: its last 64."""
    if len(footer) != FOOTER_BYTES:
        raise Corrupt(f"a {what} is too short for its footer")
    _, stored_bytes, _, _, version, _, found = _FOOTER.unpack(footer)
    check_version(magic, found, version, 0)
    if stored_bytes > TAIL_STORED_MAX:
        raise Corrupt(f"a {what}'s tail is impossibly long")
    return int(stored_bytes) + FOOTER_BYTES
