"""A request's head, from bytes: one strict reading, or a refusal.

What two servers may read in two ways is refused (request smuggling, RFC 9112 11.2), even where the RFC would let a
lenient reader through. The refusal names a status; the connection is closed after it.
"""

from __future__ import annotations

import re

from proxy.core.message import HOP_BY_HOP, Field, Fields, Refused, Request, encode_fields
from proxy.core.syntax import FIELDS_MAX, STRAY, TOKEN, parse_fields, parse_length, tokens
from synclib.errors import Corrupt

HEAD_BYTES_MAX = 16 << 10
TARGET_BYTES_MAX = 8 << 10

_LINE = re.compile(rb"([^ ]+) ([\x21-\x7e]+) HTTP/1\.([01])")
_OTHER_VERSION = re.compile(rb"[^ ]+ [^ ]+ HTTP/(?!1\.[01]\Z)[0-9](?:\.[0-9])?")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]*)(.*)")
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*)(?::([0-9]{0,5}))?")
_BAD_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# In a path: an encoded NUL, slash or backslash, or a segment that some server would resolve away.
_AMBIGUOUS = re.compile(rb"(?i)%00|%2f|%5c|\\|/(?:\.|%2e){1,2}(?:/|\Z)")
# Fields that frameworks obey in place of the request line or of the peer's address, and that no cache key holds.
_OVERRIDES = frozenset(
    (
        b"forwarded",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-forwarded-proto",
        b"x-forwarded-scheme",
        b"x-forwarded-server",
        b"x-host",
        b"x-http-method",
        b"x-http-method-override",
        b"x-method-override",
        b"x-original-host",
        b"x-original-url",
        b"x-rewrite-url",
    )
)


def find_head(buffer: bytearray, scanned: int) -> tuple[int, int]:
    """(end of the head before its empty line or -1, how far has been looked) in what a client has sent so far.

    Refused as soon as it can never become a head: a stray CR, LF or NUL, or too many bytes without an end.
    """
    start = max(0, scanned - 3)
    end = buffer.find(b"\r\n\r\n", start)
    stop = end if end >= 0 else len(buffer)
    if STRAY.search(buffer, start, stop):
        raise Refused(400, "stray-byte", "a stray CR, LF or NUL in the head")
    if stop > HEAD_BYTES_MAX:
        if b"\r\n" not in buffer[: TARGET_BYTES_MAX + 64]:
            raise Refused(414, "target-too-long", "the request line is too long")
        raise Refused(431, "head-too-large", f"the head is larger than {HEAD_BYTES_MAX} bytes")
    return end, stop


def parse_request_head(head: bytes) -> Request:
    """A request from its head, without the empty line at its end; Refused when any rule is broken."""
    line, *field_lines = head.split(b"\r\n")
    match = _LINE.fullmatch(line)
    if match is None:
        if _OTHER_VERSION.fullmatch(line):
            raise Refused(505, "version", "only HTTP/1.0 and HTTP/1.1 are spoken here")
        raise Refused(400, "request-line", "the request line is malformed")
    method, target, minor = match[1], match[2], int(match[3])
    if not TOKEN.fullmatch(method):
        raise Refused(400, "method", "the method is no token")
    if len(target) > TARGET_BYTES_MAX:
        raise Refused(414, "target-too-long", "the request's target is too long")
    if len(field_lines) > FIELDS_MAX:
        raise Refused(431, "too-many-fields", f"more than {FIELDS_MAX} fields")
    try:
        fields = Fields(parse_fields(field_lines))
    except Corrupt as error:
        raise Refused(400, "field", error.message) from error
    target, host = _resolve(method, target, minor, fields)
    length, is_chunked = _framing(minor, fields)
    connection = tokens(fields.get(b"connection"))
    dropped = HOP_BY_HOP | _OVERRIDES | connection | {b"host", b"content-length", b"expect"}
    return Request(
        method=method,
        target=target,
        host=host,
        minor=minor,
        fields=fields.without(dropped),
        is_persistent=b"close" not in connection and (minor == 1 or b"keep-alive" in connection),
        length=length,
        is_chunked=is_chunked,
        expects_continue=_expects_continue(minor, fields),
    )


