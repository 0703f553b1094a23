"""Files that arrive in pieces: kept under a name that the next restore finds, so that nothing is fetched twice."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from blake3 import blake3

from synclib.core.entry import ChunkRef, Entry
from synclib.core.zeros import is_hole
from synclib.disk.faults import full_disk_is_an_error
from synclib.disk.tree import Tree, part_name, write_all


@dataclass
class Large:
    """A file that arrives in pieces."""

    entry: Entry
    temporary: bytes
    pieces_left: int = 0
    is_broken: bool = False


def lacking_of_part(descriptor: int, entry: Entry) -> tuple[ChunkRef, ...]:
    """The chunks that a temporary file does not hold yet; every byte of the others is verified.

    Zeros count as held: the file is given its length, and what is not written reads as zeros.
    """
    found = os.fstat(descriptor)
    is_new = found.st_size != entry.size or not found.st_blocks
    if is_new:
        with full_disk_is_an_error():
            os.ftruncate(descriptor, 0)
            os.ftruncate(descriptor, entry.size)
    lacking: list[ChunkRef] = []
    offset = 0
    data_end = hole_end = 0
    for chunk in entry.chunks:
        stop = offset + chunk.plain_bytes
        if not is_new and offset >= data_end:
            hole_end, data_end = _next_data(descriptor, offset, entry.size)
        if is_new or stop <= hole_end:
            is_held = is_hole(chunk)
        else:
            is_held = blake3(os.pread(descriptor, chunk.plain_bytes, offset)).digest() == chunk.hash
        if not is_held:
            lacking.append(chunk)
        offset = stop
    return tuple(lacking)


def _next_data(descriptor: int, offset: int, size: int) -> tuple[int, int]:
    """(where data begins at or after an offset, where it ends): what lies before it was never written."""
    try:
        start = os.lseek(descriptor, offset, os.SEEK_DATA)
        return start, os.lseek(descriptor, start, os.SEEK_HOLE)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return size, size


def copy_from_older(
    tree: Tree, entry: Entry, former: Entry, lacking: tuple[ChunkRef, ...], target: int
) -> tuple[ChunkRef, ...]:
    """Copy what the older file at this path holds of the lacking chunks; returns the others. Verified."""
    places = _places(former)
    try:
        source = tree.open_file(entry)
    except OSError:
        return lacking
    wanted = {chunk.hash for chunk in lacking}
    left: list[ChunkRef] = []
    offset = 0
    try:
        for chunk in entry.chunks:
            place = places.get(chunk.hash)
            if chunk.hash in wanted:
                data = b"" if place is None else os.pread(source, chunk.plain_bytes, place)
                if place is not None and blake3(data).digest() == chunk.hash:
                    write_all(target, data, offset)
                else:
                    left.append(chunk)
            offset += chunk.plain_bytes
    finally:
        os.close(source)
    return tuple(left)


def _places(former: Entry) -> dict[bytes, int]:
    """Where each chunk of an older version of a file begins in it."""
    places: dict[bytes, int] = {}
    offset = 0
    for chunk in former.chunks:
        places.setdefault(chunk.hash, offset)
        offset += chunk.plain_bytes
    return places


__all__ = ["Large", "copy_from_older", "lacking_of_part", "part_name"]
