"""A dataset of any size whose packs are nowhere: their bytes are a keyed function of (pack, offset), its index is real.

Files of one size in folders of 1,250, each a chunk of its own; a folder's files fill packs of its own. A file's bytes
are one of 8,192 stretches of a few MB of noise, chosen by pack and slot: so ten million hashes cost 8,192, and whoever
knows a file's number can say what is in it. Two chunks that a reader might mix up have the same bytes once in 8,192.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from blake3 import blake3

from synclib.clock import SystemClock, SystemEntropy, ulid_from_text
from synclib.core import zstd
from synclib.core.block import BLOCK_DIGEST_BYTES, BlockInfo, Columns, encode_block
from synclib.core.entry import ADDRESS_FIRST, ChunkRef, Codec, Entry, Kind, address_units
from synclib.core.manifest import Head, Manifest, RunRef, encode_head, encode_manifest
from synclib.core.names import head_key, pack_key, sort_key
from synclib.core.pack import FOOTER_BYTES, HEADER_BYTES, PACK_BYTES_TARGET, SLOT_BYTES, PackInfo
from synclib.core.run import PackTable
from synclib.core.runfile import RunBuilder
from synclib.core.treehash import STATE_BYTES
from synclib.errors import Corrupt, Missing
from synclib.lazy.dataset import STORE_KEY
from synclib.store.base import Body, Buffer, Fetched, ObjectInfo, Store
from synclib.store.file import FileStore

ROOT = "data/covers"
FOLDER_FILES = 1250
_PACKS_KEY = pack_key(ROOT, "")
_TIME_NS = 1_700_000_000_000_000_000
_STRETCHES, _STEP = 8192, 509
_NAMES = [b"978%010d.jpg" % number for number in range(FOLDER_FILES)]


class Content:
    """What is in the files of a dataset whose files all have ``file_bytes``. Safe between threads."""

    def __init__(self, file_bytes: int) -> None:
        self.file_bytes = file_bytes
        self.pack_files = max(PACK_BYTES_TARGET // file_bytes, 1)
        self.folder_packs = -(-FOLDER_FILES // self.pack_files)
        self._noise = random.Random(180).randbytes(_STRETCHES * _STEP + file_bytes)

    @functools.cached_property
    def hashes(self) -> list[bytes]:
        """Of every stretch."""
        return [blake3(self._stretch(number)).digest() for number in range(_STRETCHES)]

    def _stretch(self, number: int) -> memoryview:
        return memoryview(self._noise)[number * _STEP : number * _STEP + self.file_bytes]

    def stretch_of(self, pack: int, slot: int) -> int:
        """Which one a chunk is: Knuth's multiplicative hash of both."""
        return ((pack * 2_654_435_761 + slot * 40_503 + 180) * 2_246_822_519 >> 11) % _STRETCHES

    def chunk(self, pack: int, slot: int) -> memoryview:
        return self._stretch(self.stretch_of(pack, slot))

    def place_of(self, folder: int, number: int) -> tuple[int, int]:
        """(pack, slot) of a file of a folder."""
        return 1 + folder * self.folder_packs + number // self.pack_files, number % self.pack_files

    def file(self, folder: int, number: int) -> bytes:
        """What a reader must get."""
        return bytes(self.chunk(*self.place_of(folder, number)))

    def pack_bytes(self, pack: int, start: int, stop: int) -> bytes:
        """The bytes at [start, stop) of a pack; all of them are chunks'."""
        slot, skip = divmod(start - HEADER_BYTES, self.file_bytes)
        parts, length = [], 0
        while length < skip + stop - start:
            parts.append(self.chunk(pack, slot))
            slot, length = slot + 1, length + self.file_bytes
        return b"".join(parts)[skip : skip + stop - start]

    def files_in(self, pack: int) -> int:
        within = (pack - 1) % self.folder_packs
        return min(self.pack_files, FOLDER_FILES - within * self.pack_files)


def path_of(folder: int, number: int) -> bytes:
    return b"d%07d/%s" % (folder, _NAMES[number])


class SyntheticStore:
    """Any store, but that its packs are computed."""

    def __init__(self, store: Store, content: Content) -> None:
        self.url, self._store, self._content = store.url, store, content

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        if not key.startswith(_PACKS_KEY):
            return self._store.get_ranges(key, ranges)
        pack = int.from_bytes(ulid_from_text(key.removeprefix(_PACKS_KEY)), "big")
        stop_max = HEADER_BYTES + self._content.files_in(pack) * self._content.file_bytes
        if not all(HEADER_BYTES <= start < stop <= stop_max for start, stop in ranges):
            raise Corrupt("no chunks are there", key=key)
        return [self._content.pack_bytes(pack, start, stop) for start, stop in ranges]

    def get(self, key: str, *, size_max: int, if_none_match: str | None = None) -> Fetched | None:
        if key.startswith(_PACKS_KEY):
            raise Missing("packs here have ranges only", key=key)
        return self._store.get(key, size_max=size_max, if_none_match=if_none_match)

    def get_suffix(self, key: str, length: int) -> Fetched:
        return self._store.get_suffix(key, length)

    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        return self._store.put(key, body, if_absent=if_absent, if_match=if_match)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        self._store.delete(key, if_match=if_match)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        return self._store.list(prefix, after=after)


