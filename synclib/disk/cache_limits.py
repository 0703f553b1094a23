"""The limits of a cache, checked against the partition that it lies on."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from synclib.core.entry import ADDRESS_UNIT
from synclib.core.eviction import Limits, floor_bytes
from synclib.disk.faults import disk_errors
from synclib.disk.punch import punch
from synclib.errors import Invalid, Unsupported


def limits_of(directory: Path, limit_bytes: int | None) -> Limits:
    """The limits of a cache in ``directory``, which is there."""
    return Limits(limit_bytes, floor_bytes(_partition_bytes(directory)))


def check_limit(directory: Path, limit_bytes: int) -> None:
    """Invalid where the partition of ``directory`` could never hold as much, Unsupported where nothing can be evicted
    there."""
    with disk_errors():
        directory.mkdir(parents=True, exist_ok=True)
    total = _partition_bytes(directory)
    floor = floor_bytes(total)
    if limit_bytes + floor > total:
        raise Invalid(
            f"a cache of {limit_bytes} bytes cannot be on a partition of {total}, of which {floor} stay free",
            hint=f"--cache-size {max(total - floor, 0)} or less, or set XDG_CACHE_HOME to a larger partition",
            path=str(directory),
        )
    _check_holes(directory)


def _partition_bytes(directory: Path) -> int:
    with disk_errors():
        partition = os.statvfs(directory)
    return partition.f_blocks * partition.f_frsize


def _check_holes(directory: Path) -> None:
    with disk_errors(), tempfile.TemporaryFile(dir=directory) as file:
        os.pwrite(file.fileno(), bytes(ADDRESS_UNIT), 0)
        try:
            punch(file.fileno(), 0, ADDRESS_UNIT)
        except OSError as error:
            raise Unsupported(
                f"this file system gives no blocks of a file back: {error.strerror}",
                hint="leave --cache-size out, or set XDG_CACHE_HOME to an ext4, XFS, Btrfs or tmpfs",
                path=str(directory),
            ) from error
