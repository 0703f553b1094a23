"""A dataset of millions of entries made in seconds: blocks from one template, bytes of a few files only."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
from blake3 import blake3

from synclib.clock import ulid_text
from synclib.core import zstd
from synclib.core.block import BLOCK_DIGEST_BYTES, BlockInfo, Columns, encode_block
from synclib.core.entry import ADDRESS_FIRST, Codec, Entry, Kind, address_units
from synclib.core.manifest import Head, Manifest, RunRef, encode_head, encode_manifest, manifest_digest
from synclib.core.names import head_key, manifest_key, pack_key, sort_key
from synclib.core.pack import PackBuilder, PackInfo
from synclib.core.run import PackTable
from synclib.core.runfile import RunBuilder
from synclib.core.treehash import STATE_BYTES
from synclib.lazy.dataset import STORE_KEY
from synclib.store.base import Store

ROOT = "data/covers"
FILES_PER_BLOCK = 1250
FILE_BYTES = 20_000
TIME_NS = 1_700_000_000_000_000_000
NAMES = [b"978%010d.jpg" % number for number in range(FILES_PER_BLOCK)]


class LargeChain:
    """``count`` files in directories of 1,250 (with one real file in the middle one), and ``diffs`` small runs upon
    them, each of which adds 500 links and a real file. The digest is not that of the tree: nobody sums ten million."""

    def __init__(self, store: Store, count: int, diffs: int, scratch: Path) -> None:
        self._store, self._scratch = store, scratch
        self._ulids = itertools.count(1)
        self._address = ADDRESS_FIRST
        self.real: dict[bytes, bytes] = {}  # path -> bytes
        self.blocks = count // FILES_PER_BLOCK
        runs = [self._snap(), *(self._diff(seq) for seq in range(2, diffs + 2))]
        entries = sum(run.entry_count for run in runs)  # no path is in two of them
        seq = runs[-1].seq_last
        self.manifest = Manifest(
            seq,
            bytes(STATE_BYTES),
            entries,
            count,
            count * FILE_BYTES,
            runs,
            [],
            TIME_NS,
            "n1",
            address_end=self._address,
        )
        first = Manifest(
            1, bytes(STATE_BYTES), runs[0].entry_count, count, count * FILE_BYTES, runs[:1], [], TIME_NS, "n1"
        )
        data = encode_manifest(first)
        store.put(manifest_key(ROOT, 1, manifest_digest(data)), data)
        store.put(STORE_KEY, b"{}")
        store.put(head_key(ROOT), encode_head(Head(ROOT, 0, encode_manifest(self.manifest), ["0"], [])))

    def _ulid(self) -> bytes:
        return next(self._ulids).to_bytes(16, "big")

    def _real_file(self, directory: bytes, name: bytes, table: PackTable) -> Entry:
        builder = PackBuilder(self._ulid())
        data = (directory + name).ljust(FILE_BYTES, b".")
        chunk = builder.add(blake3(data).digest(), data, data, Codec.RAW)
        packed, info = builder.finish()
        self._store.put(pack_key(ROOT, ulid_text(info.ulid)), packed)
        table.add(info)
        entry = Entry(directory, name, Kind.FILE, 0o644, TIME_NS, FILE_BYTES, (chunk,), address=self._take(1))
        self.real[entry.path] = data
        return entry

    def _take(self, files: int) -> int:
        """The address of the first of so many files in a row."""
        first = self._address
        self._address += files * address_units(FILE_BYTES)
        return first

    def _keep(self, builder: RunBuilder) -> RunRef:
        parts = builder.finish()
        ref = parts.ref(self._ulid(), TIME_NS)
        path = self._scratch / "run"
        with path.open("wb") as file:
            file.writelines(parts.read())
        parts.close()
        self._store.put(ref.key(ROOT), path)
        path.unlink()
        return ref

    def _snap(self) -> RunRef:
        table = PackTable()
        builder = RunBuilder("snap", 1, 1, table)
        for number in range(self.blocks):
            builder.add(Entry(b"", b"d%07d" % number, Kind.DIRECTORY, 0o755))
        hashes = bytes(range(256)) * (32 * FILES_PER_BLOCK // 256) + bytes(32 * FILES_PER_BLOCK % 256)
        for number in range(self.blocks):
            directory = b"d%07d" % number
            if number == self.blocks // 2:
                for name in NAMES[:3]:
                    builder.add(self._real_file(directory, name, table))
            else:
                pack = PackInfo(self._ulid(), 32 << 20, FILES_PER_BLOCK, bytes(32))
                builder.copy(*_block(directory, pack, hashes, self._take(FILES_PER_BLOCK)))
        builder.end_at(sort_key(directory, NAMES[-1]))
        return self._keep(builder)

    def _diff(self, seq: int) -> RunRef:
        table = PackTable()
        builder = RunBuilder("diff1", seq, seq, table)
        step = max(1, self.blocks // 500)
        links = [
            Entry(b"d%07d" % (number * step), b"link%03d" % seq, Kind.SYMLINK, 0o777, TIME_NS, target=b"x")
            for number in range(min(500, self.blocks))
        ]
        real = self._real_file(b"d%07d" % (self.blocks // 3), b"new%03d.jpg" % seq, table)
        for entry in sorted([*links, real], key=lambda entry: entry.key):
            builder.add(entry)
        return self._keep(builder)


def _block(
    directory: bytes, pack: PackInfo, hashes: bytes, address: int
) -> tuple[BlockInfo, list[PackInfo], bytes, bytes]:
    gaps = [address, *[0] * (FILES_PER_BLOCK - 1)]
    columns = msgspec.structs.replace(_template(), directories=[directory], address_gaps=gaps)
    plain = msgspec.msgpack.encode(columns)
    stored = zstd.compress(plain)
    info = BlockInfo(
        sort_key(directory, NAMES[0]),
        0,
        len(stored),
        len(plain),
        FILES_PER_BLOCK,
        0,
        0,
        FILES_PER_BLOCK,
        [0],
        blake3(stored).digest(BLOCK_DIGEST_BYTES),
        blake3(hashes).digest(BLOCK_DIGEST_BYTES),
    )
    return info, [pack], stored, hashes


_templates: list[Columns] = []


def _template() -> Columns:
    if not _templates:
        chunk_builder = PackBuilder(bytes(16))
        data = bytes(FILE_BYTES)
        entries = [
            Entry(
                b"d",
                name,
                Kind.FILE,
                0o644,
                TIME_NS + number * 7_654_321,
                FILE_BYTES,
                (chunk_builder.add(b"h" * 32, data, data, Codec.RAW),),
            )
            for number, name in enumerate(NAMES)
        ]
        encoded = encode_block(entries)
        _templates.append(msgspec.msgpack.decode(zstd.decompress(encoded.stored, encoded.plain_bytes), type=Columns))
    return _templates[0]
