"""Caching seen from outside: what reaches the origin, and what a client gets."""

from __future__ import annotations

import asyncio

import pytest

from tests.proxied import Message, answer, in_loop, request, until, world

TILE = bytes(range(256)) * 48
YEAR = "public, max-age=31536000, immutable"


@in_loop
async def test_registered_lifetime_makes_a_silent_origin_cacheable_for_browser_and_proxy() -> None:
    async with world() as running:
        origin = await running.backend(lambda _: answer(TILE, etag='"t"'), handles=["/tiles/*"], cache="365d")
        first = await running.get("/tiles/1.jpg")
        second = await running.get("/tiles/1.jpg")
        assert (first.status, first.body, first["cache-control"]) == (200, TILE, YEAR)
        assert (second.status, second.body, second["cache-control"]) == (200, TILE, YEAR)
        assert first["cache-status"] == "boxlink; fwd=uri-miss; fwd-status=200; ttl=31536000; stored"
        assert second["cache-status"] == "boxlink; hit; ttl=31536000"
        assert (first["age"], second["age"]) == (None, "0")
        assert len(origin.requests) == 1


@pytest.mark.parametrize(
    "said",
    [
        {"cache_control": "no-store"},
        {"cache_control": "private"},
        {"cache_control": "max-age=0"},
        {"expires": "0"},
        {"pragma": "no-cache"},
        {"set_cookie": "a=b"},
        {"vary": "*"},
        {"cdn_cache_control": "no-store"},
    ],
)
@in_loop
async def test_any_word_of_the_origin_wins_over_the_registration(said: dict[str, str]) -> None:
    async with world() as running:
        origin = await running.backend(lambda _: answer(TILE, **said), cache="365d")
        for _ in range(2):
            response = await running.get("/tiles/1.jpg")
            assert response["cache-control"] == said.get("cache_control")
        assert len(origin.requests) == 2


@pytest.mark.parametrize("status", [201, 204, 301, 302, 307, 308, 400, 403, 404, 410, 414, 500, 501, 503])
@in_loop
async def test_registered_lifetime_is_for_200_and_206_alone(status: int) -> None:
    async with world() as running:
        body = b"" if status == 204 else b"text"
        origin = await running.backend(lambda _: answer(body, status), cache="365d")
        for _ in range(2):
            response = await running.get("/tiles/1.jpg")
            assert (response.status, response["cache-control"]) == (status, None)
        assert len(origin.requests) == 2


@in_loop
async def test_a_range_of_an_unknown_object_passes_through_with_the_registered_lifetime() -> None:
    async with world() as running:
        ranged = answer(b"abc", 206, content_range="bytes 0-2/9")
        origin = await running.backend(lambda r: ranged if r["range"] else answer(b"abcdefghi"), cache="1h")
        response = await running.get("/a", range="bytes=0-2")
        assert (response.status, response.body, response["cache-control"]) == (
            206, b"abc", "public, max-age=3600, immutable",
        )  # fmt: skip
        assert (await running.get("/a")).body == b"abcdefghi"
        assert [seen["range"] for seen in origin.requests] == ["bytes=0-2", None]


@in_loop
async def test_authorized_requests_are_neither_made_public_nor_shared() -> None:
    async with world() as running:
        origin = await running.backend(lambda _: answer(b"mine"), cache="365d")
        for _ in range(2):
            response = await running.get("/a", authorization="Basic eDp5")
            assert response["cache-control"] is None
        assert len(origin.requests) == 2


@in_loop
async def test_age_grows_and_what_is_stale_is_validated() -> None:
    async with world() as running:

        def serve(seen: Message) -> bytes:
            if seen["if-none-match"] == '"v1"':
                return answer(status=304, etag='"v1"', cache_control="max-age=100", x_seen="again")
            return answer(b"one", etag='"v1"', cache_control="max-age=10")

        origin = await running.backend(serve)
        await running.get("/a")
        running.pass_time(7)
        hit = await running.get("/a")
        assert (hit["age"], hit["cache-status"]) == ("7", "boxlink; hit; ttl=3")
        running.pass_time(5)
        validated = await running.get("/a")
        assert (validated.status, validated.body, validated["x-seen"]) == (200, b"one", "again")
        assert validated["cache-status"] == "boxlink; fwd=stale; fwd-status=304; ttl=100; stored"
        running.pass_time(50)
        assert (await running.get("/a"))["age"] == "50"
        assert len(origin.requests) == 2


