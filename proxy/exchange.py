"""What happens with one request: the steps from its arrival to its answer; each decision is in ``proxy.core``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from proxy import reply
from proxy.cache import Cache, Stored
from proxy.collapse import Fetches
from proxy.core import cache_status
from proxy.core.cache_control import request_directives
from proxy.core.cache_key import primary_key
from proxy.core.dates import format_date
from proxy.core.invalidate import invalidated_keys
from proxy.core.message import Request, encode_response_head
from proxy.core.reuse import Use, may_answer_failure, plan
from proxy.core.syntax import split_list
from proxy.core.validate import PRECONDITIONS, is_not_modified, not_modified_fields
from proxy.fetch import SERVER_ERRORS, Fetch, Tail
from proxy.memo import Memo
from proxy.metrics import Counters
from proxy.reply import Reply
from synclib.clock import Clock
from synclib.errors import BoxlinkError, Corrupt, Unavailable

_FROM_CACHE = (b"GET", b"HEAD")  # the methods that a stored answer can meet
_FROM_STORE = (Use.HIT, Use.STALE_HIT, Use.REFRESH)


class Client(Protocol):
    """Who asked: takes one answer, whole or piece by piece."""

    address: bytes

    async def reply(self, answer: Reply) -> None: ...

    def send_interim(self, head: bytes) -> None: ...

    def start(self, answer: Reply, length: int | None) -> None:
        """Send an answer's head; pieces of the body follow. ``length`` None: its size is not known."""

    async def write(self, piece: bytes) -> None:
        """Send a piece of the body, at the pace at which the client takes it."""

    def finish(self) -> None: ...

    def abort(self) -> None:
        """Break off, so that the client sees that the answer is not whole."""


