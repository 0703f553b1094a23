"""A node's copy of a dataset's address space (docs/format/address.md): one sparse file, and which chunks are in it.

One cache serves every seq, and all processes that have it open. What its record names is a hint, never a proof: it is
hashed before it is believed, once in a process's life, and again when anything near it was taken away since. The record
is never ahead of the data but after a power cut: bytes are written before a chunk is recorded, and a chunk that is let
go is forgotten, durably, before its bytes are taken away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from synclib.core.entry import ADDRESS_UNIT
from synclib.core.eviction import NONE, Limits, Recent, arrived, is_held, units_of, used
from synclib.core.extent_map import Extent
from synclib.disk.cache_record import REGION_UNITS, CacheRecord
from synclib.disk.faults import disk_errors, is_of_the_world
from synclib.disk.hydrated import Stamp, stamp_of
from synclib.disk.punch import punch

_REGION_BYTES = REGION_UNITS // 8  # of a bit for each unit
_ZEROS = memoryview(bytes(ADDRESS_UNIT))  # what follows a file in its last unit
_RUN_PARTS_MAX = 500  # two buffers each; pwritev(2) takes 1,024

Piece = tuple[Extent, bytes | memoryview]  # an extent and its bytes, which were verified


@dataclass
class CacheCounts:
    """What happened to a cache since this process opened it."""

    hits: int = 0  # reads that were answered from it
    unkept: int = 0  # chunks that were handed out and found no room
    damaged: int = 0  # chunks that were not what they must be, and were forgotten
    evicted_chunks: int = 0
    evicted_bytes: int = 0


class BlobCache:
    """Open in ``directory``, with room for ``address_end`` units. Safe between threads and processes."""

    def __init__(self, directory: Path, address_end: int, limits: Limits | None = None) -> None:
        self.path = directory / "blob"
        self.limits = limits or Limits()
        with disk_errors():
            directory.mkdir(parents=True, exist_ok=True)
            self.record = CacheRecord(directory, address_end)
            with contextlib.ExitStack() as opened:
                opened.callback(self.record.close)
                self._data = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                opened.callback(os.close, self._data)
                if os.fstat(self._data).st_size < address_end * ADDRESS_UNIT:
                    self._grow(address_end * ADDRESS_UNIT)
                opened.pop_all()
        # What this process has hashed or written, a bit for each unit; of a region all is void when its generation is
        # another one than then.
        self._trusted = bytearray(self.record.units // 8)
        self._counted = bytearray(self.record.units // 8)  # what is in right_bytes
        self._trusted_at = array("I", bytes(4 * (self.record.units // REGION_UNITS)))
        self._lock = threading.Lock()
        self._recent = Recent(self.limits.reserve_bytes)
        self.counts = CacheCounts()
        self.right_bytes = 0  # of extents that are here and were found right, or came, in this process's life
        # Set when less than the reserve is left.
        self.is_short = threading.Event()

    def _grow(self, size: int) -> None:
        fcntl.flock(self._data, fcntl.LOCK_EX)
        try:
            if os.fstat(self._data).st_size < size:
                os.ftruncate(self._data, size)
        finally:
            fcntl.flock(self._data, fcntl.LOCK_UN)

    def close(self) -> None:
        self.record.close()
        os.close(self._data)

    @property
    def may_evict(self) -> bool:
        """Whether chunks may go again: then nothing but this may read the file."""
        return self.limits.limit_bytes is not None

    def has(self, extent: Extent) -> bool:
        """Whether the extent's bytes are here and right. The first time they are read and hashed."""
        unit = extent.position // ADDRESS_UNIT
        return self._is_believed(extent, self.record.settled_generation(unit // REGION_UNITS))

    def lacking(self, extents: Sequence[Extent]) -> list[Extent]:
        """Those of these whose bytes are not here, or not right."""
        state = self.record.state
        return [
            extent for extent in extents if not (is_held(state(extent.position // ADDRESS_UNIT)) and self.has(extent))
        ]

    def read(self, start: int, length: int, extents: Sequence[Extent]) -> bytes | None:
        """The bytes at [start, start + length), where ``extents`` are all that have some there; None where one of them
        is not here, or went meanwhile."""
        regions = [extent.position // ADDRESS_UNIT // REGION_UNITS for extent in extents]
        generations = [self.record.settled_generation(region) for region in regions]
        if not all(map(self._is_believed, extents, generations)):
            return None
        try:
            data = os.pread(self._data, length, start)
        except OSError:  # a bad sector: what is on it is fetched again
            for extent in extents:
                self._forget(extent)
            return None
        if [self.record.generation(region) for region in regions] != generations:
            return None
        self.counts.hits += 1
        for extent in extents:
            self._note_use(extent)
        return data

    def put(self, items: Sequence[Piece]) -> int:
        """Keep what was fetched; neighbours are written with one call. How many are here then: for the others there is
        no room, or the disk fails, and of those nothing is recorded."""
        kept = 0
        with self.record.locked() as has_lock:
            if has_lock:
                # Of the others another process was quicker.
                state = self.record.state
                lacking = [item for item in items if not is_held(state(item[0].position // ADDRESS_UNIT))]
                kept = len(items) - len(lacking)
                units = 0
                for run in _runs(self._fitting(lacking)):
                    came = self._put(run)
                    if came is not None:
                        kept, units = kept + len(run), units + came
                self._note_arrival(units)
        self.counts.unkept += len(items) - kept
        return kept

    def _fitting(self, items: list[Piece]) -> list[Piece]:
        """Those for which there is room."""
        held_bytes, free_bytes = self.usage()
        taken = [(len(plain) // ADDRESS_UNIT + 2) * ADDRESS_UNIT for _, plain in items]
        room, all_taken = self.limits.room(held_bytes, free_bytes), sum(taken)
        if self.limits.shortage(held_bytes + all_taken, free_bytes - all_taken):
            self.is_short.set()
        if all_taken <= room:
            return items
        fitting: list[Piece] = []
        for item, size in zip(items, taken, strict=True):
            if size <= room:
                fitting.append(item)
                room -= size
        return fitting

    def _put(self, run: list[Piece]) -> int | None:
        """Write and record extents that stand together, with the lock: about how many units have come; None where
        nothing has."""
        first, last = run[0][0].position // ADDRESS_UNIT, run[-1][0].position // ADDRESS_UNIT
        units = 0
        try:
            for region in range(first // REGION_UNITS, last // REGION_UNITS + 1):
                self.record.settle(region * REGION_UNITS)
            self._write(run)
            states = bytearray(self.record.states(first, last + 1))
            for extent, plain in run:
                index = extent.position // ADDRESS_UNIT - first
                states[index] = arrived(states[index], len(plain), is_shared=extent.position % ADDRESS_UNIT != 0)
                units += units_of(states[index])
            self.record.set_states(first, bytes(states))
        except OSError as error:
            if not is_of_the_world(error):
                raise
            self.is_short.set()
            for extent, _ in run:
                self._take_back(extent)
            return None
        self._came(run)
        return units

    def _came(self, run: list[Piece]) -> None:
        """These were verified and have just been written: with the record's lock nothing takes them away meanwhile."""
        generation = self.record.generation
        with self._lock:
            for extent, plain in run:
                unit = extent.position // ADDRESS_UNIT
                self._recent.note(unit, len(plain))
                self._mark(unit, len(plain), generation(unit // REGION_UNITS))

    def _note_arrival(self, units: int) -> None:
        if units:
            with contextlib.suppress(OSError):  # the next round of the hand counts anew
                hand = self.record.read_hand()
                hand.held_units += units
                self.record.write_hand(hand)

    def _write(self, run: list[Piece]) -> None:
        parts: list[bytes | memoryview] = []
        stop = start = run[0][0].position
        for extent, plain in run:
            if extent.position > stop:
                parts.append(_ZEROS[: extent.position - stop])
            parts.append(plain)
            stop = extent.position + len(plain)
        written = os.pwritev(self._data, parts, start)
        if written < stop - start:
            left = memoryview(b"".join(parts))[written:]
            while left:
                written = os.pwrite(self._data, left, stop - len(left))
                left = left[written:]

    def _take_back(self, extent: Extent) -> None:
        """What was written of an extent that is not recorded, but for units that another may have a part of."""
        with contextlib.suppress(OSError):
            self.take_away(-(-extent.position // ADDRESS_UNIT), extent.stop // ADDRESS_UNIT)

    def take_away(self, first: int, stop: int) -> None:
        """Give the blocks of the units [first, stop) back to the disk. With the record's lock; nothing held is in
        them. OSError where the file system cannot."""
        if first < stop:
            with self.record.taking_away(first, stop):
                punch(self._data, first * ADDRESS_UNIT, stop * ADDRESS_UNIT)

    def first_data(self, first: int, stop: int) -> int:
        """The first unit of [first, stop) that has blocks on the disk; ``stop`` where none has."""
        try:
            return min(os.lseek(self._data, first * ADDRESS_UNIT, os.SEEK_DATA) // ADDRESS_UNIT, stop)
        except OSError:  # ENXIO: none until the end
            return stop

    def is_right(self, extent: Extent) -> bool:
        """Read a held extent from the disk anew and hash it; one that is damaged is forgotten. True where it is not
        held, or went meanwhile."""
        unit = extent.position // ADDRESS_UNIT
        if not is_held(self.record.state(unit)):
            return True
        generation = self.record.generation(unit // REGION_UNITS)
        # What the kernel has of it in memory is no evidence of the disk.
        os.posix_fadvise(self._data, extent.position, extent.chunk.plain_bytes, os.POSIX_FADV_DONTNEED)
        return bool(generation & 1) or self._has_hash(extent, generation)

    def usage(self) -> tuple[int, int]:
        """(bytes that the cache takes, bytes that are free on its partition)."""
        partition = self.partition()
        return self.held_bytes(), partition.f_bavail * partition.f_frsize

    def partition(self) -> os.statvfs_result:
        """On which the file is, also when its name is gone."""
        return os.fstatvfs(self._data)

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
            self.record.sync_states()

    def _is_believed(self, extent: Extent, generation: int) -> bool:
        """Whether the bytes were right while the region had that generation."""
        if generation & 1:
            return False
        unit = extent.position // ADDRESS_UNIT
        if self._trusted_at[unit // REGION_UNITS] == generation and self._trusted[unit >> 3] & 1 << (unit & 7):
            return is_held(self.record.state(unit))
        return is_held(self.record.state(unit)) and self._has_hash(extent, generation)

    def _has_hash(self, extent: Extent, generation: int) -> bool:
        unit = extent.position // ADDRESS_UNIT
        try:
            data = os.pread(self._data, extent.chunk.plain_bytes, extent.position)
        except OSError:
            data = b""
        if blake3(data).digest() == extent.chunk.hash:
            self._trust(extent, generation)
            return True
        if self.record.generation(unit // REGION_UNITS) == generation:
            self._forget(extent)
            self.counts.damaged += 1
        return False

    def _trust(self, extent: Extent, generation: int) -> None:
        unit = extent.position // ADDRESS_UNIT
        with self._lock:
            if self.record.generation(unit // REGION_UNITS) == generation:
                self._mark(unit, extent.chunk.plain_bytes, generation)

    def _mark(self, unit: int, length: int, generation: int) -> None:
        """What begins there is right while its region has that generation. Under the lock."""
        region, byte, bit = unit // REGION_UNITS, unit >> 3, 1 << (unit & 7)
        if self._trusted_at[region] != generation:
            self._trusted[region * _REGION_BYTES : (region + 1) * _REGION_BYTES] = bytes(_REGION_BYTES)
            self._trusted_at[region] = generation
        self._trusted[byte] |= bit
        if not self._counted[byte] & bit:
            self._counted[byte] |= bit
            self.right_bytes += length

    def _forget(self, extent: Extent) -> None:
        unit = extent.position // ADDRESS_UNIT
        with self._lock:
            bit = 1 << (unit & 7)
            self._trusted[unit >> 3] &= ~bit & 0xFF
            if self._counted[unit >> 3] & bit:
                self._counted[unit >> 3] &= ~bit & 0xFF
                self.right_bytes -= extent.chunk.plain_bytes
        with self.record.locked() as has_lock, contextlib.suppress(OSError):  # what stays recorded is hashed again
            if has_lock and is_held(self.record.state(unit)):
                self.record.set_states(unit, bytes([NONE]))

    def _note_use(self, extent: Extent) -> None:
        unit = extent.position // ADDRESS_UNIT
        if not self._recent.note(unit, extent.chunk.plain_bytes):
            return
        state = self.record.state(unit)
        if is_held(state) and (new := used(state)) != state:
            with contextlib.suppress(OSError):  # a use that is not noted is one use
                self.record.set_states(unit, bytes([new]))


def _runs(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """What stands together, but for the rests of last units."""
    run: list[Piece] = []
    stop = 0  # of the run
    for piece in sorted(pieces, key=_position):
        position = piece[0].position
        if run and not (0 <= position - stop < ADDRESS_UNIT and len(run) < _RUN_PARTS_MAX):
            yield run
            run = []
        run.append(piece)
        stop = position + len(piece[1])
    if run:
        yield run


def _position(piece: Piece) -> int:
    return piece[0].position
