"""What a node's cache knows of its chunks: files beside the blob that all processes with the cache open share.

    held         a byte for each unit (core/eviction.py): whether a chunk that begins there is held, and how it did
    generation   a number for each region of 256 units. It is odd while bytes of the region may be taken away, and
                 another one afterwards: who reads bytes and finds the same even number before and after has read what
                 was there all the time
    clock        where the hand stands, and how many chunks there are
    lock         flock(2): who changes a state or takes bytes away has it

All of it is a hint that a power cut may leave ahead of the data or behind it. It is read through shared memory, without
the lock, and written by pwrite(2): a full disk is then an error and not the end of the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from synclib.disk.faults import disk_errors

REGION_UNITS = 256
_GROW_UNITS = 1 << 16
_BLOCK_BYTES = 512  # of a file system, at least: a small ext4 has blocks of 1 KiB
_CLOCK = struct.Struct("<5Q")
_LOCK_S = 2.0
_LOCK_LOOK_S = 0.0005
# After it was waited for in vain, how long nobody waits again.
_LOCK_REST_S = 30.0


@dataclass
class ClockHand:
    """Where the hand stands (a unit), about how many units are held and in the main part, and how many of
    those it met since it was at the beginning."""

    unit: int = 0
    held_units: int = 0
    main_units: int = 0
    seen_held: int = 0
    seen_main: int = 0


class CacheRecord:
    """Open in ``directory``, for at least ``address_end`` units. Safe between threads and processes."""

    def __init__(self, directory: Path, address_end: int) -> None:
        units = -(-max(address_end, 1) // _GROW_UNITS) * _GROW_UNITS
        self._files: list[int] = []
        self._mutex = threading.Lock()
        self._rest_until = 0.0
        with disk_errors(), contextlib.ExitStack() as opened:
            opened.callback(self.close)
            self._held, self._generation, self._clock, self._lock = (
                self._open(directory / name) for name in ("held", "generation", "clock", "lock")
            )
            fcntl.flock(self._lock, fcntl.LOCK_EX)  # the lengths grow together, whoever is first
            try:
                _grow(self._held, units)
                # All of its blocks, so that a full disk can be emptied.
                os.posix_fallocate(self._generation, 0, units // REGION_UNITS * 4)
                os.posix_fallocate(self._clock, 0, _CLOCK.size)
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._map()
            opened.pop_all()

    def _open(self, path: Path) -> int:
        self._files.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        return self._files[-1]

    def _map(self) -> None:
        # Whoever reads the former ones meanwhile keeps them alive.
        self._states = mmap.mmap(self._held, 0, access=mmap.ACCESS_READ)
        self._generations = memoryview(mmap.mmap(self._generation, 0, access=mmap.ACCESS_READ)).cast("I")
        self.units = min(len(self._states), len(self._generations) * REGION_UNITS)

    def refresh(self) -> None:
        """See what another process has added."""
        if os.fstat(self._held).st_size > len(self._states):
            self._map()

    def close(self) -> None:
        for descriptor in self._files:
            os.close(descriptor)
        self._files = []

    @contextlib.contextmanager
    def locked(self, seconds: float = _LOCK_S) -> Iterator[bool]:
        """Whether the lock was had within ``seconds``: a process that holds it and stands still hinders nobody for
        longer, and nobody else soon after."""
        if time.monotonic() < self._rest_until:
            seconds = 0.0
        deadline = time.monotonic() + seconds
        if not self._mutex.acquire(timeout=seconds):
            yield False
            return
        try:
            while True:
                try:
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        if seconds:
                            self._rest_until = time.monotonic() + _LOCK_REST_S
                        yield False
                        return
                    time.sleep(_LOCK_LOOK_S)
            try:
                yield True
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)
        finally:
            self._mutex.release()

    def state(self, unit: int) -> int:
        return self._states[unit]

    def states(self, first: int, stop: int) -> bytes:
        return self._states[max(first, 0) : stop]

    def set_states(self, first: int, states: bytes) -> None:
        """OSError where the disk is full. With the lock; without it only what is a state of the same chunk."""
        os.pwrite(self._held, states, first)

    def change_states(self, first: int, before: bytes, states: bytes) -> None:
        """As :meth:`set_states`, but only where a block of the file is another one than ``before``: what is a hole
        stays one, for a full disk has no block for whoever is about to empty it."""
        start = end = first
        stop = first + len(states)
        while end < stop:
            begin, end = end, min((end // _BLOCK_BYTES + 1) * _BLOCK_BYTES, stop)
            is_changed = states[begin - first : end - first] != before[begin - first : end - first]
            if not is_changed or end == stop:
                last = end if is_changed else begin
                if start < last:
                    os.pwrite(self._held, states[start - first : last - first], start)
                start = end

    def sync_states(self) -> None:
        os.fdatasync(self._held)

    def generation(self, region: int) -> int:
        """Even while the bytes of all chunks that begin in a region stay where they are."""
        return self._generations[region]

    @contextlib.contextmanager
    def taking_away(self, first: int, stop: int) -> Iterator[None]:
        """While bytes of the units [first, stop) are taken away. With the lock."""
        # What reaches into a region begins in it or in the one before.
        low = max(first // REGION_UNITS - 1, 0)
        high = min((stop - 1) // REGION_UNITS + 1, len(self._generations))
        odd = [(value | 1) + 2 * (value & 1) & 0xFFFFFFFF for value in self._generations[low:high]]
        os.pwrite(self._generation, struct.pack(f"={len(odd)}I", *odd), low * 4)
        try:
            yield
        finally:
            even = [(value + 1) & 0xFFFFFFFF for value in odd]
            os.pwrite(self._generation, struct.pack(f"={len(even)}I", *even), low * 4)

    def settled_generation(self, region: int) -> int:
        """As :meth:`generation`; odd only while somebody takes bytes away, or where the disk fails."""
        if self._generations[region] & 1:
            with self.locked(0.0) as has_lock, contextlib.suppress(OSError):
                if has_lock:
                    self.settle(region * REGION_UNITS)
        return self._generations[region]

    def settle(self, unit: int) -> None:
        """What a process that died has left odd becomes even. With the lock, with which nobody takes anything away."""
        region = unit // REGION_UNITS
        value = self._generations[region]
        if value & 1:
            os.pwrite(self._generation, struct.pack("=I", (value + 1) & 0xFFFFFFFF), region * 4)

    def read_hand(self) -> ClockHand:
        data = os.pread(self._clock, _CLOCK.size, 0)
        return ClockHand(*_CLOCK.unpack(data)) if len(data) == _CLOCK.size else ClockHand()

    def write_hand(self, hand: ClockHand) -> None:
        """With the lock."""
        values = (hand.unit, hand.held_units, hand.main_units, hand.seen_held, hand.seen_main)
        os.pwrite(self._clock, _CLOCK.pack(*(max(value, 0) for value in values)), 0)


def _grow(descriptor: int, size: int) -> None:
    if os.fstat(descriptor).st_size < size:
        os.ftruncate(descriptor, size)
