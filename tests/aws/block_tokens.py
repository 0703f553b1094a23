"""Tokens of EBS direct: of one block for seven days, of the next page for an hour, each good for what it was given for
only (EBS direct APIs, "Read snapshots")."""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from collections.abc import Callable

from tests.aws.refusal import invalid

BLOCK_TOKEN_S = 7 * 86_400.0
PAGE_TOKEN_S = 3600.0


class BlockTokens:
    """Tokens carry their end and a seal over what they are for, so that none has to be kept."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._key = b"0"
        self._given = 0

    def end_all(self) -> None:
        """No token given so far is taken any more."""
        self._key += b"0"

    def for_block(self, snapshot_id: str, index: int) -> str:
        return self._token(f"block {snapshot_id} {index}", 0, BLOCK_TOKEN_S)

    def check_block(self, token: str, snapshot_id: str, index: int) -> None:
        if self._opened(token, f"block {snapshot_id} {index}") is None:
            raise invalid("the block token is not valid for this block, or has expired", "INVALID_BLOCK_TOKEN")

    def for_page(self, listing: str, start: int) -> str:
        return self._token(f"page {listing}", start, PAGE_TOKEN_S)

    def page_start(self, token: str, listing: str) -> int:
        start = self._opened(token, f"page {listing}")
        if start is None:
            raise invalid("the page token is not valid for this listing, or has expired", "INVALID_PAGE_TOKEN")
        return start

    def _token(self, purpose: str, value: int, seconds: float) -> str:
        self._given += 1
        plain = struct.pack("<dqq", self._now() + seconds, value, self._given)
        return base64.b64encode(plain + self._seal(plain, purpose)).decode()

    def _opened(self, token: str, purpose: str) -> int | None:
        try:
            data = base64.b64decode(token, validate=True)
            stop, value, _ = struct.unpack("<dqq", data[:24])
        except (ValueError, struct.error):
            return None
        is_sealed = hmac.compare_digest(data[24:], self._seal(data[:24], purpose))
        return int(value) if is_sealed and self._now() <= stop else None

    def _seal(self, plain: bytes, purpose: str) -> bytes:
        return hmac.digest(self._key, plain + purpose.encode(), hashlib.sha256)[:16]
