"""What an unsafe request makes out of date (RFC 9111 4.4)."""

from __future__ import annotations

from urllib.parse import urljoin

from proxy.core.message import Fields, Refused, Request
from proxy.core.request import canonical_host

_SAFE = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE"))


def is_unsafe(method: bytes) -> bool:
    """Whether a request may change the resource; a method that nobody knows may."""
    return method not in _SAFE


def invalidated_keys(request: Request, status: int, fields: Fields) -> list[bytes]:
    """The primary keys to forget after an answer: the target, and what Location and Content-Location name here."""
    if not is_unsafe(request.method) or not 200 <= status < 400:
        return []
    keys = [request.host + b" " + request.target]
    base = "http://" + request.host.decode("latin-1") + request.target.decode("latin-1")
    for name in (b"location", b"content-location"):
        for value in fields.lines(name):
            key = _key_of(base, value.decode("latin-1"), request.host)
            if key is not None and key not in keys:
                keys.append(key)
    return keys


def _key_of(base: str, reference: str, host: bytes) -> bytes | None:
    """The primary key of a URI reference, if it is of the same origin."""
    try:
        url = urljoin(base, reference).partition("#")[0]
    except ValueError:
        return None
    scheme, _, rest = url.partition("://")
    authority, slash, target = rest.partition("/")
    try:
        is_same = scheme == "http" and canonical_host(authority.encode("latin-1")) == host
    except Refused:
        return None
    return host + b" " + (slash + target or "/").encode("latin-1") if is_same else None
