"""The image of a chain's snap, read from its object as far as it is needed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Executor

from synclib.core.manifest import Attachment
from synclib.core.stored_image import PIECE_BYTES, ImageTail, decode_image_tail, decode_piece
from synclib.errors import Corrupt
from synclib.lazy.mirror import Mirror
from synclib.lazy.not_here import before_waiting
from synclib.store.base import Buffer

# Objects up to this are brought here whole when they are opened: one round trip for all.
_WHOLE_OBJECT_BYTES = 24 << 20
_FIRST_BYTES = 256 << 10  # of others: the superblock and the topmost directories, with the index
# What of a long region is fetched at once, around the place that is read.
_WIDE_BYTES = 16 << 20
_PIECES_KEPT = 512  # 32 MiB


class BaseImage:
    """Bytes of the image at any position, verified. Safe between threads."""

    def __init__(self, item: Attachment, mirror: Mirror, executor: Executor) -> None:
        """Reads the index, and what is soon needed beside it: one round trip, or none where it was read before."""
        self._item, self._mirror = item, mirror
        tail_at = (item.object_bytes - item.tail_bytes, item.object_bytes)
        if not mirror.holds(tail_at, self._decode_tail):
            if item.object_bytes <= _WHOLE_OBJECT_BYTES:
                mirror.fill(executor)
            else:
                mirror.fetch([tail_at, (0, min(_FIRST_BYTES, tail_at[0]))])
        self.tail: ImageTail = mirror.decoded([tail_at], self._decode_tail)[0]
        self.is_here = item.object_bytes <= _WHOLE_OBJECT_BYTES  # so that no read waits for the store
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._fetching: dict[int, threading.Event] = {}

    def _decode_tail(self, _: int, data: Buffer) -> ImageTail:
        return decode_image_tail(data, self._item.object_bytes, self._item.tail_digest)

    def read(self, position: int, length: int) -> bytes:
        """Corrupt for what is not in the image."""
        if not 0 <= position <= position + length <= self.tail.image_bytes:
            raise Corrupt("an image refers to what is behind its end", key=self._mirror.key)
        span = self.tail.span(position, position + length)
        pieces = self._pieces(span, position)
        first = position - span.start * PIECE_BYTES
        return b"".join(pieces[index] for index in span)[first : first + length]

    def whole(self) -> Iterator[bytes]:
        """The image from its beginning, in pieces; nothing of it is kept in memory."""
        count = len(self.tail.pieces)
        for first in range(0, count, _PIECES_KEPT):
            yield from self._decoded(range(first, min(first + _PIECES_KEPT, count)))

    def _pieces(self, span: range, position: int) -> dict[int, bytes]:
        """The pieces of a span. What one thread fetches others wait for."""
        found: dict[int, bytes] = {}
        while True:
            with self._lock:
                for index in span:
                    if index not in found and index in self._kept:
                        self._kept.move_to_end(index)
                        found[index] = self._kept[index]
                lacking = [index for index in span if index not in found]
                if not lacking:
                    return found
                others = next((self._fetching[index] for index in lacking if index in self._fetching), None)
                if others is None:
                    wanted = self._with_region(lacking, position)
                    landed = threading.Event()
                    self._fetching.update(dict.fromkeys(wanted, landed))
            if others is not None:
                before_waiting()
                others.wait()
                continue
            try:
                decoded = dict(zip(wanted, self._decoded(wanted), strict=True))
                found.update((index, decoded[index]) for index in lacking)
                self._keep(decoded)
            finally:
                with self._lock:
                    for index in wanted:
                        del self._fetching[index]
                landed.set()

    def _with_region(self, lacking: list[int], position: int) -> list[int]:
        """Pieces with the neighbours that a lookup in the same long directory will read; under the lock."""
        region = self.tail.wide_at(position)
        if region is None:
            return lacking
        start, stop = max(region[0], position - _WIDE_BYTES // 2), min(region[1], position + _WIDE_BYTES // 2)
        near = (index for index in self.tail.span(start, stop) if index not in self._kept)
        return sorted({*lacking, *(index for index in near if index not in self._fetching)})

    def _decoded(self, indices: list[int] | range) -> list[bytes]:
        infos = [self.tail.pieces[index] for index in indices]
        return self._mirror.decoded(
            [(info.offset, info.offset + info.stored_bytes) for info in infos],
            lambda number, data: decode_piece(self.tail, indices[number], data),
        )

    def _keep(self, decoded: dict[int, bytes]) -> None:
        with self._lock:
            self._kept.update(decoded)
            while len(self._kept) > _PIECES_KEPT:
                self._kept.popitem(last=False)
