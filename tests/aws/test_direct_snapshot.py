"""The direct snapshot that direct_snapshot.py measures at 180 GB, of 4 GB: what is put, how fast, and what it holds."""

from __future__ import annotations

from pathlib import Path

from tests.aws.direct_snapshot import CHUNK_BYTES, CHUNKS_PER_FILE, measure
from tests.aws.standin import Standin

FILE_BLOCKS = CHUNK_BYTES * CHUNKS_PER_FILE >> 19  # whole ones; one more may be begun or ended
PUTS_PER_S = 1000  # that the service takes of a snapshot


def test_a_new_content_in_one_file_of_forty_costs_its_blocks_and_no_others(tmp_path: Path, standin: Standin) -> None:
    """The content of each block that is put is compared by ``measure``, and so is the number of zeros."""
    found = measure(tmp_path, standin, 40)
    done = found.done
    assert found.parent_blocks > 40 * FILE_BLOCKS
    # The file's new place, its old one as zeros, and some of header, image and map.
    assert FILE_BLOCKS - 1 <= done.zero_blocks <= FILE_BLOCKS
    assert 0 < done.blocks - done.zero_blocks - FILE_BLOCKS <= 2 + 4
    assert (found.requests["PutSnapshotBlock"], found.throttled) == (done.blocks, 0)
    assert done.blocks / PUTS_PER_S <= found.puts_s <= found.clock_s <= 15
    assert found.requests["StartSnapshot"] == found.requests["CompleteSnapshot"] == 1
    assert found.instances == 0
    # The file's chunks, each of which a block or two want, and the chain.
    assert found.store_bytes < 2.5 * CHUNK_BYTES * CHUNKS_PER_FILE
