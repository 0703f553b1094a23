"""Cache-Status (RFC 9211): on every answer, what this cache did with the request."""

from __future__ import annotations

NAME = b"boxlink"


def hit(ttl: float, detail: bytes = b"") -> bytes:
    """Answered from what is stored; ``ttl`` is the freshness left, negative when stale."""
    return b"%b; hit; ttl=%d%b" % (NAME, ttl, _detail(detail))


def forwarded(
    why: bytes,
    *,
    status: int | None = None,
    stored: bool = False,
    collapsed: bool = False,
    ttl: float | None = None,
    detail: bytes = b"",
) -> bytes:
    """``why``: bypass, method, uri-miss, vary-miss, request, stale or partial (RFC 9211 2.2)."""
    return b"%b; fwd=%b%b%b%b%b%b" % (
        NAME,
        why,
        b"" if status is None else b"; fwd-status=%d" % status,
        b"" if ttl is None else b"; ttl=%d" % ttl,
        b"; stored" if stored else b"",
        b"; collapsed" if collapsed else b"",
        _detail(detail),
    )


def local(detail: bytes) -> bytes:
    """Answered by the proxy itself."""
    return NAME + _detail(detail)


def _detail(detail: bytes) -> bytes:
    return b"; detail=" + detail if detail else b""
