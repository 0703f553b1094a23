"""A tag: a name for a seq, which retention then spares."""

from __future__ import annotations

import msgspec

from synclib.core.frame import DECODE_ERRORS, pack_frame, unpack_frame
from synclib.errors import Corrupt

MAGIC = b"BXLT"
TAG_BYTES_MAX = 1 << 12


class Tag(msgspec.Struct, frozen=True):
    v: int
    seq: int
    digest: str  # of the tree, so that a tag can be told from one of another history
    at_ns: int


def encode_tag(tag: Tag) -> bytes:
    return pack_frame(MAGIC, msgspec.json.encode(tag))


def decode_tag(data: bytes) -> Tag:
    try:
        tag = msgspec.json.decode(unpack_frame(MAGIC, data), type=Tag)
    except DECODE_ERRORS as error:
        raise Corrupt(f"a tag does not read: {error}") from error
    if tag.v != 1 or not 0 < tag.seq < 1 << 63:
        raise Corrupt("a tag is impossible")
    return tag