@in_loop
async def test_a_304_for_another_representation_is_not_believed() -> None:
    async with world() as running:

        def serve(seen: Message) -> bytes:
            if seen["if-none-match"]:
                return answer(status=304, etag='"v2"')
            return answer(b"%d" % len(origin.requests), etag='"v1"', cache_control="max-age=10")

        origin = await running.backend(serve)
        assert (await running.get("/a")).body == b"1"
        running.pass_time(11)
        assert (await running.get("/a")).body == b"3"


@in_loop
async def test_conditions_ranges_and_head_are_answered_from_what_is_stored() -> None:
    async with world() as running:
        modified = "Mon, 23 Nov 2020 02:00:00 GMT"
        stored = answer(b"0123456789", etag='"t"', last_modified=modified, cache_control="max-age=60")
        origin = await running.backend(lambda _: stored)
        await running.get("/a")
        for fields in ({"if_none_match": 'W/"t"'}, {"if_none_match": '"x", "t"'}, {"if_modified_since": modified}):
            response = await running.get("/a", **fields)
            assert (response.status, response["etag"], response["age"]) == (304, '"t"', "0"), fields
        assert (await running.get("/a", if_none_match='"other"', if_modified_since=modified)).status == 200
        part = await running.get("/a", range="bytes=2-4")
        assert (part.status, part.body, part["content-range"]) == (206, b"234", "bytes 2-4/10")
        assert (await running.get("/a", range="bytes=-3")).body == b"789"
        beyond = await running.get("/a", range="bytes=10-")
        assert (beyond.status, beyond["content-range"]) == (416, "bytes */10")
        assert (await running.get("/a", range="bytes=0-1,3-4")).status == 200
        assert (await running.get("/a", range="bytes=0-1", if_range='"t"')).status == 206
        assert (await running.get("/a", range="bytes=0-1", if_range='"u"')).status == 200
        head = await running.get("/a", method="HEAD")
        assert (head.status, head["content-length"], head.body) == (200, "10", b"")
        assert len(origin.requests) == 1


@in_loop
async def test_a_clients_conditions_go_to_the_origin_when_nothing_is_stored() -> None:
    async with world() as running:
        origin = await running.backend(lambda r: answer(status=304, etag='"t"') if r["if-none-match"] else answer(b"x"))
        response = await running.get("/a", if_none_match='"t"')
        assert (response.status, response["cache-control"]) == (304, None)
        assert origin.requests[0]["if-none-match"] == '"t"'


@in_loop
async def test_a_client_that_validates_a_stale_answer_gets_304_when_the_origin_confirms_it() -> None:
    async with world() as running:
        fresh = {"etag": '"t"', "cache_control": "max-age=10"}
        await running.backend(lambda r: answer(status=304, **fresh) if r["if-none-match"] else answer(b"x", **fresh))
        await running.get("/a")
        running.pass_time(20)
        response = await running.get("/a", if_none_match='"t"')
        assert (response.status, response.body) == (304, b"")
        assert (await running.get("/a", range="bytes=0-0")).status == 206


@in_loop
async def test_a_range_of_a_stale_answer_is_cut_from_the_new_whole() -> None:
    async with world() as running:
        bodies = iter((b"old-old", b"new-new"))
        await running.backend(lambda _: answer(next(bodies), cache_control="max-age=10"))
        await running.get("/a")
        running.pass_time(20)
        part = await running.get("/a", range="bytes=0-2")
        assert (part.status, part.body) == (206, b"new")


