"""A program that makes a direct snapshot as ``boxlink snapshot create`` does; test_killed.py kills it."""

from __future__ import annotations

import hashlib
from contextlib import suppress

from synclib.clock import SystemClock, SystemEntropy
from synclib.errors import Conflict
from synclib.volume.base import SnapshotState
from synclib.volume.ebs import open_ebs
from synclib.volume.waiting import snapshot_is_completed, wait_until
from tests.aws.requests import block

COUNT = 6


def main() -> None:
    clock, entropy = SystemClock(), SystemEntropy()
    driver = open_ebs(clock, entropy)
    blocks = driver.blocks()
    snapshot = blocks.start(size_gib=1, parent_id="", token="covers-7", tags={"boxlink:seq": "7"})
    if snapshot.state is SnapshotState.PENDING:
        # Whoever was killed while it is being completed finds that it takes no block any more.
        with suppress(Conflict):
            digests = [blocks.put(snapshot.id, index, block(index)) for index in range(COUNT)]
            checksum = hashlib.sha256(b"".join(digests)).digest()
            blocks.complete(snapshot.id, changed_count=COUNT, checksum=checksum)
    wait_until(driver.snapshots, [snapshot.id], snapshot_is_completed, clock=clock, entropy=entropy, deadline_s=60)
    driver.tag(snapshot.id, {"boxlink:complete": "1"})
    print(snapshot.id)


if __name__ == "__main__":
    main()
