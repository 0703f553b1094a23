"""The one door to Zstandard (RFC 8878)."""

from __future__ import annotations

import threading

import zstandard

from synclib.errors import Corrupt

LEVEL = 3

# Contexts are expensive to make and not safe between threads.
_local = threading.local()


def compress(plain: bytes | memoryview) -> bytes:
    """One frame that states its content size."""
    compressor: zstandard.ZstdCompressor | None = getattr(_local, "compressor", None)
    if compressor is None:
        compressor = _local.compressor = zstandard.ZstdCompressor(LEVEL)
    return compressor.compress(plain)


def decompress(stored: bytes | memoryview, plain_bytes: int) -> bytes:
    """The content of one frame, which must be exactly ``plain_bytes`` long.

    The frame's own claim is checked before anything is allocated, so a hostile frame costs nothing.
    """
    decompressor: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    try:
        claimed = zstandard.frame_content_size(stored)
        if claimed != plain_bytes:
            raise Corrupt(f"a zstd frame claims {claimed} bytes where {plain_bytes} were promised")
        # Trailing bytes after the frame would be ignored by the library; they are not ours, so refuse.
        plain = decompressor.decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Corrupt(f"a zstd frame does not decode: {error}") from error
    if len(plain) != plain_bytes:
        raise Corrupt(f"a zstd frame holds {len(plain)} bytes where {plain_bytes} were promised")
    return plain


def content_size(stored: bytes) -> int:
    """How long a frame says that its content is; Corrupt when it says nothing."""
    try:
        size = zstandard.frame_content_size(stored)
    except zstandard.ZstdError as error:
        raise Corrupt(f"a zstd frame does not decode: {error}") from error
    if size < 0:
        raise Corrupt("a zstd frame does not say how long its content is")
    return size