def open_synthetic(directory: str, file_bytes: int) -> SyntheticStore:
    return SyntheticStore(FileStore(directory, SystemClock(), SystemEntropy()), Content(file_bytes))


def make(store: Store, content: Content, count: int, scratch: Path) -> Manifest:
    """Publish ``count`` files (a multiple of 1,250) as a snap at seq 1. The digest is not that of the tree: nobody sums
    ten million entries here."""
    folders = count // FOLDER_FILES
    snap = _snap(store, content, folders, scratch)
    units = address_units(content.file_bytes)
    manifest = Manifest(
        1,
        bytes(STATE_BYTES),
        snap.entry_count,
        count,
        count * content.file_bytes,
        [snap],
        [],
        _TIME_NS,
        "synthetic",
        address_end=ADDRESS_FIRST + count * units,
    )
    store.put(STORE_KEY, b"{}")
    store.put(head_key(ROOT), encode_head(Head(ROOT, 0, encode_manifest(manifest), ["0"], [])))
    return manifest


def _snap(store: Store, content: Content, folders: int, scratch: Path) -> RunRef:
    builder = RunBuilder("snap", 1, 1, PackTable())
    for folder in range(folders):
        builder.add(Entry(b"", b"d%07d" % folder, Kind.DIRECTORY, 0o755))
    template = _template(content)
    units = FOLDER_FILES * address_units(content.file_bytes)
    for folder in range(folders):
        builder.copy(*_block(content, template, folder, ADDRESS_FIRST + folder * units))
    builder.end_at(sort_key(b"d%07d" % (folders - 1), _NAMES[-1]))
    parts = builder.finish()
    ref = parts.ref((1).to_bytes(16, "big"), _TIME_NS)
    path = scratch / "snap"
    with path.open("wb") as file:
        file.writelines(parts.read())
    parts.close()
    store.put(ref.key(ROOT), path)
    path.unlink()
    return ref


def _ulid(pack: int) -> bytes:
    return pack.to_bytes(16, "big")


def _block(
    content: Content, template: Columns, folder: int, address: int
) -> tuple[BlockInfo, list[PackInfo], bytes, bytes]:
    """A folder's files. Blocks differ in the folder's name, the packs, the first address and the hashes."""
    directory = b"d%07d" % folder
    gaps = [address, *[0] * (FOLDER_FILES - 1)]
    plain = msgspec.msgpack.encode(msgspec.structs.replace(template, directories=[directory], address_gaps=gaps))
    stored = zstd.compress(plain)
    every = content.hashes
    hashes = b"".join(every[content.stretch_of(*content.place_of(folder, number))] for number in range(FOLDER_FILES))
    first, _ = content.place_of(folder, 0)
    packs = [_pack_info(content, pack) for pack in range(first, first + content.folder_packs)]
    info = BlockInfo(
        sort_key(directory, _NAMES[0]),
        0,
        len(stored),
        len(plain),
        FOLDER_FILES,
        0,
        0,
        FOLDER_FILES,
        list(range(len(packs))),
        blake3(stored).digest(BLOCK_DIGEST_BYTES),
        blake3(hashes).digest(BLOCK_DIGEST_BYTES),
    )
    return info, packs, stored, hashes


def _pack_info(content: Content, pack: int) -> PackInfo:
    """Its slot table is nowhere: who mounts or reads a file never asks for it."""
    files = content.files_in(pack)
    size = HEADER_BYTES + files * (content.file_bytes + SLOT_BYTES) + FOOTER_BYTES
    return PackInfo(_ulid(pack), size, files, bytes(32))


def _template(content: Content) -> Columns:
    """A folder's block as columns: names, sizes, places in packs."""
    entries = []
    for number, name in enumerate(_NAMES):
        pack, slot = content.place_of(0, number)
        offset = HEADER_BYTES + slot * content.file_bytes
        chunk = ChunkRef(bytes(32), _ulid(pack), offset, content.file_bytes, content.file_bytes, Codec.RAW)
        time_ns = _TIME_NS + number * 7_654_321
        entries.append(Entry(b"d", name, Kind.FILE, 0o644, time_ns, content.file_bytes, (chunk,)))
    encoded = encode_block(entries)
    return msgspec.msgpack.decode(zstd.decompress(encoded.stored, encoded.plain_bytes), type=Columns)
