"""Cutting window by window, and past holes, is cutting the stream."""

from __future__ import annotations

import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyfastcdc import FastCDC

from synclib.core.chunker import WINDOW_BYTES, cut
from synclib.core.entry import CHUNK_BYTES_MAX


class Bytes:
    """A source with holes where its parts are numbers, which is how long they are."""

    def __init__(self, parts: list[bytes | int]) -> None:
        self.data = b"".join(part if isinstance(part, bytes) else bytes(part) for part in parts)
        self.holes: list[tuple[int, int]] = []
        self.read_bytes = place = 0
        for part in parts:
            length = len(part) if isinstance(part, bytes) else part
            if isinstance(part, int):
                self.holes.append((place, place + length))
            place += length

    def read(self, view: memoryview, offset: int) -> int:
        piece = self.data[offset : offset + len(view)]
        view[: len(piece)] = piece
        self.read_bytes += len(piece)
        return len(piece)

    def zeros_from(self, offset: int) -> int:
        return next((stop - offset for start, stop in self.holes if start <= offset < stop), 0)


def cut_all(source: Bytes) -> list[bytes]:
    """In a window that holds what another file left."""
    batches = cut(source, memoryview(bytearray(b"\xff") * WINDOW_BYTES))
    return [bytes(chunk) for batch in batches for chunk, count in batch for _ in range(count)]


def cut_stream(data: bytes) -> list[bytes]:
    """As docs/format/chunk.md says."""
    if len(data) <= CHUNK_BYTES_MAX:
        return [data] if data else []
    chunker = FastCDC(256 << 10, min_size=64 << 10, max_size=CHUNK_BYTES_MAX, normalized_chunking=1)
    return [bytes(chunk.data) for chunk in chunker.cut_stream(io.BytesIO(data))]


SIZES = st.sampled_from([0, 1, 4096, 65_535, 1_000_000, CHUNK_BYTES_MAX, CHUNK_BYTES_MAX + 1, 5_000_000, 8 << 20])
PARTS = st.lists(
    st.one_of(SIZES, st.tuples(SIZES, st.integers(0, 9)).map(lambda pair: random.Random(pair[1]).randbytes(pair[0]))),
    max_size=5,
)


def test_the_places_to_cut_never_change() -> None:
    """Nor may they: with others, nothing that is published is found again in what was published before."""
    data = random.Random(20261201).randbytes(5_000_000)
    assert [len(chunk) for chunk in cut_all(Bytes([data]))] == [
        307567, 131269, 610365, 493249, 347489, 471255, 262306, 183939, 358170, 291913, 304810, 370408, 370144, 202857,
        294259,
    ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(PARTS)
def test_windows_and_holes_change_nothing(parts: list[bytes | int]) -> None:
    source = Bytes(parts)
    assert cut_all(source) == cut_stream(source.data)


@pytest.mark.parametrize("tail", [b"", b"end"])
def test_a_long_hole_is_hardly_read(tail: bytes) -> None:
    source = Bytes([random.Random(1).randbytes(3_000_000), 200 << 20, tail])
    assert b"".join(cut_all(source)) == source.data
    assert source.read_bytes < 30 << 20
