"""Which stored answers can meet a request: the same effective URI (RFC 9111 2), and matching Vary fields (4.1)."""

from __future__ import annotations

from proxy.core.message import Fields, Request
from proxy.core.syntax import split_list

Selector = tuple[tuple[bytes, bytes | None], ...]


def primary_key(request: Request) -> bytes:
    """Canonical host and exact target. No part is decoded or normalised: two spellings are two resources."""
    return request.host + b" " + request.target


def selector(names: tuple[bytes, ...], fields: Fields) -> Selector:
    """The values of the fields that a Vary names, as a request has them."""
    return tuple((name, _normal(fields.get(name))) for name in names)


def matches(selecting: Selector, fields: Fields) -> bool:
    return all(_normal(fields.get(name)) == value for name, value in selecting)


def _normal(value: bytes | None) -> bytes | None:
    """Lists that differ in white space only are the same (RFC 9111 4.1)."""
    return None if value is None else b",".join(split_list(value))
