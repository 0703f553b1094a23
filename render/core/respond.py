"""Answers as values: status, headers and body follow from what was asked and found.

The answers that never change (tiles and names of a named wall) carry an ETag and no Cache-Control: the registration
gives them their lifetime, and it holds only where the origin says nothing (RFC 9111 section 4.2.1 leaves it to the
cache). All else says itself how long it keeps; an error never keeps.
"""

from __future__ import annotations

from dataclasses import dataclass

from blake3 import blake3

from render.core.address import tile_path
from synclib.errors import BoxlinkError, Missing, Unavailable

REDIRECT_S = 5
WALL_S = 2
PAGE_S = 60
CONTENT_POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"


@dataclass(frozen=True, slots=True)
class Body:
    """Bytes to send and their strong validator."""

    data: bytes
    media_type: str
    etag: str


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: tuple[tuple[str, str], ...]
    data: bytes = b""


def body_of(data: bytes, media_type: str) -> Body:
    return Body(data, media_type, f'"{blake3(data).hexdigest(16)}"')


def unchanging(body: Body, if_none_match: str | None) -> Answer:
    """A tile or names of a named wall."""
    return _found(body, if_none_match, ())


def kept(body: Body, if_none_match: str | None, seconds: int) -> Answer:
    """A page, a file of the viewer or ``/wall.json``, with a lifetime of its own."""
    headers: tuple[tuple[str, str], ...] = (("Cache-Control", f"public, max-age={seconds}"),)
    if body.media_type.startswith("text/html"):
        headers += (("Content-Security-Policy", CONTENT_POLICY), ("Referrer-Policy", "same-origin"))
    return _found(body, if_none_match, headers)


def to_current(wall: str, zoom: int, x: int, y: int) -> Answer:
    """The way from an address without a wall to that tile of the current one; a short one, for walls change."""
    return Answer(
        302,
        (("Location", tile_path(wall, zoom, x, y)), ("Cache-Control", f"public, max-age={REDIRECT_S}")),
    )


def unknown_wall() -> Answer:
    """This server does not hold the wall; another may."""
    return _error(404, "this wall is not held here", (("Boxlink-Wall", "unknown"),))


def not_here(what: str) -> Answer:
    return _error(404, what)


def failed(error: BoxlinkError, *, is_former: bool = False) -> Answer:
    """A tile whose covers could not be read: never a picture, for a picture would be kept. ``is_former``: the wall is
    not the current one, so its covers come from the store, and another server may have them."""
    elsewhere = (("Boxlink-Wall", "elsewhere"),) if is_former else ()
    if isinstance(error, Unavailable):
        return _error(503, error.message, (("Retry-After", "1"), *elsewhere))
    if isinstance(error, Missing):
        return _error(503, f"a cover is gone: {error.message}", (("Retry-After", "5"), *elsewhere))
    return _error(500, f"{error.kind}: {error.message}")


def refused(status: int, text: str, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """What HTTP itself refuses, such as a method."""
    return _error(status, text, headers)


def is_match(if_none_match: str, etag: str) -> bool:
    """RFC 9110 section 13.1.2: whether one of the listed validators is this one, by weak comparison."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags


def _found(body: Body, if_none_match: str | None, headers: tuple[tuple[str, str], ...]) -> Answer:
    headers = (("ETag", body.etag), *headers)
    if if_none_match is not None and is_match(if_none_match, body.etag):
        return Answer(304, headers)
    return Answer(
        200,
        (
            ("Content-Type", body.media_type),
            ("Content-Length", str(len(body.data))),
            ("X-Content-Type-Options", "nosniff"),
            *headers,
        ),
        body.data,
    )


def _error(status: int, text: str, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    data = (text + "\n").encode(errors="replace")
    return Answer(
        status,
        (
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(data))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            *headers,
        ),
        data,
    )
