"""A cache on a full disk can be emptied: to forget what is held takes no new block of the record."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from synclib.core.eviction import is_held
from tests.cached_space import CachedSpace, publish_space


@pytest.mark.parametrize("is_mounted", [True, False])
def test_a_full_disk_can_be_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_mounted: bool) -> None:
    """By the hand; and where no mounted seq has what is held."""
    publish_space(tmp_path, files=60, large_bytes=1_500_000)
    with CachedSpace(tmp_path) as space:
        space.assert_all_right()
        held, pwrite = (space.directory / "held").stat(), os.pwrite
        assert held.st_blocks * 512 < held.st_size

        def full(descriptor: int, data: bytes, at: int) -> int:
            """As a file system without a free block."""
            if os.fstat(descriptor).st_ino == held.st_ino:
                stop = at + len(data)
                while at < stop:
                    try:
                        is_hole = os.lseek(descriptor, at, os.SEEK_DATA) >= min(at // 4096 * 4096 + 4096, stop)
                    except OSError:
                        is_hole = True
                    if is_hole:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    at = at // 4096 * 4096 + 4096
                at = stop - len(data)
            return pwrite(descriptor, data, at)

        monkeypatch.setattr(os, "pwrite", full)
        space.evictor(None if is_mounted else lambda first, stop: set()).evict_to(0)
        assert space.cache.held_bytes() == 0
        assert not any(map(is_held, space.cache.record.states(0, space.cache.record.units)))
        space.assert_all_right()
