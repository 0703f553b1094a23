"""What a directory's files looked like when it was last published: so that an unchanged one is not compared with runs.

A local file beside the base, of one record a directory in the order of a scan, in compressed blocks. Only a help: it
is believed only if it is of exactly this base and its digests are right, and where it is damaged its records are
unknown. A row that must not be believed (too young, skipped) is stored with mode 0, which no file has.

    header   96 B   magic, version, identity, place and digest of the trailer, digest of the header; written last
    blocks          lengths (4 B each) and digest (16 B), then zstd of MessagePack: [(directory, packed rows), …]
    trailer         MessagePack: paths that are stored as seen, but were skipped later
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import msgspec
from blake3 import blake3

from synclib.core import zstd
from synclib.core.names import split_path
from synclib.disk.scan import Row
from synclib.errors import Corrupt

_MAGIC = b"BXSC"
_VERSION = 1
_HEADER = struct.Struct("<4sI32sQI16s16s12x")
_BLOCK = struct.Struct("<II16s")
_BLOCK_PLAIN_TARGET = 256 << 10
# A directory of some millions of files is compared with its runs.
_RECORD_BYTES_MAX = 64 << 20
_BLOCK_PLAIN_MAX = _RECORD_BYTES_MAX + (1 << 20)
_COPY_BYTES = 1 << 20

_row_encoder = msgspec.msgpack.Encoder()
_row_decoder = msgspec.msgpack.Decoder(list[Row])
_record_decoder = msgspec.msgpack.Decoder(list[tuple[bytes, bytes]])
_path_decoder = msgspec.msgpack.Decoder(list[bytes])


def pack_rows(rows: Sequence[Row]) -> bytes | None:
    """Rows as bytes: equal bytes say the same. None for rows that cannot be stored."""
    try:
        return _row_encoder.encode(rows)
    except OverflowError:  # a time far away
        return None


def unpack_rows(packed: bytes) -> list[Row]:
    return _row_decoder.decode(packed)


def unsure_row(name: bytes) -> Row:
    """A row that equals none that a scan finds."""
    return (name, 0, 0, 0, b"", ())


def is_unsure(row: Row) -> bool:
    return row[1] == 0


class StatCache:
    """Read and rewritten in step with one scan: for each directory :meth:`take`, then :meth:`record`.

    A new file is begun at the first difference only; what came before it is copied. None is where not ``is_kept``.
    """

    def __init__(self, path: Path, identity: bytes, *, is_kept: bool = True) -> None:
        self._path, self._identity, self._is_kept = path, identity, is_kept
        self._old: IO[bytes] | None = None
        self._new: IO[bytes] | None = None
        self._end = self._next_block = 0
        self._records: list[tuple[bytes, bytes]] = []  # of the current old block
        self._index = 0
        self._unsure: dict[bytes, set[bytes]] = {}
        self._pending: list[tuple[bytes, bytes]] = []  # recorded, and not in the new file's blocks
        self._pending_bytes = 0
        self._block_start = _HEADER.size  # of the current old block
        self._open()

    def _open(self) -> None:
        try:
            file = open(self._path, "rb")  # noqa: SIM115 - lives as long as this
        except OSError:
            return
        try:
            trailer = _read_header(file, self._identity)
        except (Corrupt, msgspec.MsgspecError, OSError):
            file.close()
            return
        self._end, paths = trailer
        for path in paths:
            directory, name = split_path(path)
            self._unsure.setdefault(directory, set()).add(name)
        self._old, self._next_block = file, _HEADER.size

    @property
    def is_believed(self) -> bool:
        """Whether there is a file, and it is of the base asked for."""
        return self._old is not None

    def take(self, directory: bytes) -> bytes | None:
        """The packed rows of a directory, None where they are not known. Directories come in the order of a scan."""
        wanted = _order(directory)
        while True:
            if self._index == len(self._records) and not self._load():
                return None
            found, packed = self._records[self._index]
            order = _order(found)
            if order > wanted:
                return None
            self._index += 1
            if order == wanted:
                return self._masked(directory, packed)
            self._begin()  # a directory that is no more

    def _masked(self, directory: bytes, packed: bytes) -> bytes | None:
        if directory not in self._unsure:
            return packed
        self._begin()
        names = self._unsure[directory]
        rows = [unsure_row(row[0]) if row[0] in names else row for row in unpack_rows(packed)]
        return pack_rows(rows)

    def _load(self) -> bool:
        """The next block of the old file; False at its end, or where it is damaged."""
        if self._old is None or self._next_block >= self._end:
            return False
        try:
            self._old.seek(self._next_block)
            plain_bytes, stored_bytes, digest = _BLOCK.unpack(self._old.read(_BLOCK.size))
            if plain_bytes > _BLOCK_PLAIN_MAX or stored_bytes > self._end - self._next_block:
                raise Corrupt("a block of the stat cache has an impossible length")
            stored = self._old.read(stored_bytes)
            if blake3(stored).digest(16) != digest:
                raise Corrupt("a block of the stat cache does not have its digest")
            records = _record_decoder.decode(zstd.decompress(stored, plain_bytes))
        except (Corrupt, msgspec.MsgspecError, struct.error, OSError):
            self._begin()
            self._end = 0
            return False
        if self._new is None:
            self._block_start = self._next_block
            self._pending, self._pending_bytes = [], 0
        self._next_block += _BLOCK.size + stored_bytes
        self._records, self._index = records, 0
        return True

    def record(self, directory: bytes, packed: bytes | None, *, is_same: bool) -> None:
        """What is now to be known of the directory that was taken last; ``is_same`` when it is what was taken."""
        if not is_same:
            self._begin()
        if not self._is_kept or packed is None or len(packed) > _RECORD_BYTES_MAX:
            return
        self._pending.append((directory, packed))
        if self._new is None:
            return
        self._pending_bytes += len(packed) + len(directory)
        if self._pending_bytes >= _BLOCK_PLAIN_TARGET:
            self._flush()

    def _begin(self) -> None:
        """Start the new file, with all that was the same so far."""
        if self._new is not None or not self._is_kept:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Without a name: a publisher that is killed leaves nothing.
        self._new = tempfile.TemporaryFile(dir=self._path.parent)  # noqa: SIM115 - lives as long as this
        self._new.write(bytes(_HEADER.size))
        if self._old is not None:
            self._old.seek(_HEADER.size)
            left = self._block_start - _HEADER.size
            while left and (piece := self._old.read(min(left, _COPY_BYTES))):
                self._new.write(piece)
                left -= len(piece)
        self._pending_bytes = sum(len(packed) + len(directory) for directory, packed in self._pending)

    def _flush(self) -> None:
        assert self._new is not None
        if self._pending:
            plain = msgspec.msgpack.encode(self._pending)
            stored = zstd.compress(plain)
            self._new.write(_BLOCK.pack(len(plain), len(stored), blake3(stored).digest(16)) + stored)
            self._pending, self._pending_bytes = [], 0

    def finish(self, identity: bytes, unsure: Iterable[bytes]) -> None:
        """All directories were recorded: the file is now of the base ``identity``; nothing is written if it was so.

        ``unsure``: paths that were skipped after they had been recorded.
        """
        paths = sorted(unsure)
        if self._index < len(self._records) or self._next_block < self._end:
            self._begin()
        if identity != self._identity or self._old is None or paths:
            self._begin()
        if self._new is not None:
            self._flush()
            offset = self._new.tell()
            trailer = msgspec.msgpack.encode(paths)
            self._new.write(trailer)
            self._new.seek(0)
            self._new.write(_encode_header(identity, offset, trailer))
            _replace(self._path, self._new)
        self.close()

    def close(self) -> None:
        """Give up what was not finished."""
        if self._new is not None:
            self._new.close()
            self._new = None
        if self._old is not None:
            self._old.close()
            self._old = None


def _replace(path: Path, file: IO[bytes]) -> None:
    """Give a finished file its name. It is not flushed to the disk: its digests tell if that went wrong."""
    descriptor, temporary = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        file.seek(0)
        with os.fdopen(descriptor, "wb") as target:
            shutil.copyfileobj(file, target, _COPY_BYTES)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _order(directory: bytes) -> bytes:
    return directory.replace(b"/", b"\0")


def _encode_header(identity: bytes, offset: int, trailer: bytes) -> bytes:
    fields = (_MAGIC, _VERSION, identity, offset, len(trailer), blake3(trailer).digest(16))
    return _HEADER.pack(*fields, blake3(_HEADER.pack(*fields, bytes(16))).digest(16))


def _read_header(file: IO[bytes], identity: bytes) -> tuple[int, list[bytes]]:
    """(end of the blocks, paths of the trailer); Corrupt unless the file is whole and of this identity."""
    size = os.fstat(file.fileno()).st_size
    header = file.read(_HEADER.size)
    if len(header) != _HEADER.size:
        raise Corrupt("a stat cache has no header")
    _, _, found, offset, length, _, _ = _HEADER.unpack(header)
    if found != identity or offset + length != size or offset < _HEADER.size:
        raise Corrupt("a stat cache is of another base")
    file.seek(offset)
    trailer = file.read(length)
    if header != _encode_header(identity, offset, trailer):
        raise Corrupt("a stat cache does not have its digest")
    return offset, _path_decoder.decode(trailer)
