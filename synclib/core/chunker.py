"""Cutting large files by content. Parameters are part of the format: docs/format/chunk.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from pyfastcdc import FastCDC

from synclib.core.entry import CHUNK_BYTES_MAX

_MIN, _AVERAGE = 64 << 10, 256 << 10


def cut(stream: IO[bytes]) -> Iterator[bytes]:
    """The chunks of a stream, in order: all of it in one piece if it is no longer than a chunk may be."""
    first = stream.read(CHUNK_BYTES_MAX + 1)
    if len(first) <= CHUNK_BYTES_MAX:
        if first:
            yield first
        return
    chunker = FastCDC(_AVERAGE, min_size=_MIN, max_size=CHUNK_BYTES_MAX, normalized_chunking=1)
    for chunk in chunker.cut_stream(_Joined(first, stream)):
        yield bytes(chunk.data)


class _Joined:
    """The bytes already read, then the rest of the stream."""

    def __init__(self, first: bytes, rest: IO[bytes]) -> None:
        self._first = memoryview(first)
        self._rest = rest

    def read(self, length: int) -> bytes:
        if self._first:
            piece, self._first = self._first[:length], self._first[length:]
            return bytes(piece)
        return self._rest.read(length)
