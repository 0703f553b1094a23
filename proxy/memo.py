"""The short cut for cached hits: bytes of a request that were parsed before are not parsed again.

A request's bytes are its line and its header block. Both are remembered only after the strict parser read exactly
these bytes: the block, when it asks nothing that a plain hit would not answer, leads to the lines of its host, and the
line to the stored answer. A hit then costs two dictionary look-ups. Everything else goes the long way.
"""

from __future__ import annotations

from proxy.cache import Stored
from proxy.core import cache_status
from proxy.core.message import Request

BLOCKS_MAX = 4096
BLOCK_BYTES_MAX = 2 << 10
BODY_BYTES_MAX = 64 << 10  # larger bodies are sent piece by piece
_MARGIN_S = 2.0  # a head stands for a tick; freshness that ends within it is judged exactly, the long way

# Fields with which a request may have to be answered in another way than a plain one.
_SPECIAL = (
    b"authorization",
    b"cache-control",
    b"if-match",
    b"if-modified-since",
    b"if-none-match",
    b"if-range",
    b"if-unmodified-since",
    b"max-forwards",
    b"pragma",
    b"range",
    b"via",
)


def render_head(stored: Stored, now: float) -> bytes:
    """The head of a hit at ``now``: the stored one, its Age, and what this cache did."""
    freshness = stored.freshness
    return b"%bAge: %d\r\nCache-Status: %b\r\n\r\n" % (
        stored.static_head,
        freshness.age(now),
        cache_status.hit(freshness.left(now)),
    )


class Memo:
    def __init__(self) -> None:
        self.tick = 0
        self.now = 0.0  # the monotonic clock at this tick
        self.idle_deadline = 0.0  # when a connection that is used now has been idle for too long
        self.hits = 0
        self.is_off = False  # nothing more is learnt
        self.blocks: dict[bytes, dict[bytes, Stored]] = {}
        self._hosts: dict[bytes, dict[bytes, Stored]] = {}

    def refresh(self, stored: Stored) -> bool:
        """Renew the head of an answer for this tick; False when it must be judged the long way."""
        if stored.is_retired or stored.freshness.left(self.now) < _MARGIN_S:
            return False
        stored.head = render_head(stored, self.now)
        stored.tick = self.tick
        return True

    def learn(self, head: bytes, request: Request, stored: Stored) -> None:
        """Remember a request's bytes (``head``, with its empty line) and the answer that was a fresh hit for it."""
        # An absolute target names another host than the block does.
        if (
            self.is_off
            or not head.startswith(b"GET /")
            or stored.selecting
            or len(stored.body) > BODY_BYTES_MAX
            or not is_plain(request)
            or not self.refresh(stored)
        ):
            return
        cut = head.find(b"\r\n")
        line, block = head[:cut], head[cut:]
        lines = self._hosts.get(request.host)
        if lines is None:
            if len(self._hosts) >= BLOCKS_MAX:
                self.clear()
            lines = self._hosts.setdefault(request.host, {})
        lines[line] = stored
        stored.place = (lines, line)
        if block not in self.blocks and len(block) <= BLOCK_BYTES_MAX:
            if len(self.blocks) >= BLOCKS_MAX:
                self.blocks.clear()
            self.blocks[block] = lines

    def clear(self) -> None:
        """Forget all bytes; connections that hold ``blocks`` see it at once."""
        self.blocks.clear()
        self._hosts.clear()


def is_plain(request: Request) -> bool:
    return (
        request.method == b"GET"
        and request.minor == 1
        and request.is_persistent
        and request.length is None
        and not request.is_chunked
        and not any(name in request.fields for name in _SPECIAL)
    )
