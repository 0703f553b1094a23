"""A list that may be long: in memory while it is short, then in an unnamed temporary file."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from typing import IO, Generic, TypeVar

import msgspec

T = TypeVar("T")
_LENGTH = struct.Struct("<I")
_MEMORY_BYTES = 8 << 20


class Spool(Generic[T]):
    """Structures in the order they came; may be read several times."""

    def __init__(self, kind: type[T]) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(_MEMORY_BYTES)  # noqa: SIM115 - lives with the spool
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(kind)
        self.count = 0

    def add(self, item: T) -> None:
        data = self._encoder.encode(item)
        self._file.write(_LENGTH.pack(len(data)) + data)
        self.count += 1

    def __iter__(self) -> Iterator[T]:
        self._file.seek(0)
        for _ in range(self.count):
            (length,) = _LENGTH.unpack(self._file.read(_LENGTH.size))
            yield self._decoder.decode(self._file.read(length))