def _resolve(method: bytes, target: bytes, minor: int, fields: Fields) -> tuple[bytes, bytes]:
    """(target in origin form, canonical host); RFC 9112 3.2 and 3.3."""
    hosts = fields.lines(b"host")
    if len(hosts) > 1 or (minor == 1 and not hosts):
        raise Refused(400, "host", "there must be exactly one Host field")
    host = hosts[0] if hosts else b""
    if method == b"CONNECT":
        raise Refused(501, "method", "CONNECT is not done here")
    if method == b"TRACE":
        raise Refused(501, "method", "TRACE is not done here")
    if absolute := _ABSOLUTE.fullmatch(target):
        canonical_host(host)  # ignored, but still no place for rubbish
        host, target = absolute[1], absolute[2] or b"/"
        if target.startswith(b"?"):
            target = b"/" + target
        if not host:
            raise Refused(400, "target", "the request's target names no host")
    if target == b"*" and method == b"OPTIONS":
        return target, canonical_host(host)
    path = target.partition(b"?")[0]
    if not target.startswith(b"/") or b"#" in target:
        raise Refused(400, "target", "the request's target is no path")
    if _BAD_PERCENT.search(path) or _AMBIGUOUS.search(path):
        raise Refused(400, "target", "the request's path can be read in more than one way")
    return target, canonical_host(host)


def canonical_host(host: bytes) -> bytes:
    """A Host value in lower case and without port 80; Refused when it is none."""
    match = _HOST.fullmatch(host)
    if match is None:
        raise Refused(400, "host", "the Host field is malformed")
    name, port = match[1].lower(), match[2]
    return name if not port or int(port) == 80 else name + b":%d" % int(port)


def _framing(minor: int, fields: Fields) -> tuple[int | None, bool]:
    """(Content-Length, whether the body is chunked): never both, and chunked only as HTTP/1.1 has it."""
    codings = fields.lines(b"transfer-encoding")
    try:
        length = parse_length(fields.lines(b"content-length"))
    except Corrupt as error:
        raise Refused(400, "content-length", error.message) from error
    if not codings:
        return length, False
    if length is not None or minor == 0 or len(codings) > 1 or codings[0].lower() != b"chunked":
        raise Refused(400, "transfer-encoding", "Transfer-Encoding must be 'chunked', alone, in HTTP/1.1")
    return None, True


def _expects_continue(minor: int, fields: Fields) -> bool:
    expectation = fields.get(b"expect")
    if expectation is None or minor == 0:
        return False
    if expectation.lower() != b"100-continue":
        raise Refused(417, "expectation", "only 100-continue can be expected")
    return True


def forwarded_fields(request: Request, client: bytes, via: bytes) -> list[Field]:
    """What a backend is sent: the end-to-end fields, the client's address, and our name (RFC 9110 7.6.3)."""
    fields = [pair for pair in request.fields if pair[0] not in (b"x-forwarded-for", b"via", b"max-forwards")]
    hops = request.fields.get(b"max-forwards")
    if hops is not None and hops.isdigit() and len(hops) <= 9:
        fields.append((b"max-forwards", b"%d" % max(0, int(hops) - 1)))  # RFC 9110 7.6.2
    earlier = request.fields.get(b"x-forwarded-for")
    fields.append((b"x-forwarded-for", client if earlier is None else earlier + b", " + client))
    fields.append((b"x-forwarded-proto", b"http"))
    before = request.fields.get(b"via")
    name = b"1.%d %b" % (request.minor, via)
    fields.append((b"via", name if before is None else before + b", " + name))
    return fields


def encode_request(request: Request, fields: list[Field]) -> bytes:
    """A request for a backend, built from parsed parts: nothing of the client's bytes is copied unread."""
    framing: list[Field] = [(b"host", request.host)]
    if request.has_content or request.method not in (b"GET", b"HEAD", b"OPTIONS"):
        framing.append((b"content-length", b"%d" % len(request.body)))
    return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (
        request.method,
        request.target,
        encode_fields([*framing, *fields]),
        request.body,
    )
