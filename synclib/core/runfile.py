"""Building a run block by block, so that memory does not grow with its entries.

Blocks and hashes are spooled to temporary files beyond a few MiB; a run of ten million entries is some 400 MB.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

import msgspec
from blake3 import blake3

from synclib.core.block import BLOCK_DIGEST_BYTES, BLOCK_PLAIN_TARGET, BlockInfo, encode_block
from synclib.core.bloom import build_bloom
from synclib.core.entry import HASH_BYTES, Entry, Kind
from synclib.core.manifest import RunRef
from synclib.core.names import LEVELS
from synclib.core.pack import PackInfo
from synclib.core.run import BLOOM_ENTRIES_MAX, HEADER_BYTES, PackTable, Tail, encode_header, encode_tail

Buffer = bytes | bytearray | memoryview
_SPOOL_BYTES = 4 << 20
_COPY_BYTES = 1 << 20


class RunBuilder:
    """Takes entries in order and makes a run of them. Packs may be added to the table while it is built."""

    def __init__(self, level: str, seq_first: int, seq_last: int, table: PackTable) -> None:
        self._level, self._seq_first, self._seq_last = level, seq_first, seq_last
        self._table = table
        self._entries: list[Entry] = []
        self._entries_bytes = 0
        self._blocks: list[BlockInfo] = []
        self._block_spool: IO[bytes] = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115 - lives with the builder
        self._hash_spool: IO[bytes] = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115
        self._position = HEADER_BYTES
        self._hash_count = 0
        self._last_key = b""
        # For the Bloom filter of a diff; None when it has none.
        self._keys: list[bytes] | None = [] if seq_first > 1 else None
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
        if self._keys is not None:
            self._keys.append(key)
            if self.entry_count > BLOOM_ENTRIES_MAX:
                self._keys = None
        if self._entries_bytes >= BLOCK_PLAIN_TARGET:
            self._flush()

    def copy(self, info: BlockInfo, packs: list[PackInfo], stored: Buffer, hashes: Buffer) -> None:
        """Take a whole block of another run as it is. ``packs``: what its numbers mean there. A run that takes one has
        no Bloom filter; one that ends with it must be told by :meth:`end_at` with which key."""
        self._flush()
        assert info.first_key > self._last_key, "entries of a run come sorted"
        self._last_key = info.first_key
        self._keys = None
        self.entry_count += info.entry_count
        self.tombstone_count += info.tombstone_count
        self.use(packs)
        numbers = self._table.numbers(pack.ulid for pack in packs)
        self._append(
            msgspec.structs.replace(info, offset=self._position, hash_first=self._hash_count, packs=numbers),
            stored,
            hashes,
        )

    def use(self, packs: Iterable[PackInfo]) -> None:
        """Make packs known to the run, before the entries that name them."""
        for pack in packs:
            self._table.add(pack)

    def end_at(self, key: bytes) -> None:
        """Say which is the last key of the block that was copied last."""
        self._last_key = key

    def _flush(self) -> None:
        if not self._entries:
            return
        encoded = encode_block(self._entries)
        info = BlockInfo(
            self._entries[0].key,
            self._position,
            len(encoded.stored),
            encoded.plain_bytes,
            len(self._entries),
            sum(entry.kind == Kind.TOMBSTONE for entry in self._entries),
            self._hash_count,
            len(encoded.hashes) // HASH_BYTES,
            self._table.numbers(encoded.packs),
            blake3(encoded.stored).digest(BLOCK_DIGEST_BYTES),
            blake3(encoded.hashes).digest(BLOCK_DIGEST_BYTES),
        )
        self._append(info, encoded.stored, encoded.hashes)
        self._entries.clear()
        self._entries_bytes = 0

    def _append(self, info: BlockInfo, stored: Buffer, hashes: Buffer) -> None:
        self._blocks.append(info)
        self._block_spool.write(stored)
        self._hash_spool.write(hashes)
        self._position += info.stored_bytes
        self._hash_count += info.hash_count

    def finish(self) -> RunParts:
        self._flush()
        bloom = b"" if self._keys is None else build_bloom(self._keys, len(self._keys))
        tail = Tail(
            LEVELS.index(self._level) + 1,
            self._seq_first,
            self._seq_last,
            self.entry_count,
            self.tombstone_count,
            self._position,
            [info.as_tuple() for info in self._table.infos],
            self._blocks,
            self._last_key,
            bloom,
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
