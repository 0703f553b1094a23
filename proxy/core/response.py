"""A backend's answer, from bytes (RFC 9112 4, 6): a reader that is fed whatever arrives.

A backend is believed no more than a client: what is malformed is Corrupt, which the shell turns into 502 and a dropped
connection.
"""

from __future__ import annotations

import re

from proxy.core.body import ChunkedBody, SizedBody
from proxy.core.message import HOP_BY_HOP, NEVER_CONNECTION, Fields, ResponseHead
from proxy.core.syntax import STRAY, parse_fields, parse_length, tokens
from synclib.errors import Corrupt

HEAD_BYTES_MAX = 32 << 10
INTERIM_MAX = 8

_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")


class ResponseReader:
    """Reads one response to a request with ``method``.

    ``head`` is None until it has been read; ``length`` is the body's size where it is known beforehand, ``interim``
    the 1xx heads that came before. ``is_complete`` tells when the body has ended by its own framing.
    """

    __slots__ = ("_body", "_buffer", "_is_persistent", "_method", "head", "interim", "is_complete", "length", "surplus")

    def __init__(self, method: bytes) -> None:
        self._method = method
        self._buffer = bytearray()
        self._body: SizedBody | ChunkedBody | None = None
        self._is_persistent = False
        self.head: ResponseHead | None = None
        self.interim: list[ResponseHead] = []
        self.length: int | None = None
        self.is_complete = False
        self.surplus = False

    @property
    def may_reuse(self) -> bool:
        """Whether another request may follow on this connection."""
        return self.is_complete and self._is_persistent and not self.surplus

    @property
    def ends_at_close(self) -> bool:
        """Whether the body has no framing: it ends where the connection does."""
        return self.head is not None and self._body is None and not self.is_complete

    def feed(self, data: bytes) -> bytes:
        """The body's bytes in ``data``; b"" while the head is not complete."""
        if self.head is None:
            self._buffer += data
            data = self._read_heads()
            if self.head is None:
                return b""
        if self.is_complete:
            self.surplus = self.surplus or bool(data)
            return b""
        if self._body is None:
            return data
        decoded = self._body.feed(data)
        self.is_complete = self._body.is_complete
        self.surplus = bool(self._body.surplus)
        return decoded

    def feed_eof(self) -> None:
        """The backend closed the connection: the end of a body without framing, else Corrupt."""
        if not self.ends_at_close:
            raise Corrupt("the backend closed the connection within its answer")
        self.is_complete = True
        self._is_persistent = False

    def _read_heads(self) -> bytes:
        """Take heads off the buffer up to the final one; returns what follows it."""
        while self.head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if STRAY.search(self._buffer, 0, end if end >= 0 else min(len(self._buffer), HEAD_BYTES_MAX)):
                raise Corrupt("a stray CR, LF or NUL in an answer's head")
            if max(end, len(self._buffer) if end < 0 else 0) > HEAD_BYTES_MAX:
                raise Corrupt(f"an answer's head is larger than {HEAD_BYTES_MAX} bytes")
            if end < 0:
                return b""
            head = bytes(self._buffer[:end])
            del self._buffer[: end + 4]
            self._take(head)
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def _take(self, head: bytes) -> None:
        line, *field_lines = head.split(b"\r\n")
        match = _LINE.fullmatch(line)
        if match is None:
            raise Corrupt("an answer's status line is malformed")
        minor, status, reason = int(match[1]), int(match[2]), match[3] or b""
        fields = Fields(parse_fields(field_lines))
        connection = tokens(fields.get(b"connection"))
        dropped = HOP_BY_HOP | {b"content-length"} | (connection - NEVER_CONNECTION)
        ours = ResponseHead(status, reason, fields.without(dropped))
        if status < 200:
            # 101 answers an Upgrade, and none was sent.
            if status == 101 or len(self.interim) >= INTERIM_MAX:
                raise Corrupt("an answer of a kind that was not asked for")
            self.interim.append(ours)
            return
        self._frame(minor, status, fields)
        self._is_persistent = minor == 1 and b"close" not in connection
        self.head = ours

    def _frame(self, minor: int, status: int, fields: Fields) -> None:
        codings, lengths = fields.lines(b"transfer-encoding"), fields.lines(b"content-length")
        length = parse_length(lengths)
        if codings and (length is not None or minor == 0 or len(codings) > 1 or codings[0].lower() != b"chunked"):
            raise Corrupt("an answer's framing can be read in more than one way")
        if self._method == b"HEAD" or status in (204, 304):
            self.length = length if status not in (204, 304) else None
            self.is_complete = True
        elif codings:
            self._body = ChunkedBody()
        elif length is not None:
            self._body = SizedBody(length)
            self.length = length
            self.is_complete = length == 0
