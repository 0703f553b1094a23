"""Validation (RFC 9111 4.3): conditional requests answered from what is stored, and what is stored made fresh."""

from __future__ import annotations

from proxy.core.dates import parse_date
from proxy.core.message import Field, Fields, Request
from proxy.core.syntax import split_list

PRECONDITIONS = (b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range")
# RFC 9110 15.4.5: what a 304 carries; anything else in it would describe a body that is not sent.
_IN_NOT_MODIFIED = frozenset(
    (
        b"cache-control",
        b"cdn-cache-control",
        b"content-location",
        b"date",
        b"etag",
        b"expires",
        b"last-modified",
        b"vary",
    )
)
# RFC 9111 3.2: a 304 never changes these in what is stored.
_KEPT = frozenset((b"content-encoding", b"content-length", b"content-range"))


def is_not_modified(request: Request, fields: Fields, wall: float) -> bool:
    """Whether the client's copy is still right, so that 304 answers (RFC 9110 13.2.2, for a stored 200)."""
    if b"if-none-match" in request.fields:
        wanted = split_list(request.fields.get(b"if-none-match") or b"")
        etag = fields.get(b"etag")
        return b"*" in wanted or (etag is not None and _weak(etag) in {_weak(item) for item in wanted})
    since = parse_date(request.fields.get(b"if-modified-since"), wall)
    if since is None:
        return False
    modified = parse_date(fields.get(b"last-modified"), wall)
    if modified is None:
        modified = parse_date(fields.get(b"date"), wall)
    return modified is not None and modified <= since


def not_modified_fields(fields: Fields) -> Fields:
    return Fields(pair for pair in fields if pair[0] in _IN_NOT_MODIFIED)


def conditional_fields(stored: Fields) -> list[Field]:
    """What asks an origin whether the stored answer still stands; empty when it has no validator."""
    conditions: list[Field] = []
    if etag := stored.get(b"etag"):
        conditions.append((b"if-none-match", etag))
    if modified := stored.get(b"last-modified"):
        conditions.append((b"if-modified-since", modified))
    return conditions


def confirms(stored: Fields, fresh: Fields) -> bool:
    """Whether a 304 speaks of the stored answer: its validators, where it has any, are the same (RFC 9111 4.3.4)."""
    etag = fresh.get(b"etag")
    if etag is not None:
        ours = stored.get(b"etag")
        return ours is not None and _weak(ours) == _weak(etag)
    modified = fresh.get(b"last-modified")
    return modified is None or modified == stored.get(b"last-modified")


def updated_fields(stored: Fields, fresh: Fields) -> Fields:
    """The stored fields after a 304: each field that it has replaces the old one (RFC 9111 3.2)."""
    newer = Fields(pair for pair in fresh if pair[0] not in _KEPT)
    replaced = {name for name, _ in newer} | {b"age"}
    return Fields((*stored.without(replaced), *newer))


def _weak(etag: bytes) -> bytes:
    return etag.removeprefix(b"W/")