class Exchange:
    def __init__(
        self, cache: Cache, fetches: Fetches, memo: Memo, clock: Clock, counters: Counters, via: bytes
    ) -> None:
        self._cache = cache
        self._fetches = fetches
        self._memo = memo
        self._clock = clock
        self._counters = counters
        self._via = via

    def answer_now(self, request: Request, client: bytes, head: bytes) -> Reply | None:
        """The answer, if it is stored and may be used as it is; ``head``: the request's bytes, to be remembered."""
        if request.method not in _FROM_CACHE or request.has_content:
            return None
        stored = self._cache.find(primary_key(request), request.fields)
        if stored is None:
            return None
        now = self._clock.monotonic()
        use = plan(stored.freshness, request_directives(request.fields), now)
        if use not in _FROM_STORE:
            return None
        if use is Use.REFRESH and not self._fetches.is_joinable(stored.key):
            # Nobody reads along: what is fetched goes into the store or nowhere.
            self._fetches.join_or_start(_plain(request), client, stored)
        stored.touches += 1
        if use is Use.HIT:
            self._memo.learn(head, request, stored)
        status = cache_status.hit(stored.freshness.left(now))
        return self._from_stored(request, stored, status, "hit" if use is Use.HIT else "stale")

    async def serve(self, request: Request, client: Client) -> None:
        """Answer a request that :meth:`answer_now` could not."""
        if (answer := self._by_ourselves(request)) is not None:
            await client.reply(answer)
        elif request.method in _FROM_CACHE and not request.has_content:
            await self._get(request, client)
        else:
            await self._pass(request, client)

    def _by_ourselves(self, request: Request) -> Reply | None:
        """Loops, and OPTIONS that goes no further (RFC 9110 7.6.2, 9.3.7)."""
        names = {item.split(b" ")[-1] for item in split_list(request.fields.get(b"via") or b"")}
        if self._via in names:
            return self._refuse(request, 508, "loop", "the request came through this proxy before")
        if request.method == b"OPTIONS" and (request.target == b"*" or request.fields.get(b"max-forwards") == b"0"):
            fields = [
                (b"allow", b"GET, HEAD, OPTIONS"),
                (b"content-length", b"0"),
                (b"date", format_date(self._wall())),
            ]
            status = b"Cache-Status: %b\r\n" % cache_status.local(b"options")
            return Reply(200, encode_response_head(200, b"OK", fields) + status, b"", "local")
        return None

    async def _get(self, request: Request, client: Client) -> None:
        if (answer := self.answer_now(request, client.address, b"")) is not None:
            await client.reply(answer)  # it came while this request waited for its turn
            return
        key = primary_key(request)
        stored = self._cache.find(key, request.fields)
        now = self._clock.monotonic()
        if plan(stored.freshness if stored else None, request_directives(request.fields), now) is Use.FAIL:
            await client.reply(self._refuse(request, 504, "only-if-cached", "there is no stored answer to use"))
            return
        if stored is None:
            wanted, why = request, b"vary-miss" if self._cache.holds(key) else b"uri-miss"
        else:
            wanted, why = _plain(request), b"request" if _is_usable(stored, now) else b"stale"
        if _is_for_one(wanted):
            fetch, is_first = self._fetches.start(wanted, client.address, stored), True
        else:
            fetch, is_first = self._fetches.join_or_start(wanted, client.address, stored)
        tail = fetch.join()
        try:
            try:
                await fetch.wait_for_head()
                if not is_first and not fetch.answers(request):
                    tail.close()
                    fetch, is_first = self._fetches.start(wanted, client.address, stored), True
                    tail = fetch.join()
                    await fetch.wait_for_head()
            except (Unavailable, Corrupt) as error:
                await client.reply(self._failed(request, stored, error))
                return
            await self._deliver(request, client, stored, Followed(fetch, tail, why, is_first))
        finally:
            tail.close()

    async def _deliver(self, request: Request, client: Client, stale: Stored | None, followed: Followed) -> None:
        """Answer from a fetch whose head is here."""
        fetch = followed.fetch
        self._counters.collapsed += not followed.is_first
        is_plain = fetch.request is not request
        if is_plain and b"range" in request.fields and fetch.keeps:
            await fetch.wait_for_end()  # a range can be cut when the whole is here
        head = await fetch.wait_for_head()
        for interim in fetch.interim:
            client.send_interim(interim)
        if head.status in SERVER_ERRORS and stale is not None and self._may_stand_in(request, stale, False):
            status = cache_status.forwarded(b"stale", status=fetch.backend_status, detail=b"stale-if-error")
            await client.reply(self._from_stored(request, stale, status, "stale"))
            return
        status = followed.cache_status(self._clock.monotonic())
        if fetch.stored is not None:
            await client.reply(
                self._from_stored(request, fetch.stored, status, followed.what, has_age=followed.has_age)
            )
            return
        if is_plain and head.status == 200 and is_not_modified(request, head.fields, self._wall()):
            encoded = encode_response_head(304, b"Not Modified", not_modified_fields(head.fields))
            await client.reply(Reply(304, encoded + b"Cache-Status: %b\r\n" % status, b"", followed.what))
            return
        await self._stream(request, client, followed, status)

    async def _stream(self, request: Request, client: Client, followed: Followed, status: bytes) -> None:
        """Pass an answer on as it comes."""
        fetch = followed.fetch
        head = await fetch.wait_for_head()
        fields = head.fields
        if followed.has_age and fetch.freshness is not None:
            age = fetch.freshness.age(self._clock.monotonic())
            fields = fields.without((b"age",)).plus((b"age", b"%d" % age))
        encoded = encode_response_head(head.status, head.reason, fields) + b"Cache-Status: %b\r\n" % status
        if request.method == b"HEAD" or head.status in (204, 304):
            if fetch.length is not None:
                encoded += b"Content-Length: %d\r\n" % fetch.length
            await client.reply(Reply(head.status, encoded, b"", followed.what))
            return
        client.start(Reply(head.status, encoded, b"", followed.what), fetch.length)
        try:
            while piece := await followed.tail.read():
                await client.write(piece)
        except (Unavailable, Corrupt):
            self._counters.truncated += 1
            client.abort()
            return
        client.finish()

    async def _pass(self, request: Request, client: Client) -> None:
        """A request that no stored answer can meet; what it changes is forgotten before its answer is passed on."""
        fetch = self._fetches.start(request, client.address)
        tail = fetch.join()
        try:
            try:
                head = await fetch.wait_for_head()
            except (Unavailable, Corrupt) as error:
                await client.reply(self._failed(request, None, error))
                return
            for key in invalidated_keys(request, head.status, head.fields):
                self._cache.invalidate(key)
                self._fetches.detach(key)
            for interim in fetch.interim:
                client.send_interim(interim)
            followed = Followed(fetch, tail, b"method", is_first=True)
            await self._stream(request, client, followed, followed.cache_status(self._clock.monotonic()))
        finally:
            tail.close()

    def _failed(self, request: Request, stored: Stored | None, error: BoxlinkError) -> Reply:
        """The answer when no backend gave one: a stale one if there is one, else the reason."""
        if stored is not None and self._may_stand_in(request, stored, True):
            status = cache_status.forwarded(b"stale", detail=b"unreachable")
            return self._from_stored(request, stored, status, "stale")
        status_code, reason = reply.failure(error)
        return self._refuse(request, status_code, reason, error.message)

    def _may_stand_in(self, request: Request, stored: Stored, is_unreachable: bool) -> bool:
        asked = request_directives(request.fields)
        now = self._clock.monotonic()
        return may_answer_failure(stored.freshness, asked, now, is_unreachable=is_unreachable)

    def _from_stored(
        self, request: Request, stored: Stored, status: bytes, what: str, *, has_age: bool = True
    ) -> Reply:
        age = stored.freshness.age(self._clock.monotonic()) if has_age else None
        return reply.from_stored(request, stored, age=age, wall=self._wall(), cache=status, what=what)

    def _refuse(self, request: Request, status: int, reason: str, message: str) -> Reply:
        self._counters.refused[reason] += 1
        return reply.local(status, reason, message, method=request.method, wall=self._wall())

    def _wall(self) -> float:
        return self._clock.wall_ns() / 1e9