@in_loop
async def test_vary_keeps_variants_apart() -> None:
    async with world() as running:
        origin = await running.backend(
            lambda r: answer((r["x-size"] or "none").encode(), vary="X-Size", cache_control="max-age=60")
        )
        assert (await running.get("/a", x_size="1")).body == b"1"
        other = await running.get("/a", x_size="2")
        assert (other.body, other["cache-status"].split(";")[1]) == (b"2", " fwd=vary-miss")
        assert (await running.get("/a")).body == b"none"
        assert (await running.get("/a", x_size="1")).body == b"1"
        assert len(origin.requests) == 3


@in_loop
async def test_what_the_client_asks_of_caches_is_granted() -> None:
    async with world() as running:
        origin = await running.backend(lambda _: answer(b"x", cache_control="max-age=100"))
        assert (await running.get("/a", cache_control="only-if-cached")).status == 504
        await running.get("/a", cache_control="no-store")
        await running.get("/a")
        assert len(origin.requests) == 2
        running.pass_time(30)
        assert (await running.get("/a", cache_control="max-age=40"))["age"] == "30"
        assert (await running.get("/a", cache_control="only-if-cached")).status == 200
        for asked in ({"cache_control": "max-age=20"}, {"cache_control": "no-cache"}, {"pragma": "no-cache"}):
            before = len(origin.requests)
            await running.get("/a", **asked)
            assert len(origin.requests) == before + 1, asked
            running.pass_time(30)
        await running.get("/a", cache_control="min-fresh=90")
        running.pass_time(130)
        stale = await running.get("/a", cache_control="max-stale=60")
        assert (stale["age"], stale["cache-status"]) == ("130", "boxlink; hit; ttl=-30")


@in_loop
async def test_unsafe_methods_forget_the_target_and_what_their_answer_names() -> None:
    async with world() as running:

        def serve(seen: Message) -> bytes:
            if seen.method == "GET":
                return answer(b"x", cache_control="max-age=100")
            if seen.method == "POST":
                return answer(b"", 201, location="/b", content_location="http://elsewhere.example/c")
            return answer(b"", 500)

        origin = await running.backend(serve)
        for path in ("/a", "/b", "/c"):
            await running.get(path)
        await running.get("/c", method="PURGE-ISH")
        await running.get("/a", method="POST")
        before = len(origin.requests)
        for path in ("/a", "/b", "/c"):
            await running.get(path)
        assert [seen.target for seen in origin.requests[before:]] == ["/a", "/b"]


@in_loop
async def test_what_was_fetched_before_a_change_and_arrives_after_it_is_not_stored() -> None:
    async with world() as running:
        gate = asyncio.Event()

        async def serve(seen: Message) -> bytes:
            if seen.method == "GET" and len(origin.requests) == 1:
                await gate.wait()
            return answer(b"%d" % len(origin.requests), cache_control="max-age=100")

        origin = await running.backend(serve)
        early = asyncio.create_task(running.get("/a"))
        await until(lambda: len(origin.requests) == 1)
        await running.get("/a", method="PUT")
        gate.set()
        await early
        await running.get("/a")
        assert [seen.method for seen in origin.requests] == ["GET", "PUT", "GET"]


@in_loop
async def test_a_hundred_clients_cause_one_fetch() -> None:
    async with world() as running:
        gate = asyncio.Event()

        async def serve(_: Message) -> bytes:
            await gate.wait()
            return answer(TILE, cache_control="max-age=60")

        origin = await running.backend(serve)
        clients = [asyncio.create_task(running.get("/a")) for _ in range(100)]
        await until(lambda: len(running.server.shared.connections) == 100)
        await until(lambda: len(origin.requests) == 1)
        gate.set()
        responses = await asyncio.gather(*clients)
        assert all(response.body == TILE for response in responses)
        assert len(origin.requests) == 1
        assert running.server.counters.collapsed == 99


