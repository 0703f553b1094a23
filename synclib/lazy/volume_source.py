"""The blob of a volume as the nearest place that bytes of a dataset come from.

A volume is of some older seq, may lie, and may be slow or gone at any moment: what is read of it is hashed against the
extent that is wanted, and what does not come, or not in time, the store has. Its own map says only where to look.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO

from blake3 import blake3

from synclib.clock import Clock
from synclib.core.extent_map import Extent
from synclib.disk.blob_cache import Piece
from synclib.errors import BoxlinkError
from synclib.lazy.blob import MapReader
from synclib.lazy.maps import file_map

LAST_S = 20.0  # where nobody else has the bytes; a block that was never touched takes some 35 ms
_FAILURES_MAX = 16  # reads in a row that brought nothing in time: then it is asked only where nobody else can be,
_TRIAL_S = 60.0  # and by one read in this long, whether it has become better
_READERS = 32  # a volume answers many as quickly as one
_RUN_BYTES_MAX = 1 << 20
_GAP_BYTES_MAX = 4096

Read = Callable[[int, int], bytes]  # (offset in the volume, length)


class VolumeSource:
    """Safe between threads. ``read``: of the volume, OSError where it cannot; ``held``: its map."""

    def __init__(self, read: Read, blob_offset: int, held: MapReader, clock: Clock) -> None:
        self._read, self._blob, self._held, self._clock = read, blob_offset, held, clock
        self.copy: IO[bytes] | None = None  # of the map: it is open for as long as this is used
        self._failures = 0
        self._next_trial = 0.0
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[Future[bytes], int, int]] = queue.SimpleQueue()
        # Threads that nobody waits for: one may stand in the kernel for as long as the device likes.
        for number in range(_READERS):
            threading.Thread(target=self._work, name=f"volume {number}", daemon=True).start()

    @property
    def is_off(self) -> bool:
        """Whether it has failed, or come too late, so often that the store is asked first."""
        return self._failures >= _FAILURES_MAX

    def read(self, extents: Sequence[Extent], patience_s: float | None) -> list[Piece]:
        """What it has of these and gives in time, each hashed (lazy/blob.py, Near)."""
        if self.is_off and patience_s is not None and not self._is_trial():
            return []
        asked: list[tuple[list[Extent], Future[bytes]]] = []
        for run in _runs(sorted(filter(self._has, extents), key=lambda extent: extent.position)):
            future: Future[bytes] = Future()
            self._jobs.put((future, self._blob + run[0].position, run[-1].stop - run[0].position))
            asked.append((run, future))
        deadline = self._clock.monotonic() + (LAST_S if patience_s is None else patience_s)
        found: list[Piece] = []
        for run, future in asked:
            right = list(_right(run, self._answer(future, deadline)))
            self._note(is_in_time=bool(right))
            found += right
        return found

    def _note(self, *, is_in_time: bool) -> None:
        with self._lock:
            self._failures = 0 if is_in_time else self._failures + 1
            if self._failures == _FAILURES_MAX:
                self._next_trial = self._clock.monotonic() + _TRIAL_S

    def _is_trial(self) -> bool:
        """Whether a read of what is off may try it; one may, and then none for some time."""
        with self._lock:
            now = self._clock.monotonic()
            if now < self._next_trial:
                return False
            self._next_trial = now + _TRIAL_S
            return True

    def _has(self, extent: Extent) -> bool:
        try:
            held = self._held.overlapping(extent.position, extent.position + 1)
        except (BoxlinkError, OSError):
            return False
        return any(one.position == extent.position and one.chunk.hash == extent.chunk.hash for one in held)

    def _answer(self, future: Future[bytes], deadline: float) -> bytes:
        """Nothing where it fails, or does not come in time."""
        try:
            return future.result(max(deadline - self._clock.monotonic(), 0))
        except OSError:  # TimeoutError is one
            future.cancel()
            return b""

    def _work(self) -> None:
        while True:
            future, offset, length = self._jobs.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._read(offset, length))
            except OSError as error:
                future.set_exception(error)


def _right(run: list[Extent], data: bytes) -> Iterator[Piece]:
    view = memoryview(data)
    for extent in run:
        at = extent.position - run[0].position
        plain = view[at : at + extent.chunk.plain_bytes]
        if len(plain) == extent.chunk.plain_bytes and blake3(plain).digest() == extent.chunk.hash:
            yield extent, plain


def _runs(extents: list[Extent]) -> Iterator[list[Extent]]:
    """Neighbours together."""
    run: list[Extent] = []
    for extent in extents:
        if run and (extent.position - run[-1].stop > _GAP_BYTES_MAX or extent.stop - run[0].position > _RUN_BYTES_MAX):
            yield run
            run = []
        run.append(extent)
    if run:
        yield run


def open_volume(device: Path, blob_offset: int, held: Path, clock: Clock) -> VolumeSource | None:
    """A volume's device as a source, with ``held``, a copy of its map; None where either cannot be read. Both stay open
    for as long as the process lives."""
    try:
        volume, copy = device.open("rb", buffering=0), held.open("rb")
        extents = file_map(copy)
    except (OSError, BoxlinkError):
        return None

    def read(offset: int, length: int) -> bytes:
        return os.pread(volume.fileno(), length, offset)

    source = VolumeSource(read, blob_offset, extents, clock)
    source.copy = copy
    return source
