"""One request to the backends, and everyone who waits for its answer.

A fetch is a task of its own: a client that goes away, also the one whose request started it, takes nothing from the
others. What can be stored is kept whole until it is; what cannot is passed through a bounded window, at the pace of
the slowest reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.cache import Cache, Stored
from proxy.core.cache_key import matches, primary_key, selector
from proxy.core.dates import format_date
from proxy.core.freshness import Freshness, assess, registered_lifetime
from proxy.core.message import Request, ResponseHead
from proxy.core.storing import may_be_shared, vary_names, why_not_stored
from proxy.core.validate import conditional_fields, confirms, updated_fields
from proxy.dispatch import Dispatcher, Opened
from synclib.clock import Clock
from synclib.errors import BoxlinkError, Corrupt, Unavailable

WINDOW_BYTES = 1 << 20
SERVER_ERRORS = (500, 502, 503, 504)


class Tail:
    """One reader's place in a fetch's body."""

    def __init__(self, fetch: Fetch) -> None:
        self.position = 0
        self._fetch = fetch

    async def read(self) -> bytes:
        """The next piece; b"" at the end. Raises what the fetch failed with."""
        return await self._fetch.read(self)

    def close(self) -> None:
        self._fetch.leave(self)


class Fetch:
    """``head`` is None until an answer is there; then ``is_shareable`` tells whether others may have it too.

    ``stored`` is set when the answer is in the cache, ``was_confirmed`` when a 304 made the stored one fresh again.
    """

    def __init__(
        self,
        request: Request,
        client: bytes,
        stale: Stored | None,
        dispatcher: Dispatcher,
        cache: Cache,
        clock: Clock,
        on_end: Callable[[Fetch], None],
    ) -> None:
        self.request = request
        self.key = primary_key(request)
        self.head: ResponseHead | None = None
        self.length: int | None = None
        self.interim: list[bytes] = []
        self.backend_status = 0
        self.is_shareable = False
        self.has_age = False  # the answer came out of a cache behind us
        self.is_complete = False
        self.is_detached = False  # what it brings is out of date: it is not stored
        self.was_confirmed = False
        self.keeps = False
        self.stored: Stored | None = None
        self.freshness: Freshness | None = None
        self.error: BoxlinkError | None = None
        self.why_not_stored = ""
        self._client = client
        self._stale = stale
        self._dispatcher = dispatcher
        self._cache = cache
        self._clock = clock
        self._on_end = on_end
        self._is_validating = False
        self._is_ended = False
        self._was_left = False
        self._pieces: dict[int, bytes] = {}  # by number; those before the slowest reader are gone unless kept
        self._piece_count = 0
        self._bytes = 0
        self._bytes_held = 0
        self._tails: set[Tail] = set()
        self._waiters: list[asyncio.Future[None]] = []
        self._task = asyncio.get_running_loop().create_task(self._run())

    def join(self) -> Tail:
        """A place at the start of the body. Close it, or the fetch may wait for its reader for ever."""
        tail = Tail(self)
        self._tails.add(tail)
        return tail

    def leave(self, tail: Tail) -> None:
        self._tails.discard(tail)
        self._was_left = True
        if not self._tails and not self.is_complete and self.head is not None and not self.keeps:
            self._task.cancel()
        self._forget_read()
        self._wake()

    def answers(self, request: Request) -> bool:
        """Whether another request may have this answer (head known)."""
        names = () if self.head is None else vary_names(self.head.fields)
        return self.is_shareable and names is not None and matches(selector(names, self.request.fields), request.fields)

    async def wait_for_head(self) -> ResponseHead:
        """The answer's head. Unavailable or Corrupt when no backend gave one."""
        while self.head is None:
            if self.error is not None:
                raise self.error
            await self._changed()
        return self.head

    async def wait_for_end(self) -> None:
        while not self.is_complete and self.error is None:
            await self._changed()

    async def read(self, tail: Tail) -> bytes:
        while tail.position >= self._piece_count:
            if self.error is not None:
                raise self.error
            if self.is_complete:
                return b""
            await self._changed()
        piece = self._pieces[tail.position]
        tail.position += 1
        self._forget_read()
        return piece

    def detach(self) -> None:
        self.is_detached = True
        self.is_shareable = False

    def cancel(self) -> None:
        self._task.cancel()

    def _is_wanted(self) -> bool:
        """Whether somebody reads along, or it was never for a reader (a refresh of what is stored)."""
        return bool(self._tails) or not self._was_left

    async def _run(self) -> None:
        try:
            opened = await self._obtain()
            try:
                await self._take(opened)
            finally:
                opened.close()
        except (Unavailable, Corrupt) as error:
            self.error = error
        except BaseException:
            self.error = Unavailable("the request was given up")
            raise
        finally:
            self._cache.arriving_bytes -= self._bytes_held
            self._is_ended = True
            self._on_end(self)
            self._wake()

    async def _obtain(self) -> Opened:
        """The answer to use; after a 304 that does not speak of what is stored, one to a request without conditions."""
        if self._stale is not None and (conditions := conditional_fields(self._stale.fields)):
            opened = await self._dispatcher.obtain(self.request, self._client, conditions, self._is_wanted)
            head = opened.answer.head
            if head.status != 304 or confirms(self._stale.fields, head.fields):
                self._is_validating = True
                return opened
            opened.close()
        return await self._dispatcher.obtain(self.request, self._client, [], self._is_wanted)

    async def _take(self, opened: Opened) -> None:
        wall = self._clock.wall_ns() / 1e9
        received_at = self._clock.monotonic()
        head = opened.answer.head
        fields = head.fields if b"date" in head.fields else head.fields.plus((b"date", format_date(wall)))
        self.backend_status = head.status
        self.interim = opened.interim
        self.has_age = b"age" in fields
        if head.status == 304 and not (self._is_validating or self._asked_conditionally()):
            raise Corrupt("the backend answered 304 to a request without conditions")
        if head.status == 304 and self._stale is not None and self._is_validating:
            status, reason = self._stale.status, self._stale.reason
            fields = updated_fields(self._stale.fields, fields)
            self.freshness = assess(status, fields, wall=wall, asked_at=opened.asked_at, received_at=received_at)
            self.was_confirmed = self.is_complete = True
            head = ResponseHead(status, reason, fields)
            self.why_not_stored = why_not_stored(self.request, status, fields, self.freshness)
            self.is_shareable = self._may_share(received_at)
            self._store(head, self._stale.body)
            self._publish(head, len(self._stale.body))
            return
        fields = registered_lifetime(self.request, head.status, fields, opened.backend.registration.cache_seconds)
        head = ResponseHead(head.status, head.reason, fields)
        self.freshness = assess(head.status, fields, wall=wall, asked_at=opened.asked_at, received_at=received_at)
        self.keeps = self._may_keep(head, opened)
        self.is_shareable = self._may_share(received_at)
        await self._stream(head, opened)

    def _may_share(self, now: float) -> bool:
        is_storable = not self.why_not_stored and not self.is_detached
        return is_storable and self.freshness is not None and may_be_shared(self.freshness, now)

    def _asked_conditionally(self) -> bool:
        """Whether the client's own conditions went to the backend, so that a 304 is the client's."""
        return b"if-none-match" in self.request.fields or b"if-modified-since" in self.request.fields

    def _may_keep(self, head: ResponseHead, opened: Opened) -> bool:
        assert self.freshness is not None
        reader = opened.answer.reader
        self.why_not_stored = why_not_stored(self.request, head.status, head.fields, self.freshness)
        if not self.why_not_stored and self._stale is not None and head.status in SERVER_ERRORS:
            self.why_not_stored = "error"  # never in the place of what may still be served stale
        if not self.why_not_stored and (reader.length or 0) > self._cache.object_bytes_max:
            self.why_not_stored = "size"
        if not self.why_not_stored and reader.ends_at_close:
            self.why_not_stored = "framing"  # a body that ends with its connection cannot be told from a broken one
        return not self.why_not_stored and not self.is_detached

    async def _stream(self, head: ResponseHead, opened: Opened) -> None:
        """Hand on the body. A small answer that is here whole is stored before anyone is woken."""
        answer = opened.answer
        if answer.reader.is_complete:
            while piece := await answer.read():
                self._append(piece)
            self._finish(head, opened)
            self._publish(head, answer.reader.length if head.status != 304 else None)
            return
        self._publish(head, answer.reader.length)
        while piece := await answer.read():
            self._append(piece)
            if self.keeps and not self._fits():
                self.keeps = self.is_shareable = False
                self.why_not_stored = "size"
                self._forget_read()
            self._wake()
            while not self.keeps and self._bytes_held > WINDOW_BYTES and self._tails:
                await self._changed()
            if not self.keeps and not self._tails:
                raise Unavailable("nobody waits for the answer any more")
        self._finish(head, opened)

    def _fits(self) -> bool:
        """Whether the body may still be kept: small enough itself, and with all others that are under way."""
        cache = self._cache
        return self._bytes <= cache.object_bytes_max and cache.arriving_bytes <= cache.arriving_bytes_max

    def _finish(self, head: ResponseHead, opened: Opened) -> None:
        self.is_complete = True
        if opened.answer.reader.surplus:
            self.keeps = self.is_shareable = False
            self.why_not_stored = "surplus"
        if self.keeps:
            self._store(head, b"".join(self._pieces.values()))
        elif head.status < 500 and self._stale is not None and not self._asked_conditionally():
            # The origin has a newer answer that may not be stored: the old one is history.
            self._cache.invalidate(self.key)

    def _store(self, head: ResponseHead, body: bytes) -> None:
        """Have the whole answer in ``stored``, and in the cache if it may be there."""
        assert self.freshness is not None
        selecting = selector(vary_names(head.fields) or (), self.request.fields)
        self.stored = Stored(self.key, selecting, head.status, head.reason, head.fields, body, self.freshness)
        if self.why_not_stored:
            self._cache.invalidate(self.key)
        elif not self.is_detached:
            self._cache.add(self.stored)

    def _publish(self, head: ResponseHead, length: int | None) -> None:
        self.length = length
        self.head = head
        self._wake()

    def _append(self, piece: bytes) -> None:
        self._pieces[self._piece_count] = piece
        self._piece_count += 1
        self._bytes += len(piece)
        self._bytes_held += len(piece)
        self._cache.arriving_bytes += len(piece)

    def _forget_read(self) -> None:
        """Drop the pieces that every reader has had, unless the whole is to be stored."""
        if self.keeps or self._is_ended:
            return
        slowest = min((tail.position for tail in self._tails), default=0)
        for number in list(self._pieces):
            if number >= slowest:
                break
            size = len(self._pieces.pop(number))
            self._bytes_held -= size
            self._cache.arriving_bytes -= size
            self._wake()

    async def _changed(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