@in_loop
async def test_followers_get_the_body_while_it_arrives() -> None:
    async with world() as running:
        gate = asyncio.Event()

        async def serve(_: Message) -> bytes:
            writer = next(iter(origin._writers))
            writer.write(answer(TILE * 40, cache_control="max-age=60")[:5000])
            await gate.wait()
            return answer(TILE * 40, cache_control="max-age=60")[5000:]

        origin = await running.backend(serve)
        clients = [await running.client() for _ in range(3)]
        for client in clients:
            client.send(request("/a"))
        for client in clients:
            await client.reader.readuntil(b"\r\n\r\n")
            assert await client.reader.readexactly(256) == bytes(range(256))
        assert not gate.is_set()
        gate.set()
        for client in clients:
            assert await client.reader.readexactly(len(TILE) * 40 - 256) == (TILE * 40)[256:]
        assert len(origin.requests) == 1


@in_loop
async def test_a_leader_that_goes_away_takes_nothing_from_its_followers() -> None:
    async with world() as running:
        gate = asyncio.Event()

        async def serve(_: Message) -> bytes:
            await gate.wait()
            return answer(b"x", cache_control="max-age=60")

        origin = await running.backend(serve)
        leader = await running.client()
        leader.send(request("/a"))
        await until(lambda: len(origin.requests) == 1)
        follower = asyncio.create_task(running.get("/a"))
        await until(lambda: len(running.server.shared.connections) == 2)
        leader.reset()
        await until(lambda: len(running.server.shared.connections) == 1)
        gate.set()
        assert (await follower).body == b"x"
        assert len(origin.requests) == 1


@in_loop
async def test_an_answer_for_one_alone_is_not_given_to_the_others() -> None:
    async with world() as running:
        gate = asyncio.Event()

        async def serve(seen: Message) -> bytes:
            await gate.wait()
            return answer((seen["cookie"] or "").encode(), cache_control="private")

        origin = await running.backend(serve)
        clients = [asyncio.create_task(running.get("/a", cookie=f"id={number}")) for number in range(10)]
        await until(lambda: len(running.server.shared.connections) == 10)
        await until(lambda: bool(origin.requests))
        gate.set()
        bodies = {response.body.decode() for response in await asyncio.gather(*clients)}
        assert bodies == {f"id={number}" for number in range(10)}


@in_loop
async def test_a_follower_that_varies_gets_its_own() -> None:
    async with world() as running:
        gate = asyncio.Event()

        async def serve(seen: Message) -> bytes:
            await gate.wait()
            return answer((seen["x-size"] or "").encode(), vary="x-size", cache_control="max-age=60")

        origin = await running.backend(serve)
        clients = [asyncio.create_task(running.get("/a", x_size=str(number % 2))) for number in range(8)]
        await until(lambda: len(running.server.shared.connections) == 8)
        await until(lambda: bool(origin.requests))
        gate.set()
        assert [response.body for response in await asyncio.gather(*clients)] == [b"0", b"1"] * 4


@in_loop
async def test_stale_while_revalidate_answers_at_once_and_refreshes_once() -> None:
    async with world() as running:
        gate = asyncio.Event()

        async def serve(_: Message) -> bytes:
            if len(origin.requests) > 1:
                await gate.wait()
            return answer(b"%d" % len(origin.requests), cache_control="max-age=10, stale-while-revalidate=60")

        origin = await running.backend(serve)
        await running.get("/a")
        running.pass_time(20)
        for _ in range(5):
            stale = await running.get("/a")
            assert (stale.body, stale["cache-status"]) == (b"1", "boxlink; hit; ttl=-10")
        gate.set()
        await until(lambda: len(origin.requests) == 2 and len(running.server.fetches._live) == 0)
        assert (await running.get("/a")).body == b"2"
        assert len(origin.requests) == 2


@pytest.mark.parametrize(
    ("said", "served"),
    [
        ("max-age=10", 200),
        ("max-age=10, must-revalidate", 503),
        ("max-age=10, proxy-revalidate", 503),
        ("s-maxage=10", 503),
        ("max-age=10, no-cache", 503),
        ("max-age=10, stale-if-error=5", 503),
        ("max-age=10, stale-if-error=60", 200),
    ],
)
@in_loop
async def test_stale_stands_in_for_an_origin_that_cannot_be_reached_unless_forbidden(said: str, served: int) -> None:
    async with world() as running:
        origin = await running.backend(lambda _: answer(b"kept", etag='"1"', cache_control=said))
        await running.get("/a")
        await origin.stop()
        running.pass_time(30)
        response = await running.get("/a")
        assert response.status == served
        if served == 200:
            assert response["cache-status"] == "boxlink; fwd=stale; detail=unreachable"
            assert response["age"] == "30"


