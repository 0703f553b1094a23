"""An image as an object of the store: pieces, each compressed and with a digest, found by an index at its end.

Normative table: docs/format/image.md.

    header   16 B   magic, version, feature bits
    pieces          zstd, each of 64 KiB of the image (the last may be shorter)
    tail            zstd: what the image is, and the place and digest of each piece
    footer   64 B   place of the tail, its BLAKE3-256, version, magic
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterable, Iterator, Sequence

import msgspec
from blake3 import blake3

from synclib.core import zstd
from synclib.core.erofs import BLOCK_BYTES, IMAGE_BYTES_MAX
from synclib.core.frame import DECODE_ERRORS, VERSION
from synclib.core.tail import open_tail, seal_tail
from synclib.errors import Corrupt

MAGIC = b"BXLI"
PIECE_BYTES = 64 << 10
PIECE_DIGEST_BYTES = 16
_PIECE_STORED_MAX = PIECE_BYTES + (PIECE_BYTES >> 7)
_HEADER = struct.Struct("<4sHHQ")
HEADER_BYTES = _HEADER.size


class PieceInfo(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where a piece is and what it must be."""

    offset: int
    stored_bytes: int
    digest: bytes  # BLAKE3, 16 bytes, of the stored piece


class ImageTail(msgspec.Struct, array_like=True, frozen=True):
    """What is in an image. ``wide``: (first byte, end) of each directory's region that is longer than a piece, by
    position: whoever looks for a name in it needs several places of it, so these are fetched together."""

    image_bytes: int
    inode_count: int
    left_out: int  # entries with attributes that the image cannot hold
    pieces: list[PieceInfo]
    wide: list[tuple[int, int]]

    def span(self, start: int, stop: int) -> range:
        """The pieces that hold the bytes [start, stop) of the image."""
        return range(start // PIECE_BYTES, -(-min(stop, self.image_bytes) // PIECE_BYTES))

    def wide_at(self, position: int) -> tuple[int, int] | None:
        """The long region in which a byte of the image lies."""
        index = bisect.bisect_right(self.wide, (position, IMAGE_BYTES_MAX)) - 1
        return self.wide[index] if index >= 0 and position < self.wide[index][1] else None

    def piece_bytes(self, index: int) -> int:
        """How long a piece is before zstd."""
        return min(PIECE_BYTES, self.image_bytes - index * PIECE_BYTES)


_tail_decoder = msgspec.msgpack.Decoder(ImageTail)


def encode_image(
    plain: Iterable[bytes], inode_count: int, left_out: int, wide: Sequence[tuple[int, int]]
) -> Iterator[bytes]:
    """The object's bytes, in pieces. ``plain``: the image, in pieces of exactly 64 KiB but the last."""
    yield _HEADER.pack(MAGIC, VERSION, 0, 0)
    position, image_bytes = HEADER_BYTES, 0
    pieces: list[PieceInfo] = []
    for piece in plain:
        stored = zstd.compress(piece)
        pieces.append(PieceInfo(position, len(stored), blake3(stored).digest(PIECE_DIGEST_BYTES)))
        position += len(stored)
        image_bytes += len(piece)
        yield stored
    tail = ImageTail(image_bytes, inode_count, left_out, pieces, list(wide))
    yield seal_tail(MAGIC, msgspec.msgpack.encode(tail), position)


def decode_piece(tail: ImageTail, index: int, stored: bytes | memoryview) -> bytes:
    """A piece of the image, verified."""
    info = tail.pieces[index]
    if len(stored) != info.stored_bytes or blake3(stored).digest(PIECE_DIGEST_BYTES) != info.digest:
        raise Corrupt("a piece of an image does not have its digest")
    return zstd.decompress(stored, tail.piece_bytes(index))


def decode_image_tail(data: bytes | memoryview, object_bytes: int, digest: bytes | None = None) -> ImageTail:
    """The index from the last bytes of an image object, which must be exactly tail and footer; ``digest``: BLAKE3-256
    of them."""
    plain, offset = open_tail(MAGIC, "image", data, object_bytes, digest)
    try:
        tail = _tail_decoder.decode(plain)
    except DECODE_ERRORS as error:
        raise Corrupt(f"an image's tail does not decode: {error}") from error
    return _check_tail(tail, offset)


def _check_tail(tail: ImageTail, tail_offset: int) -> ImageTail:
    offset = HEADER_BYTES
    for piece in tail.pieces:
        if piece.offset != offset or not 0 < piece.stored_bytes <= _PIECE_STORED_MAX:
            raise Corrupt("an image's index is impossible")
        offset += piece.stored_bytes
    end = 0
    for first, stop in tail.wide:
        if not end <= first < stop <= tail.image_bytes:
            raise Corrupt("an image's long regions are impossible")
        end = stop
    if (
        offset != tail_offset
        or not 2 * BLOCK_BYTES <= tail.image_bytes <= IMAGE_BYTES_MAX
        or tail.image_bytes % BLOCK_BYTES
        or len(tail.pieces) != -(-tail.image_bytes // PIECE_BYTES)
        or not 0 <= tail.inode_count <= tail.image_bytes
        or not 0 <= tail.left_out <= tail.inode_count
    ):
        raise Corrupt("an image's tail is impossible")
    return tail
