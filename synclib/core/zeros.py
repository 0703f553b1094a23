"""Zeros, which a file need not store: where nothing was written a file has a hole, and reads as zeros (lseek(2))."""

from __future__ import annotations

import functools

from blake3 import blake3

from synclib.core.entry import CHUNK_BYTES_MAX, ChunkRef, Codec

# Shorter ones save no block.
HOLE_BYTES_MIN = 4096
_ZEROS = bytes(CHUNK_BYTES_MAX)
# A chunk of zeros is stored in some 50 bytes a MiB.
_RATIO_MIN = 100


def is_zeros(plain: bytes | memoryview) -> bool:
    """Whether a chunk's bytes may be left a hole. Stored raw, they are not zeros: zstd would have helped."""
    return isinstance(plain, bytes) and len(plain) >= HOLE_BYTES_MIN and plain[0] == 0 and plain == _zeros(len(plain))


def is_hole(chunk: ChunkRef) -> bool:
    """Whether a chunk is known to be zeros by its hash: it need not be fetched."""
    return (
        chunk.codec == Codec.ZSTD
        and chunk.plain_bytes >= HOLE_BYTES_MIN
        and chunk.stored_bytes * _RATIO_MIN < chunk.plain_bytes
        and chunk.hash == _hash_of_zeros(chunk.plain_bytes)
    )


def _zeros(length: int) -> bytes:
    return _ZEROS if length == len(_ZEROS) else _ZEROS[:length]


@functools.lru_cache(maxsize=16)
def _hash_of_zeros(length: int) -> bytes:
    return blake3(_zeros(length)).digest()
