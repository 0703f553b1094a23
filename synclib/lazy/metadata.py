"""The image and the map of a seq, made here from its chain: what a lazy mount needs before the first read.

They are files of a cache: named by the seq's digest, written whole, and checked before they are used again.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec
import xxhash
from blake3 import blake3

from synclib.core.entry import ADDRESS_UNIT, ChunkRef, Entry
from synclib.core.erofs import ImageBuilder
from synclib.core.extent_map import Extent, encode_map
from synclib.core.frame import DECODE_ERRORS
from synclib.core.manifest import Manifest
from synclib.disk.atomic import TEMPORARY, fsync_directory, write_atomic
from synclib.disk.faults import disk_errors
from synclib.lazy.chain import Chain

_ROW = struct.Struct("<QQIII32sB")
_READ_BYTES = 1 << 20
_UNUSED_S = 3600.0


@dataclass(frozen=True)
class Metadata:
    """Where the two files of a seq are; ``left_out``: how many entries have attributes that the image cannot hold."""

    image: Path
    map: Path
    left_out: int


class _Record(msgspec.Struct, frozen=True):
    """What the two files must be: their lengths and XXH3-128, as hex."""

    image_bytes: int
    image_xxh3: str
    map_bytes: int
    map_xxh3: str
    left_out: int


def metadata_of(manifest: Manifest, chain: Chain, directory: Path) -> Metadata:
    """The metadata of a seq, from ``directory`` where it is whole there, else made from the chain."""
    name = f"{manifest.digest[:32]}-{manifest.address_end}"
    found = Metadata(directory / f"{name}.image", directory / f"{name}.map", 0)
    record = _read_record(directory / f"{name}.json")
    if record is not None and _is_whole(found, record):
        return Metadata(found.image, found.map, record.left_out)
    with disk_errors():
        directory.mkdir(parents=True, exist_ok=True)
        with _temporary(found.image) as image, _temporary(found.map) as extents:
            left_out = _build(manifest, chain, image, extents)
            record = _Record(*_measured(image), *_measured(extents), left_out)
            for file, path in ((image, found.image), (extents, found.map)):
                file.flush()
                os.fsync(file.fileno())
                os.rename(file.name, path)
        fsync_directory(directory)
        write_atomic(directory / f"{name}.json", msgspec.json.encode(record))
    return Metadata(found.image, found.map, left_out)


def prune(directory: Path, used: set[str], now_s: float) -> None:
    """Remove the files of seqs that nobody uses: ``used`` are paths of images. What is younger than an hour may be
    about to be used, and stays."""
    wanted = {os.path.basename(path).removesuffix(".image") for path in used}
    for path in directory.iterdir():
        name, dot, kind = path.name.partition(".")
        is_ours = dot and kind.partition(".")[0] in ("image", "map", "json", "hydrated")
        if is_ours and name not in wanted and now_s - path.stat().st_mtime > _UNUSED_S:
            path.unlink(missing_ok=True)


def _build(manifest: Manifest, chain: Chain, image: IO[bytes], extents: IO[bytes]) -> int:
    """Write both; how many entries have attributes that were left out."""
    builder = ImageBuilder(manifest.address_end, blake3(manifest.digest.encode()).digest(16))
    with _Rows() as rows:
        for at, data in builder.build(rows.noting(chain.entries())):
            image.seek(at)
            image.write(data)
        image.truncate(builder.image_bytes)
        extents.writelines(encode_map(rows.sorted()))
    return builder.left.xattrs


class _Rows:
    """The extents of all files, on disk, so that they can be given out by position: memory holds eight bytes each."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this
        self._positions = array("Q")
        self._packs: dict[bytes, int] = {}

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def noting(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The entries as they come; their extents are kept."""
        for entry in entries:
            position = entry.address * ADDRESS_UNIT
            for chunk in entry.chunks:
                number = self._packs.setdefault(chunk.pack, len(self._packs))
                self._positions.append(position)
                place = (position, chunk.offset, chunk.stored_bytes, chunk.plain_bytes, number)
                self._file.write(_ROW.pack(*place, chunk.hash, chunk.codec))
                position += chunk.plain_bytes
            yield entry

    def sorted(self) -> Iterator[Extent]:
        """By position, each once: hard links share theirs."""
        if not self._positions:
            return
        self._file.flush()
        packs = list(self._packs)
        order = sorted(range(len(self._positions)), key=self._positions.__getitem__)
        last = -1
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as rows:
            for index in order:
                position, offset, stored, plain, number, digest, codec = _ROW.unpack_from(rows, index * _ROW.size)
                if position != last:
                    yield Extent(position, ChunkRef(digest, packs[number], offset, stored, plain, codec))
                last = position


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[IO[bytes]]:
    """A file beside ``path``; if it is not renamed it goes."""
    file = tempfile.NamedTemporaryFile("w+b", prefix=f"{path.name}.", suffix=TEMPORARY, dir=path.parent, delete=False)  # noqa: SIM115
    try:
        with file:
            yield file
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file.name)


def _read_record(path: Path) -> _Record | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Record)
    except (FileNotFoundError, *DECODE_ERRORS):
        return None


def _is_whole(found: Metadata, record: _Record) -> bool:
    for path, wanted in (
        (found.image, (record.image_bytes, record.image_xxh3)),
        (found.map, (record.map_bytes, record.map_xxh3)),
    ):
        try:
            with open(path, "rb") as file:
                if _measured(file) != wanted:
                    return False
        except FileNotFoundError:
            return False
    return True


def _measured(file: IO[bytes]) -> tuple[int, str]:
    """Length and XXH3-128 of a file."""
    file.seek(0)
    digest, length = xxhash.xxh3_128(), 0
    while piece := file.read(_READ_BYTES):
        digest.update(piece)
        length += len(piece)
    return length, digest.hexdigest()
