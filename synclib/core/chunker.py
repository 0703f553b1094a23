"""Cutting large files by content. Parameters are part of the format: docs/format/chunk.md.

Where a chunk ends depends only on the bytes from its start on, at most as many as a chunk may have. So a file may be
cut window by window, and a run of zeros that is longer than that is cut again and again at the same length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from pyfastcdc import FastCDC

from synclib.core.entry import CHUNK_BYTES_MAX

_MIN, _AVERAGE = 64 << 10, 256 << 10
WINDOW_BYTES = 8 << 20


class Source(Protocol):
    """The bytes to cut."""

    def read(self, view: memoryview, offset: int) -> int:
        """Fill ``view`` from ``offset`` on; less than all of it only at the end."""

    def zeros_from(self, offset: int) -> int:
        """So many bytes from ``offset`` on are known to be zeros without reading them; 0 if nothing is known."""


def cut(source: Source, window: memoryview) -> Iterator[list[tuple[memoryview, int]]]:
    """The chunks in order, each with how often it repeats; a list's memory is used again for the next one.

    ``window``: WINDOW_BYTES to read into, whatever they hold. All of the source is one chunk if it is no longer than a
    chunk may be.
    """
    offset = filled = 0  # of the window's first byte, and how many bytes it holds
    zeros = _ZeroChunk()
    while True:
        if (count := zeros.count(source.zeros_from(offset))) > 0:
            yield [(zeros.chunk, count)]
            offset, filled = offset + count * len(zeros.chunk), 0
            continue
        filled += source.read(window[filled:], offset + filled)
        is_end = filled < len(window)
        if is_end and offset == 0 and filled <= CHUNK_BYTES_MAX:
            if filled:
                yield [(window[:filled], 1)]
            return
        batch, used = _cut_window(window[:filled], is_end=is_end)
        if batch:
            yield batch
        if is_end:
            return
        rest = filled - used
        window[:rest] = bytes(window[used:filled])
        offset, filled = offset + used, rest


def _chunker() -> FastCDC:
    return FastCDC(_AVERAGE, min_size=_MIN, max_size=CHUNK_BYTES_MAX, normalized_chunking=1)


def _cut_window(window: memoryview, *, is_end: bool) -> tuple[list[tuple[memoryview, int]], int]:
    """The chunks that are sure whatever follows, and how many bytes they are."""
    batch, used = [], 0
    for chunk in _chunker().cut_buf(window):
        if not is_end and len(window) - used < CHUNK_BYTES_MAX:
            break
        batch.append((window[used : used + chunk.length], 1))
        used += chunk.length
    return batch, used


class _ZeroChunk:
    """The chunk that a long run of zeros is cut into."""

    def __init__(self) -> None:
        self.chunk = memoryview(b"")

    def count(self, length: int) -> int:
        """How many such chunks a run of ``length`` zeros surely gives, from a chunk's start on."""
        if length < CHUNK_BYTES_MAX:
            return 0
        if not self.chunk:
            zeros = memoryview(bytes(CHUNK_BYTES_MAX))
            self.chunk = zeros[: next(iter(_chunker().cut_buf(zeros))).length]
        return (length - CHUNK_BYTES_MAX) // len(self.chunk) + 1
