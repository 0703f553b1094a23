"""Stored answers in memory, bounded by bytes, evicted by S3-FIFO.

New answers enter a small queue (a tenth of the space). One that is asked for again before it reaches the end moves to
the main queue, any other leaves: a scan of a million tiles passes through the small queue and disturbs nothing. Keys
that left it lately are remembered, and enter the main queue when they return. (Yang et al., FIFO queues are all you
need for cache eviction, SOSP 2023.)
"""

from __future__ import annotations

from collections import OrderedDict

from proxy.core.cache_key import Selector, matches
from proxy.core.freshness import Freshness
from proxy.core.message import Fields, encode_response_head

SMALL_FRACTION = 0.1
OBJECT_BYTES_MAX = 8 << 20
VARIANTS_MAX = 16
TOUCHES_MAX = 3
_OVERHEAD_BYTES = 2 << 10  # of Python objects and of the head's two encodings


class Stored:
    """One stored answer. ``head`` is its wire form at ``tick``: what a hit sends, with ``body``."""

    __slots__ = (
        "body",
        "fields",
        "freshness",
        "head",
        "is_main",
        "is_retired",
        "key",
        "place",
        "reason",
        "selecting",
        "static_head",
        "status",
        "tick",
        "touches",
    )

    def __init__(
        self,
        key: bytes,
        selecting: Selector,
        status: int,
        reason: bytes,
        fields: Fields,
        body: bytes,
        freshness: Freshness,
    ) -> None:
        self.key = key
        self.selecting = selecting
        self.status = status
        self.reason = reason
        self.fields = fields.without((b"age",))
        self.body = body
        self.freshness = freshness
        self.static_head = encode_response_head(status, reason, self.fields)
        if status != 204:
            self.static_head += b"Content-Length: %d\r\n" % len(body)
        self.head = b""
        self.tick = -1
        self.touches = 0
        self.is_main = False
        self.is_retired = False
        self.place: tuple[dict[bytes, Stored], bytes] | None = None  # where the short cut finds it

    @property
    def size(self) -> int:
        return len(self.body) + len(self.static_head) * 2 + _OVERHEAD_BYTES

    def retire(self) -> None:
        """No longer to be found, also not by the connections' short cut."""
        self.is_retired = True
        self.tick = -1
        if self.place is not None:
            lines, line = self.place
            if lines.get(line) is self:
                del lines[line]
            self.place = None


class Cache:
    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.object_bytes_max = min(OBJECT_BYTES_MAX, bytes_max // 4)
        self.evictions = 0
        # Bodies that are being fetched to be kept; beyond the bound further ones are passed on without being kept.
        self.arriving_bytes = 0
        self.arriving_bytes_max = bytes_max // 4
        self._variants: dict[bytes, list[Stored]] = {}
        self._small: OrderedDict[int, Stored] = OrderedDict()
        self._main: OrderedDict[int, Stored] = OrderedDict()
        self._ghosts: OrderedDict[bytes, bool] = OrderedDict()
        self._small_bytes = 0
        self._main_bytes = 0

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    @property
    def bytes_used(self) -> int:
        return self._small_bytes + self._main_bytes

    def find(self, key: bytes, fields: Fields) -> Stored | None:
        """The newest stored answer that a request with these fields selects."""
        for stored in self._variants.get(key, ()):
            if matches(stored.selecting, fields):
                return stored
        return None

    def holds(self, key: bytes) -> bool:
        """Whether there is any answer for the key, whatever it varies on."""
        return key in self._variants

    def add(self, stored: Stored) -> None:
        """Keep an answer in place of the one it replaces; others leave to make room."""
        if stored.size > self.object_bytes_max + _OVERHEAD_BYTES * 2:
            raise ValueError("larger than what is kept")
        variants = self._variants.setdefault(stored.key, [])
        names = [name for name, _ in stored.selecting]
        for old in list(variants):
            # Where the origin now varies on other fields, what it said under the old ones is no guide any more.
            if old.selecting != stored.selecting and [name for name, _ in old.selecting] == names:
                continue
            stored.is_main = stored.is_main or old.is_main
            stored.touches = max(stored.touches, min(old.touches, TOUCHES_MAX))
            self._drop(old)
        while len(variants) >= VARIANTS_MAX:
            self._drop(variants[-1])
        # Dropping the last variant drops the list.
        self._variants.setdefault(stored.key, variants).insert(0, stored)
        stored.is_main = self._ghosts.pop(stored.key, False) or stored.is_main
        self._enqueue(stored)
        self._make_room()

    def invalidate(self, key: bytes) -> None:
        """Forget every variant of a key (RFC 9111 4.4)."""
        for stored in list(self._variants.get(key, ())):
            self._drop(stored)

    def _enqueue(self, stored: Stored) -> None:
        if stored.is_main:
            self._main[id(stored)] = stored
            self._main_bytes += stored.size
        else:
            self._small[id(stored)] = stored
            self._small_bytes += stored.size

    def _dequeue(self, stored: Stored) -> None:
        if stored.is_main:
            del self._main[id(stored)]
            self._main_bytes -= stored.size
        else:
            del self._small[id(stored)]
            self._small_bytes -= stored.size

    def _drop(self, stored: Stored) -> None:
        self._dequeue(stored)
        variants = self._variants[stored.key]
        variants.remove(stored)
        if not variants:
            del self._variants[stored.key]
        stored.retire()

    def _make_room(self) -> None:
        while self.bytes_used > self.bytes_max:
            self.evictions += 1
            if self._small and (self._small_bytes > self.bytes_max * SMALL_FRACTION or not self._main):
                self._evict_small()
            else:
                self._evict_main()

    def _evict_small(self) -> None:
        while self._small:
            stored = next(iter(self._small.values()))
            if not stored.touches:
                self._remember(stored.key)
                self._drop(stored)
                return
            self._dequeue(stored)
            stored.is_main, stored.touches = True, 0
            self._enqueue(stored)

    def _evict_main(self) -> None:
        while self._main:
            stored = next(iter(self._main.values()))
            if not stored.touches:
                self._drop(stored)
                return
            stored.touches = min(stored.touches, TOUCHES_MAX) - 1
            self._main.move_to_end(id(stored))

    def _remember(self, key: bytes) -> None:
        self._ghosts[key] = True
        while len(self._ghosts) > len(self._main) + 256:
            self._ghosts.popitem(last=False)
