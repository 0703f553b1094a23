"""Arbitrary bytes to the proxy's parsers: one reading or one kind of refusal, however the bytes are cut."""

from __future__ import annotations

import contextlib

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.body import ChunkedBody
from proxy.core.message import Refused
from proxy.core.request import encode_request, find_head, forwarded_fields, parse_request_head
from proxy.core.response import ResponseReader
from synclib.errors import Corrupt

# Fragments of which messages, good and bad, are made; random bytes alone would hardly ever reach the inner rules.
_PARTS = st.sampled_from(
    [
        b"GET", b"POST", b" ", b"/", b"/a", b"?b", b"%2f", b"%41", b"..", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\n",
        b"\r", b"\0", b"Host: a", b"Host", b":", b"Content-Length: 5", b"Transfer-Encoding: chunked", b"chunked", b",",
        b"X-Y: z", b"\t", b"\x7f", b"\xff", b"Connection: close", b"5", b"0", b"hello", b"HTTP/1.1 200 OK", b"HTTP/",
        b"HTTP/1.1 204 x", b"HTTP/1.1 100 x", b"\r\n\r\n", b";",
    ]
)  # fmt: skip
_SOUP = st.lists(st.one_of(_PARTS, st.binary(max_size=3)), max_size=24).map(b"".join)
_TOKEN = st.text("abcXYZ019!#$%&'*+-.^_`|~", min_size=1, max_size=8).map(str.encode)
_VALUE = st.binary(max_size=12).map(lambda value: bytes(b for b in value if b >= 0x20 and b != 0x7F).strip())
_FIELDS = st.lists(st.tuples(_TOKEN, _VALUE), max_size=6)


@st.composite
def _requests(draw: st.DrawFn) -> bytes:
    """Heads that are nearly always right."""
    method = draw(st.sampled_from([b"GET", b"HEAD", b"PUT", b"FROB"]))
    target = b"/" + draw(st.text("abc019-._~!$&'()*+,;=:@/?", max_size=12)).encode()
    lines = [b"%b %b HTTP/1.1" % (method, target), b"Host: a.example:8080"]
    lines += [b"%b: %b" % pair for pair in draw(_FIELDS)]
    return b"\r\n".join(lines)


@given(_SOUP)
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    with contextlib.suppress(Refused):
        end, _ = find_head(bytearray(data), 0)
        if end >= 0:
            parse_request_head(data[:end])


@given(st.one_of(_SOUP.map(lambda soup: b"GET / HTTP/1.1\r\nHost: a\r\n" + soup.rstrip(b"\r\n")), _requests()))
def test_what_is_accepted_another_strict_parser_reads_in_the_same_way(head: bytes) -> None:
    try:
        end, _ = find_head(bytearray(head + b"\r\n\r\n"), 0)
        if end != len(head):
            return
        request = parse_request_head(head)
    except Refused:
        return
    seen = _Seen()
    parser = httptools.HttpRequestParser(seen)
    with_body = head + b"\r\n\r\n" + (b"0\r\n\r\n" if request.is_chunked else b"x" * (request.length or 0))
    try:
        parser.feed_data(with_body)
    except httptools.HttpParserInvalidMethodError:
        return  # it knows a fixed set of methods
    except httptools.HttpParserUpgrade:
        return  # it stops there; we do not switch protocols and go on
    assert seen.target.endswith(request.target)
    assert (parser.get_method(), parser.get_http_version()) == (request.method, f"1.{request.minor}")
    assert seen.is_complete
    assert len(seen.body) == (request.length or 0)


class _Seen:
    def __init__(self) -> None:
        self.target = b""
        self.body = b""
        self.is_complete = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.is_complete = True


@given(_requests())
def test_what_a_backend_is_sent_reads_back_as_the_same_request(head: bytes) -> None:
    try:
        request = parse_request_head(head)
    except Refused:
        return
    if request.has_content:
        return
    wire = encode_request(request, forwarded_fields(request, b"10.0.0.1", b"boxlink-x"))
    assert wire.endswith(b"\r\n\r\n")
    again = parse_request_head(wire[:-4])
    assert (again.method, again.target, again.host) == (request.method, request.target, request.host)
    ours = (b"via", b"x-forwarded-for", b"x-forwarded-proto", b"max-forwards")
    assert sorted(again.fields.without(ours)) == sorted(request.fields.without(ours))


@given(_SOUP, st.integers(1, 5))
@example(b"\r\r\n\r\n", 1)
def test_a_head_is_found_or_refused_alike_whole_or_in_pieces(data: bytes, size: int) -> None:
    def outcome(pieces: list[bytes]) -> object:
        buffer, scanned = bytearray(), 0
        for piece in pieces:
            buffer += piece
            try:
                end, scanned = find_head(buffer, scanned)
            except Refused:
                return "refused"
            if end >= 0:
                return bytes(buffer[:end])
        return None

    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert outcome([data]) == outcome(pieces)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.integers(1, 7), st.binary(max_size=8))
def test_chunked_bodies_decode_alike_whole_or_in_pieces(chunks: list[bytes], size: int, surplus: bytes) -> None:
    wire = b"".join(b"%x;e=1\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\nT: x\r\n\r\n"
    whole = ChunkedBody()
    assert whole.feed(wire + surplus) == b"".join(chunks)
    assert (whole.is_complete, whole.surplus) == (True, surplus)
    cut = ChunkedBody()
    assert b"".join(cut.feed(wire[at : at + size]) for at in range(0, len(wire), size)) == b"".join(chunks)
    assert cut.is_complete


@given(_SOUP)
def test_any_bytes_are_a_chunked_body_or_corrupt(data: bytes) -> None:
    body = ChunkedBody()
    try:
        assert len(body.feed(data)) <= len(data)
    except Corrupt:
        return


@given(_SOUP, st.sampled_from([b"GET", b"HEAD"]))
def test_any_bytes_are_a_response_or_corrupt_whole_or_byte_by_byte(data: bytes, method: bytes) -> None:
    def outcome(pieces: list[bytes]) -> object:
        reader, body = ResponseReader(method), b""
        try:
            for piece in pieces:
                body += reader.feed(piece)
            if not reader.is_complete:
                reader.feed_eof()
        except Corrupt:
            return "corrupt"
        assert reader.head is not None
        return reader.head.status, body, reader.may_reuse

    whole = outcome([data])
    cut = outcome([data[at : at + 1] for at in range(len(data))])
    assert whole == cut


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\nY: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x01\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
    ],
)
def test_answers_that_two_could_read_differently_are_corrupt(head: bytes) -> None:
    with pytest.raises(Corrupt):
        ResponseReader(b"GET").feed(head)
