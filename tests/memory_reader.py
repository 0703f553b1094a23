"""A reader over files in memory: the protocol of synclib.reader, for tests of what stands on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from blake3 import blake3

from synclib.core.entry import ChunkRef, Codec, Entry, Kind
from synclib.core.names import split_path
from synclib.core.treehash import TreeHash
from synclib.errors import BoxlinkError, Invalid, Missing
from synclib.reader import FirstTouch, WritableBuffer


class MemoryFile:
    def __init__(self, reader: MemoryReader, entry: Entry) -> None:
        self.entry = entry
        self._reader = reader

    def pread(self, offset: int, length: int) -> bytes:
        return self._reader.read(self.entry.path)[offset : offset + length]

    def readinto(self, buffer: WritableBuffer, offset: int) -> int:
        target = memoryview(buffer).cast("B")
        data = self.pread(offset, len(target))
        target[: len(data)] = data
        return len(data)

    def close(self) -> None:
        pass


class MemoryReader:
    """A dataset at one seq, as a dictionary of paths. ``failures`` are raised when a path is read."""

    def __init__(self, files: Mapping[bytes, bytes], seq: int = 1) -> None:
        self.seq = seq
        self.on_first_touch: FirstTouch | None = None
        self.failures: dict[bytes, BoxlinkError] = {}
        self.read_paths: list[bytes] = []
        self.is_closed = False
        self._files = dict(files)
        tree = TreeHash()
        entries = [_file_entry(path, data) for path, data in files.items()]
        directories = {parent for path in files for parent in _parents(path)}
        entries += [Entry(*split_path(path), Kind.DIRECTORY, 0o755) for path in directories]
        self._entries = {entry.path: entry for entry in sorted(entries, key=lambda entry: entry.key)}
        for entry in self._entries.values():
            tree.add(entry)
        self.digest = tree.hexdigest()

    def stat(self, path: bytes) -> Entry:
        try:
            return self._entries[path]
        except KeyError:
            raise Missing("there is no such path", path=repr(path)) from None

    def listdir(self, path: bytes) -> Iterator[Entry]:
        return (entry for entry in self._entries.values() if entry.directory == path)

    def walk(self, path: bytes = b"") -> Iterator[Entry]:
        inside = path + b"/" if path else b""
        return (entry for entry in self._entries.values() if entry.path.startswith(inside))

    def readlink(self, path: bytes) -> bytes:
        raise Invalid("it is no symlink", path=repr(path))

    def open(self, path: bytes) -> MemoryFile:
        entry = self.stat(path)
        if entry.kind != Kind.FILE:
            raise Invalid("it is no file", path=repr(path))
        return MemoryFile(self, entry)

    def close(self) -> None:
        self.is_closed = True

    def read(self, path: bytes) -> bytes:
        assert not self.is_closed, "read after close"
        self.read_paths.append(path)
        if path in self.failures:
            raise self.failures[path]
        return self._files[path]


def read_directory(directory: Path, seq: int = 1) -> MemoryReader:
    """A reader of the files below ``directory`` as they are now; markers are no part of a dataset."""
    files = {
        str(path.relative_to(directory)).encode(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith("synch.")
    }
    return MemoryReader(files, seq)


def _file_entry(path: bytes, data: bytes) -> Entry:
    directory, name = split_path(path)
    pieces = [data[start : start + (1 << 20)] for start in range(0, len(data), 1 << 20)]
    chunks = tuple(
        ChunkRef(blake3(piece).digest(), bytes(16), 0, len(piece), len(piece), Codec.RAW) for piece in pieces
    )
    return Entry(directory, name, Kind.FILE, 0o644, 0, len(data), chunks)


def _parents(path: bytes) -> Iterator[bytes]:
    while path := split_path(path)[0]:
        yield path