@pytest.mark.parametrize(("said", "served"), [("max-age=10, stale-if-error=60", 200), ("max-age=10", 500)])
@in_loop
async def test_an_error_is_hidden_by_a_stale_answer_only_where_the_origin_says_so(said: str, served: int) -> None:
    async with world() as running:
        answers = iter((answer(b"kept", cache_control=said), answer(b"broken", 500), answer(b"broken", 500)))
        await running.backend(lambda _: next(answers))
        await running.get("/a")
        running.pass_time(30)
        assert (await running.get("/a")).status == served


@in_loop
async def test_a_body_cut_short_is_an_error_to_the_client_and_never_stored() -> None:
    async with world() as running:
        whole = answer(TILE, cache_control="max-age=60")
        chunked = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
        answers = {"/sized": whole[:-10], "/chunked": chunked}
        origin = await running.backend(lambda r: answers[r.target])
        origin.closes = True
        for target in answers:
            for _ in range(2):
                with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                    await running.get(target)
        assert len(origin.requests) == 4
        assert len(running.server.cache) == 0
        assert running.server.counters.truncated == 4


@in_loop
async def test_bytes_beyond_the_body_end_the_connection_and_are_nobodys_answer() -> None:
    async with world() as running:
        poison = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
        origin = await running.backend(lambda r: answer(b"x", cache_control="max-age=60") + poison)
        assert (await running.get("/a")).body == b"x"
        assert (await running.get("/b")).body == b"x"
        assert origin.connections == 2
        assert len(running.server.cache) == 0


@in_loop
async def test_an_object_too_large_to_keep_streams_through() -> None:
    async with world(cache_bytes=1 << 20) as running:
        chunk = b"%x\r\n%b\r\n" % (len(TILE), TILE)
        head = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n"
        answers = {
            "/sized": answer(TILE * 100, cache_control="max-age=60"),
            "/chunked": head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 100 + b"0\r\n\r\n",
        }
        origin = await running.backend(lambda r: answers[r.target])
        for target in answers:
            for _ in range(2):
                assert (await running.get(target)).body == TILE * 100
        assert len(origin.requests) == 4
        assert len(running.server.cache) == 0


@in_loop
async def test_a_chunked_answer_is_stored_with_its_length_and_a_closing_one_is_not() -> None:
    async with world() as running:
        head = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n"
        answers = {
            "/chunked": head + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: x\r\n\r\n",
            "/closing": head + b"\r\nabcde",
        }
        origin = await running.backend(lambda r: answers[r.target])
        origin.closes = True
        for target in answers:
            for _ in range(2):
                assert (await running.get(target)).body == b"abcde"
        assert (await running.get("/chunked"))["content-length"] == "5"
        assert [seen.target for seen in origin.requests] == ["/chunked", "/closing", "/closing"]


@in_loop
async def test_bodies_under_way_take_a_bounded_share_of_memory() -> None:
    async with world(cache_bytes=4 << 20) as running:
        gate = asyncio.Event()

        async def serve(seen: Message) -> bytes:
            wire = answer(TILE * 60, cache_control="max-age=60")
            next(writer for writer in origin._writers if writer not in told).write(wire[:-1])
            told.update(origin._writers)
            await gate.wait()
            return wire[-1:]

        told: set[object] = set()
        origin = await running.backend(serve)
        clients = [await running.client() for _ in range(6)]
        for number, client in enumerate(clients):
            client.send(request(f"/{number}"))
            await client.reader.readuntil(b"\r\n\r\n")
            await client.reader.readexactly(len(TILE) * 60 - 1)
            assert running.server.cache.arriving_bytes <= (1 << 20) + (1 << 20)
        gate.set()
        for client in clients:
            assert await client.reader.readexactly(1) == TILE[-1:]
        await until(lambda: not running.server.fetches._live)
        assert running.server.cache.arriving_bytes == 0
        assert 0 < len(running.server.cache) < 6