@dataclass(frozen=True, slots=True)
class Followed:
    """A fetch, one request's place in it, and why the request was forwarded."""

    fetch: Fetch
    tail: Tail
    why: bytes
    is_first: bool

    @property
    def is_kept(self) -> bool:
        return self.fetch.keeps or self.fetch.stored is not None

    @property
    def has_age(self) -> bool:
        """Whether the answer was not made by the origin for this very request (RFC 9111 5.1)."""
        return not self.is_first or self.fetch.was_confirmed or self.fetch.has_age

    @property
    def what(self) -> str:
        if not self.is_first:
            return "collapsed"
        return "validated" if self.fetch.was_confirmed else "miss" if self.is_kept else "pass"

    def cache_status(self, now: float) -> bytes:
        return cache_status.forwarded(
            self.why,
            status=self.fetch.backend_status,
            stored=self.is_kept,
            collapsed=not self.is_first,
            ttl=self.fetch.freshness.left(now) if self.fetch.freshness is not None and self.is_kept else None,
        )


def _plain(request: Request) -> Request:
    """The same request for the whole answer, without conditions: what a fetch for the cache asks."""
    return replace(request, method=b"GET", fields=request.fields.without((*PRECONDITIONS, b"range")))


def _is_usable(stored: Stored, now: float) -> bool:
    return stored.freshness.left(now) > 0 and not stored.freshness.must_validate


def _is_for_one(request: Request) -> bool:
    """Whether an answer can only be for this request, so that nobody should wait for it."""
    return (
        request.method != b"GET"
        or any(name in request.fields for name in (*PRECONDITIONS, b"range", b"authorization"))
        or b"no-store" in request_directives(request.fields)
    )
