"""The ways in which programs get the bytes of a file."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import tempfile
from collections.abc import Callable

_PIECE = 100_003  # no multiple of anything
_NO_COPY = (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)

Way = Callable[[int, int], bytes]  # (descriptor, size)


def by_read(descriptor: int, size: int) -> bytes:
    return b"".join(iter(lambda: os.read(descriptor, _PIECE), b""))


def by_pread_backwards(descriptor: int, size: int) -> bytes:
    starts = range(0, size, _PIECE)
    parts = [os.pread(descriptor, _PIECE, start) for start in reversed(starts)]
    assert os.pread(descriptor, 10, size) == b""
    return b"".join(reversed(parts))


def by_preadv(descriptor: int, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        parts = [bytearray(1000), bytearray(_PIECE), bytearray(7)]
        count = os.preadv(descriptor, parts, len(found))
        assert count > 0
        found += b"".join(parts)[:count]
    return bytes(found)


def by_mmap(descriptor: int, size: int) -> bytes:
    if not size:
        return b""
    with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as mapped:
        # One byte of each page first, from the end, so that pages come by faults.
        touched = bytes(mapped[at] for at in range(size - 1, -1, -mmap.PAGESIZE))
        data = mapped[:]
    assert touched == bytes(data[at] for at in range(size - 1, -1, -mmap.PAGESIZE))
    return data


def by_sendfile(descriptor: int, size: int) -> bytes:
    return _through_file(lambda target, at: os.sendfile(target, descriptor, at, _PIECE))


def by_copy_file_range(descriptor: int, size: int) -> bytes:
    """As cp does it: where the kernel does not copy between two file systems, by reading."""
    try:
        return _through_file(lambda target, at: os.copy_file_range(descriptor, target, _PIECE, at, at))
    except OSError as error:
        if error.errno not in _NO_COPY:
            raise
        return by_read(descriptor, size)


def by_splice(descriptor: int, size: int) -> bytes:
    found = bytearray()
    source, target = os.pipe()
    try:
        while count := os.splice(descriptor, target, 50_000, offset_src=len(found)):
            left = count
            while left:
                part = os.read(source, left)
                found, left = found + part, left - len(part)
    finally:
        os.close(source)
        os.close(target)
    return bytes(found)


def by_holes(descriptor: int, size: int) -> bytes:
    """What is said to be a hole is taken for zeros, and not read."""
    found, at = bytearray(size), 0
    while at < size:
        try:
            first = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        at = os.lseek(descriptor, first, os.SEEK_HOLE)
        assert first < at <= size
        found[first:at] = os.pread(descriptor, at - first, first)
    return bytes(found)


def by_other_descriptors(descriptor: int, size: int) -> bytes:
    """One that is closed at once, its double, and one through /proc."""
    double = os.dup(descriptor)
    again = os.open(f"/proc/self/fd/{double}", os.O_RDONLY)
    try:
        half = size // 2
        first = os.pread(double, half, 0)
        os.close(double)
        os.lseek(again, half, os.SEEK_SET)
        return first + by_read(again, size)
    finally:
        os.close(again)
        with contextlib.suppress(OSError):
            os.close(double)


def after_advice(descriptor: int, size: int) -> bytes:
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    data = by_read(descriptor, size)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(descriptor, 0, os.SEEK_SET)
    assert by_read(descriptor, size) == data
    return data


WAYS: list[Way] = [
    by_read,
    by_pread_backwards,
    by_preadv,
    by_mmap,
    by_sendfile,
    by_copy_file_range,
    by_splice,
    by_holes,
    by_other_descriptors,
    after_advice,
]


def _through_file(copy: Callable[[int, int], int]) -> bytes:
    """``copy(target, at)`` puts some bytes there and says how many."""
    with tempfile.TemporaryFile() as target:
        at = 0
        while count := copy(target.fileno(), at):
            at += count
        target.seek(0)
        return target.read()
