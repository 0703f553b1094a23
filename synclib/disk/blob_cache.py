"""A node's copy of a dataset's address space (docs/format/address.md): one sparse file, and which chunks are in it.

One cache serves every seq. The record is a bit for each unit of 4 KiB: set where a chunk begins whose bytes were
written. It is shared memory on a file: it survives the death of the process at once, and a power cut may leave it ahead
of the data. So it is a hint, never a proof: what it names is hashed before it is believed, once in a process's life.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from blake3 import blake3

from synclib.core.entry import ADDRESS_UNIT
from synclib.core.extent_map import Extent
from synclib.disk.faults import disk_errors
from synclib.disk.hydrated import Stamp, stamp_of

_GROW_BYTES = 1 << 16
_ZEROS = memoryview(bytes(ADDRESS_UNIT))  # what follows a file in its last unit
_RUN_PARTS_MAX = 500  # two buffers each; pwritev(2) takes 1,024


class BlobCache:
    """Open in ``directory``, with room for ``address_end`` units. Safe between threads; several processes may have it
    open (a bit that two of them set at the same moment may be lost: then its chunk is fetched again)."""

    # Whether what is here may go again, to make room.
    may_evict = False

    def __init__(self, directory: Path, address_end: int) -> None:
        self.path = directory / "blob"
        with disk_errors():
            directory.mkdir(parents=True, exist_ok=True)
            self._data = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            record = os.open(directory / "present", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(record, fcntl.LOCK_EX)  # the two lengths grow together, whoever is first
                _grow(self._data, address_end * ADDRESS_UNIT)
                _grow(record, -(-address_end // (8 * _GROW_BYTES)) * _GROW_BYTES)
                self._present = mmap.mmap(record, os.fstat(record).st_size)
                # By name: the mapping keeps a descriptor of its own, and with it the lock.
                fcntl.flock(record, fcntl.LOCK_UN)
            finally:
                os.close(record)
        self._trusted = bytearray(len(self._present))
        self._lock = threading.Lock()
        self.right_bytes = 0  # of extents that are here and were found right, or came, in this process's life

    def close(self) -> None:
        self._present.close()
        os.close(self._data)

    def has(self, extent: Extent) -> bool:
        """Whether the extent's bytes are here and right. The first time they are read and hashed."""
        byte, bit = _bit(extent)
        if self._trusted[byte] & bit:
            return True
        if not self._present[byte] & bit:
            return False
        if blake3(self.read(extent.position, extent.chunk.plain_bytes)).digest() != extent.chunk.hash:
            with self._lock:
                self._present[byte] &= ~bit & 0xFF
            return False
        with self._lock:
            self._trust(extent)
        return True

    def _trust(self, extent: Extent) -> None:
        byte, bit = _bit(extent)
        if not self._trusted[byte] & bit:
            self._trusted[byte] |= bit
            self.right_bytes += extent.chunk.plain_bytes

    def read(self, position: int, length: int) -> bytes:
        """The bytes at a position, whatever they are; those of :meth:`has` are right."""
        with disk_errors():
            return os.pread(self._data, length, position)

    def put(self, extents: Sequence[tuple[Extent, bytes | memoryview]]) -> None:
        """Keep extents' bytes, which were verified; neighbours are written with one call. Full when the disk is: then
        nothing is recorded."""
        with disk_errors():
            for run in _runs(extents):
                self._write(run)
        with self._lock:
            for extent, _ in extents:
                byte, bit = _bit(extent)
                self._trust(extent)
                self._present[byte] |= bit

    def _write(self, run: list[tuple[Extent, bytes | memoryview]]) -> None:
        parts: list[bytes | memoryview] = []
        stop = start = run[0][0].position
        for extent, plain in run:
            parts += (_ZEROS[: extent.position - stop], plain)
            stop = extent.stop
        written = os.pwritev(self._data, parts, start)
        if written < stop - start:
            left = memoryview(b"".join(parts))[written:]
            while left:
                written = os.pwrite(self._data, left, stop - len(left))
                left = left[written:]

    def held_bytes(self) -> int:
        """What the file takes on the disk."""
        return os.fstat(self._data).st_blocks * 512

    def stamp(self) -> Stamp:
        """What tells whether anybody has written to the file since."""
        return stamp_of(os.fstat(self._data))

    def sync(self) -> None:
        """Make everything durable: the data first, then the record."""
        with disk_errors():
            os.fdatasync(self._data)
            self._present.flush()


def _grow(descriptor: int, size: int) -> None:
    if os.fstat(descriptor).st_size < size:
        os.ftruncate(descriptor, size)


def _runs(
    extents: Sequence[tuple[Extent, bytes | memoryview]],
) -> Iterator[list[tuple[Extent, bytes | memoryview]]]:
    """What stands together, but for the rests of last units."""
    run: list[tuple[Extent, bytes | memoryview]] = []
    for item in sorted(extents, key=lambda item: item[0].position):
        if run and not (0 <= item[0].position - run[-1][0].stop < ADDRESS_UNIT and len(run) < _RUN_PARTS_MAX):
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def _bit(extent: Extent) -> tuple[int, int]:
    """Where an extent's bit is. A map has no two extents that begin in one unit."""
    unit = extent.position // ADDRESS_UNIT
    return unit >> 3, 1 << (unit & 7)
