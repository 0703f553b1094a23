"""What all of the stand-in's parts share, and the blocks that its volumes and snapshots hold."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from synclib.volume.base import BLOCK_BYTES
from tests.aws.clock import DrivenClock, Timeline
from tests.aws.records import Ids, Tokens
from tests.aws.script import Delays, Limits, Script

ZEROS = bytes(BLOCK_BYTES)


@dataclass(frozen=True)
class Block:
    """A block as it was written at one time: ``write`` tells it from another of the same content."""

    write: int
    digest: bytes


Blocks = Mapping[int, Block]


class BlockFile:
    """The bytes of all blocks, by content, in one file that has no name."""

    def __init__(self, directory: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
        self._places: dict[bytes, int] = {hashlib.sha256(ZEROS).digest(): -1}
        self._stop = 0
        self._writes = 0

    def add(self, data: bytes) -> Block:
        digest = hashlib.sha256(data).digest()
        if digest not in self._places:
            os.pwrite(self._file.fileno(), data, self._stop)
            self._places[digest] = self._stop
            self._stop += len(data)
        self._writes += 1
        return Block(self._writes, digest)

    def read(self, block: Block | None) -> bytes:
        if block is None or self._places[block.digest] < 0:
            return ZEROS
        return os.pread(self._file.fileno(), BLOCK_BYTES, self._places[block.digest])

    def close(self) -> None:
        self._file.close()


@dataclass
class Site:
    """Clock, ids, tokens, the test's script and the bytes."""

    clock: DrivenClock
    blocks: BlockFile
    delays: Delays = field(default_factory=Delays)
    limits: Limits = field(default_factory=Limits)
    script: Script = field(default_factory=Script)
    ids: Ids = field(default_factory=Ids)
    tokens: Tokens = field(default_factory=Tokens)
    zones: tuple[str, ...] = ("eu-central-1a", "eu-central-1b", "eu-central-1c")

    def now(self) -> float:
        return self.clock.monotonic()

    def timeline(self, state: str) -> Timeline:
        return Timeline(self.now, state)

    def is_hidden(self, born: float) -> bool:
        """A new resource that a reader does not see yet (EC2, "Eventual consistency")."""
        return self.now() < born + self.script.hidden_s
