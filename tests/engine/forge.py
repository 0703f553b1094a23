"""Chains that no publisher of ours would write: the project's own codecs with their checks passed by, so that every
digest from the head down is right and only what is said is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from unittest import mock

import msgspec
from blake3 import blake3

from synclib.clock import ulid_text
from synclib.core import block as block_module
from synclib.core import run as run_module
from synclib.core import runfile, zstd
from synclib.core.block import EncodedBlock
from synclib.core.entry import ChunkRef, Codec, Entry, Kind
from synclib.core.manifest import Head, Manifest, RunRef, encode_head, encode_manifest
from synclib.core.names import head_key, pack_key, run_key
from synclib.core.pack import PackBuilder
from synclib.core.run import PackTable, Tail
from synclib.core.runfile import RunBuilder
from synclib.core.treehash import TreeHash
from synclib.lazy.dataset import STORE_KEY
from synclib.store.memory import MemoryStore

ROOT = "data/covers"
TIME_NS = 1_600_000_000_000_000_000


class Forge:
    """A store with one dataset; each :meth:`publish` adds a run of exactly the entries it is given."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.store.put(STORE_KEY, b"{}")
        self.runs: list[RunRef] = []
        self.tree = TreeHash()
        self.files = self.size = 0
        self._count = 0

    def ulid(self) -> bytes:
        self._count += 1
        return self._count.to_bytes(16, "big")

    def chunks(self, *pieces: bytes, codec: Codec = Codec.RAW) -> tuple[tuple[ChunkRef, ...], PackTable]:
        """Chunks in a pack of their own."""
        builder = PackBuilder(self.ulid())
        stored = [zstd.compress(piece) if codec == Codec.ZSTD else piece for piece in pieces]
        refs = tuple(
            builder.add(blake3(piece).digest(), piece, data, codec) for piece, data in zip(pieces, stored, strict=True)
        )
        data, info = builder.finish()
        self.store.put(pack_key(ROOT, ulid_text(info.ulid)), data)
        table = PackTable()
        table.add(info)
        return refs, table

    def publish(
        self,
        *blocks: Iterable[Entry],
        table: PackTable | None = None,
        columns: Callable[[Any], Any] = lambda columns: columns,
        tail: Callable[[Tail], Tail] = lambda tail: tail,
        ref: Callable[[RunRef], RunRef] = lambda ref: ref,
    ) -> None:
        """``blocks``: entries of each block. ``columns``, ``tail`` and ``ref`` change what is written of them."""
        seq = len(self.runs) + 1
        builder = RunBuilder("snap" if seq == 1 else "diff1", seq, seq, table or PackTable())
        with (
            mock.patch.object(runfile, "encode_block", _with_columns(columns)),
            mock.patch.object(
                runfile, "encode_tail", lambda found, offset: run_module.encode_tail(tail(found), offset)
            ),
        ):
            for entries in blocks:
                for entry in entries:
                    builder._last_key = b""
                    builder.add(entry)
                    self._account(entry)
                builder._flush()
            parts = builder.finish()
        data, found = b"".join(parts.read()), parts.ref(self.ulid(), TIME_NS)
        self.store.put(run_key(ROOT, found.level, seq, seq, ulid_text(found.ulid)), data)
        self.runs.append(ref(found))
        self.put_head(self.manifest(seq))

    def _account(self, entry: Entry) -> None:
        if entry.kind != Kind.TOMBSTONE:
            self.tree.add(entry)
            self.files += entry.kind == Kind.FILE
            self.size += entry.size

    def manifest(self, seq: int, /, **changes: Any) -> Manifest:
        manifest = Manifest(
            seq, self.tree.state_bytes(), self.tree.count, self.files, self.size, self.runs, [], TIME_NS, "n0"
        )
        return msgspec.structs.replace(manifest, **changes)

    def put_head(self, manifest: Manifest, root: str = ROOT) -> None:
        self.store.put(head_key(ROOT), encode_head(Head(root, 0, encode_manifest(manifest), ["0"], [])))


def _with_columns(change: Callable[[Any], Any]) -> Callable[[list[Entry]], EncodedBlock]:
    def encode(entries: list[Entry]) -> EncodedBlock:
        good = block_module.encode_block(entries)
        columns = msgspec.msgpack.decode(zstd.decompress(good.stored, good.plain_bytes), type=block_module.Columns)
        plain = msgspec.msgpack.encode(change(columns))
        return EncodedBlock(zstd.compress(plain), len(plain), good.hashes, good.packs)

    return encode


def directory(path: bytes) -> Entry:
    parent, _, name = path.rpartition(b"/")
    return Entry(parent, name, Kind.DIRECTORY, 0o755)


def link(path: bytes, target: bytes) -> Entry:
    parent, _, name = path.rpartition(b"/")
    return Entry(parent, name, Kind.SYMLINK, 0o777, TIME_NS, target=target)


def file(path: bytes, chunks: tuple[ChunkRef, ...] = ()) -> Entry:
    parent, _, name = path.rpartition(b"/")
    return Entry(parent, name, Kind.FILE, 0o644, TIME_NS, sum(chunk.plain_bytes for chunk in chunks), chunks)
