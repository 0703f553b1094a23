"""Images as objects: what is written is read again; hostile ones give an error, never other bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from synclib.core import zstd
from synclib.core.stored_image import (
    HEADER_BYTES,
    MAGIC,
    PIECE_BYTES,
    ImageTail,
    PieceInfo,
    decode_image_tail,
    decode_piece,
    encode_image,
)
from synclib.core.tail import FOOTER_BYTES, open_tail, seal_tail, tail_bytes
from synclib.errors import Corrupt, Unsupported
from tests.property.test_fuzz import bounded, mutations
from tests.samples import sample_stored_image


def read_tail(data: bytes) -> ImageTail:
    return decode_image_tail(data[-tail_bytes(MAGIC, "image", data[-FOOTER_BYTES:]) :], len(data))


def read(data: bytes) -> bytes:
    tail = read_tail(data)
    return b"".join(
        decode_piece(tail, index, data[info.offset : info.offset + info.stored_bytes])
        for index, info in enumerate(tail.pieces)
    )


@given(st.integers(2, 40), st.randoms(use_true_random=False))
def test_round_trip(blocks: int, random: object) -> None:
    image = b"".join(random.randbytes(64) * 64 for _ in range(blocks))  # type: ignore[attr-defined]
    pieces = [image[at : at + PIECE_BYTES] for at in range(0, len(image), PIECE_BYTES)]
    data = b"".join(encode_image(pieces, 7, 3, [(4096, 8192)]))
    tail = read_tail(data)
    assert (read(data), tail.inode_count, tail.left_out) == (image, 7, 3)
    assert tail.wide_at(4095) is None
    assert tail.wide_at(4096) == (4096, 8192)
    assert tail.wide_at(8191) == (4096, 8192)
    assert tail.wide_at(8192) is None
    assert list(tail.span(0, 1)) == [0]
    assert list(tail.span(0, len(image))) == list(range(len(pieces)))


@given(mutations())
def test_hostile_tails_are_an_error_or_a_possible_image(mutate: Callable[[bytes], bytes]) -> None:
    good = sample_stored_image()
    length = tail_bytes(MAGIC, "image", good[-FOOTER_BYTES:])
    plain, offset = open_tail(MAGIC, "image", good[-length:], len(good), None)
    sealed = seal_tail(MAGIC, mutate(plain), offset)
    with bounded(), contextlib.suppress(Corrupt, Unsupported):
        tail = decode_image_tail(sealed, offset + len(sealed))
        assert len(tail.pieces) == -(-tail.image_bytes // PIECE_BYTES)
        assert all(HEADER_BYTES <= piece.offset < offset for piece in tail.pieces)


@given(st.integers(0, 1 << 20), st.integers(0, 7))
def test_a_flipped_bit_of_a_piece_is_seen(place: int, bit: int) -> None:
    data = sample_stored_image()
    tail = read_tail(data)
    (info,) = tail.pieces
    piece = bytearray(data[info.offset : info.offset + info.stored_bytes])
    piece[place % len(piece)] ^= 1 << bit
    with pytest.raises(Corrupt):
        decode_piece(tail, 0, bytes(piece))


def test_a_piece_that_unpacks_to_more_is_refused() -> None:
    bomb = zstd.compress(bytes(64 << 20))
    info = PieceInfo(HEADER_BYTES, len(bomb), blake3(bomb).digest(16))
    with bounded(), pytest.raises(Corrupt):
        decode_piece(ImageTail(8192, 1, 0, [info], []), 0, bomb)


def test_impossible_tails_are_refused() -> None:
    good = read_tail(sample_stored_image())
    for changed in (
        {"image_bytes": 1 << 60},
        {"image_bytes": good.image_bytes + 1},
        {"pieces": []},
        {"pieces": good.pieces * 2},
        {"wide": [(8192, 4096)]},
        {"wide": [(0, 1 << 40)]},
        {"left_out": -1},
    ):
        tail = msgspec.structs.replace(good, **changed)
        end = good.pieces[-1].offset + good.pieces[-1].stored_bytes
        sealed = seal_tail(MAGIC, msgspec.msgpack.encode(tail), end)
        with pytest.raises(Corrupt):
            decode_image_tail(sealed, end + len(sealed))