@pytest.mark.parametrize("said", ["no-store", "private"])
@in_loop
async def test_a_304_that_forbids_storing_ends_what_is_stored(said: str) -> None:
    async with world() as running:

        def serve(seen: Message) -> bytes:
            if seen["if-none-match"]:
                return answer(status=304, etag='"t"', cache_control=said)
            return answer(b"x", etag='"t"', cache_control="max-age=10")

        await running.backend(serve)
        await running.get("/a")
        running.pass_time(20)
        response = await running.get("/a")
        assert (response.status, response.body, response["cache-control"]) == (200, b"x", said)
        assert len(running.server.cache) == 0


@in_loop
async def test_a_validation_overtaken_by_a_change_answers_but_is_not_stored() -> None:
    async with world() as running:
        gate = asyncio.Event()

        async def serve(seen: Message) -> bytes:
            if seen["if-none-match"]:
                await gate.wait()
                return answer(status=304, etag='"t"')
            return answer(b"x", etag='"t"', cache_control="max-age=10")

        origin = await running.backend(serve)
        await running.get("/a")
        running.pass_time(20)
        validating = asyncio.create_task(running.get("/a"))
        await until(lambda: len(origin.requests) == 2)
        await running.get("/a", method="DELETE")
        gate.set()
        assert (await validating).body == b"x"
        assert len(running.server.cache) == 0


@in_loop
async def test_a_range_request_does_not_end_the_collapsing_of_others() -> None:
    async with world() as running:
        gate = asyncio.Event()

        async def serve(seen: Message) -> bytes:
            if seen["range"]:
                return answer(b"x", 206, content_range="bytes 0-0/5")
            await gate.wait()
            return answer(b"xyzab", cache_control="max-age=60")

        origin = await running.backend(serve)
        await running.get("/a", range="bytes=0-0")
        clients = [asyncio.create_task(running.get("/a")) for _ in range(5)]
        await until(lambda: len(running.server.shared.connections) == 5)
        gate.set()
        assert {response.body for response in await asyncio.gather(*clients)} == {b"xyzab"}
        assert len(origin.requests) == 2


@in_loop
async def test_early_hints_are_passed_on_and_not_stored() -> None:
    async with world() as running:
        hints = b"HTTP/1.1 103 Early Hints\r\nLink: </s.css>; rel=preload\r\n\r\n"
        await running.backend(lambda _: hints + answer(b"x", cache_control="max-age=60, public"))
        client = await running.client()
        client.send(request("/a", authorization="x"))
        assert (await client.receive()).status == 103
        assert (await client.receive()).body == b"x"
        assert (await client.get("/a")).body == b"x"


@in_loop
async def test_targeted_directives_bind_this_cache_alone() -> None:
    async with world() as running:
        origin = await running.backend(
            lambda r: (
                answer(b"x", cache_control="no-store", cdn_cache_control="max-age=60")
                if r.target == "/good"
                else answer(b"x", cache_control="no-store", cdn_cache_control="max-age=60, &")
            )
        )
        for target in ("/good", "/bad"):
            for _ in range(2):
                assert (await running.get(target))["cache-control"] == "no-store"
        assert [seen.target for seen in origin.requests] == ["/good", "/bad", "/bad"]


@in_loop
async def test_memory_stays_within_its_bound_and_a_scan_spares_what_is_used() -> None:
    async with world(cache_bytes=1 << 20) as running:
        origin = await running.backend(lambda r: answer(TILE, cache_control="max-age=600"))
        client = await running.client()
        for _ in range(3):
            for number in range(10):
                await client.get(f"/hot/{number}")
        for number in range(500):
            await client.get(f"/cold/{number}")
            assert running.server.cache.bytes_used <= 1 << 20
        before = len(origin.requests)
        for number in range(10):
            await client.get(f"/hot/{number}")
        assert len(origin.requests) == before
