"""What is wanted of a cache while a seq is mounted that has no map."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from synclib.lazy.mounted_seqs import MountedSeqs, mounted


@contextlib.contextmanager
def no_map(data: bytes) -> Iterator[None]:
    yield None


def test_of_a_seq_without_a_map_all_may_be_wanted(tmp_path: Path) -> None:
    with mounted(tmp_path, b"{}"):
        seqs = MountedSeqs(tmp_path, no_map)
        _, starts = seqs.look()
        assert starts(3, 6) == {3, 4, 5}
        seqs.close()
    _, starts = MountedSeqs(tmp_path, no_map).look()
    assert starts(3, 6) == set()
