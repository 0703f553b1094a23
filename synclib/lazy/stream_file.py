"""A file from its beginning to its end: what follows is read while what was read is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from synclib.core.memory import allocate
from synclib.reader import File

if TYPE_CHECKING:
    from concurrent.futures import Future

# Four ranges of a pack (core/streaming.py): more than a reader keeps, so that one large file does not drive out others.
PIECE_BYTES = 16 << 20
_AT_ONCE = 3


def stream_file(file: File) -> Iterator[memoryview]:
    """The bytes of a file in order, a piece at a time; a piece is valid until the next one is asked for.

    At most four pieces are in memory. Errors are those of :meth:`File.readinto`; when one is raised, or the caller
    stops early, nobody reads any longer.
    """
    size = file.entry.size
    if size <= PIECE_BYTES:
        whole = memoryview(bytearray(size))
        yield whole[: file.readinto(whole, 0)]
        return
    from concurrent.futures import ThreadPoolExecutor  # which a command that reads a small file does without

    offsets = iter(range(0, size, PIECE_BYTES))
    under_way: deque[tuple[Future[int], memoryview]] = deque()
    with ThreadPoolExecutor(_AT_ONCE) as readers:

        def begin(piece: memoryview) -> None:
            offset = next(offsets, None)
            if offset is not None:
                under_way.append((readers.submit(file.readinto, piece, offset), piece))

        for _ in range(_AT_ONCE):
            begin(memoryview(allocate(PIECE_BYTES)))
        spare = memoryview(allocate(PIECE_BYTES))
        while under_way:
            future, piece = under_way.popleft()
            length = future.result()
            begin(spare)
            yield piece[:length]
            spare = piece
