"""Building a run block by block, so that memory does not grow with its entries.

Blocks and hashes are spooled to temporary files beyond a few MiB; a run of ten million entries is some 400 MB.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import IO

from blake3 import blake3

from synclib.core.entry import HASH_BYTES, Entry, Kind
from synclib.core.manifest import RunRef
from synclib.core.names import LEVELS
from synclib.core.run import (
    BLOCK_DIGEST_BYTES,
    BLOCK_PLAIN_TARGET,
    HEADER_BYTES,
    BlockInfo,
    PackTable,
    Tail,
    encode_block,
    encode_header,
    encode_tail,
)

_SPOOL_BYTES = 4 << 20
_COPY_BYTES = 1 << 20


class RunBuilder:
    """Takes entries in order and makes a run of them. Packs may be added to the table while it is built."""

    def __init__(self, level: str, seq_first: int, seq_last: int, scanned_at_ns: int, table: PackTable) -> None:
        self._level, self._seq_first, self._seq_last = level, seq_first, seq_last
        self._scanned_at_ns = scanned_at_ns
        self._table = table
        self._entries: list[Entry] = []
        self._entries_bytes = 0
        self._blocks: list[BlockInfo] = []
        self._block_spool: IO[bytes] = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115 - lives with the builder
        self._hash_spool: IO[bytes] = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115
        self._position = HEADER_BYTES
        self._hash_count = 0
        self._last_key = b""
        self.entry_count = 0
        self.tombstone_count = 0

    def add(self, entry: Entry) -> None:
        key = entry.key
        assert key > self._last_key, "entries of a run come sorted"
        self._last_key = key
        self._entries.append(entry)
        # Near what a block of such entries has as MessagePack; only the target depends on it.
        self._entries_bytes += 24 + len(entry.name) + len(entry.target) + 16 * len(entry.chunks)
        self.entry_count += 1
        self.tombstone_count += entry.kind == Kind.TOMBSTONE
        if self._entries_bytes >= BLOCK_PLAIN_TARGET:
            self._flush()

    def _flush(self) -> None:
        stored, plain_bytes, hashes = encode_block(self._entries, self._table)
        hash_count = len(hashes) // HASH_BYTES
        self._blocks.append(
            BlockInfo(
                self._entries[0].key,
                self._position,
                len(stored),
                plain_bytes,
                len(self._entries),
                self._hash_count,
                hash_count,
                blake3(stored).digest(BLOCK_DIGEST_BYTES),
                blake3(hashes).digest(BLOCK_DIGEST_BYTES),
            )
        )
        self._block_spool.write(stored)
        self._hash_spool.write(hashes)
        self._position += len(stored)
        self._hash_count += hash_count
        self._entries.clear()
        self._entries_bytes = 0

    def finish(self) -> RunParts:
        if self._entries:
            self._flush()
        tail = Tail(
            LEVELS.index(self._level) + 1,
            self._seq_first,
            self._seq_last,
            self._scanned_at_ns,
            self.entry_count,
            self.tombstone_count,
            self._position,
            [info.as_tuple() for info in self._table.infos],
            self._blocks,
            self._last_key,
        )
        tail_offset = self._position + self._hash_count * HASH_BYTES
        header = encode_header(self._level, self._seq_first, self._seq_last)
        return RunParts(header, self._block_spool, self._hash_spool, encode_tail(tail, tail_offset), tail, tail_offset)


class RunParts:
    """A finished run: its bytes in order, and the reference that a manifest keeps."""

    def __init__(
        self, header: bytes, blocks: IO[bytes], hashes: IO[bytes], tail_data: bytes, tail: Tail, tail_offset: int
    ) -> None:
        self._header, self._blocks, self._hashes, self._tail_data = header, blocks, hashes, tail_data
        self.tail = tail
        self.object_bytes = tail_offset + len(tail_data)

    def read(self) -> Iterator[bytes]:
        """The object's bytes, in pieces of at most 1 MiB but for the tail."""
        yield self._header
        for spool in (self._blocks, self._hashes):
            spool.seek(0)
            while piece := spool.read(_COPY_BYTES):
                yield piece
        yield self._tail_data

    def ref(self, ulid: bytes, created_at_ns: int) -> RunRef:
        tail = self.tail
        return RunRef(
            LEVELS[tail.level - 1],
            tail.seq_first,
            tail.seq_last,
            ulid,
            self.object_bytes,
            len(self._tail_data),
            blake3(self._tail_data).digest(),
            tail.entry_count,
            tail.tombstone_count,
            created_at_ns,
        )

    def close(self) -> None:
        self._blocks.close()
        self._hashes.close()
