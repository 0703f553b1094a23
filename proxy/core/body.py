"""The bodies of HTTP/1 messages (RFC 9112 6-7), taken from whatever bytes there are."""

from __future__ import annotations

import re

from proxy.core.syntax import STRAY, parse_fields
from synclib.errors import Corrupt

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_SIZE_LINE_MAX = 256
_TRAILERS_MAX = 8 << 10


class SizedBody:
    """A body of a known number of bytes."""

    __slots__ = ("_left", "surplus")

    def __init__(self, length: int) -> None:
        self._left = length
        self.surplus = b""

    @property
    def is_complete(self) -> bool:
        return self._left == 0

    def feed(self, data: bytes) -> bytes:
        """The part of ``data`` that belongs to the body; what lies beyond is kept in ``surplus``."""
        if len(data) <= self._left:
            self._left -= len(data)
            return data
        body, self.surplus = data[: self._left], data[self._left :]
        self._left = 0
        return body


class ChunkedBody:
    """A body in chunked coding: sizes are plain hex, extensions and trailers are dropped; Corrupt for all else."""

    __slots__ = ("_buffer", "_left", "_state", "_trailers", "surplus")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._state = "size"
        self._left = 0
        self._trailers = 0
        self.surplus = b""

    @property
    def is_complete(self) -> bool:
        return self._state == "end"

    def feed(self, data: bytes) -> bytes:
        """The decoded bytes that ``data`` completes."""
        buffer = self._buffer
        buffer += data
        decoded: list[bytes] = []
        while self._step(buffer, decoded):
            pass
        return b"".join(decoded)

    def _step(self, buffer: bytearray, decoded: list[bytes]) -> bool:
        """One step of the machine size -> data -> gap -> size ... -> trailers -> end; False to wait for bytes."""
        match self._state:
            case "size":
                line = self._line(buffer, _SIZE_LINE_MAX)
                if line is None:
                    return False
                size = _SIZE.fullmatch(line)
                if size is None:
                    raise Corrupt("a chunk has no valid size")
                self._left = int(size[1], 16)
                self._state = "data" if self._left else "trailers"
            case "data":
                if not buffer:
                    return False
                part = bytes(buffer[: self._left])
                del buffer[: len(part)]
                decoded.append(part)
                self._left -= len(part)
                if not self._left:
                    self._state = "gap"
            case "gap":
                line = self._line(buffer, 2)
                if line is None:
                    return False
                if line:
                    raise Corrupt("a chunk is longer than its size")
                self._state = "size"
            case "trailers":
                line = self._line(buffer, _TRAILERS_MAX - self._trailers)
                if line is None:
                    return False
                if line:
                    parse_fields((line,))
                    self._trailers += len(line) + 2
                else:
                    self._state = "end"
                    self.surplus = bytes(buffer)
                    buffer.clear()
            case _:
                self.surplus += bytes(buffer)
                buffer.clear()
                return False
        return True

    @staticmethod
    def _line(buffer: bytearray, length_max: int) -> bytes | None:
        end = buffer.find(b"\r\n", 0, length_max + 2)
        if STRAY.search(buffer, 0, end if end >= 0 else min(len(buffer), length_max)):
            raise Corrupt("a stray CR, LF or NUL in chunked coding")
        if end < 0:
            if len(buffer) >= length_max + 2:
                raise Corrupt("a line of chunked coding is too long")
            return None
        line = bytes(buffer[:end])
        del buffer[: end + 2]
        return line
