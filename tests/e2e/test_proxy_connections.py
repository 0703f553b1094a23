"""Clients: hostile, slow, old, hasty ones. Garbage never reaches a backend; no client holds more than its share."""

from __future__ import annotations

import asyncio
import json

import pytest

from proxy.connection import HEAD_S, IDLE_S, WRITE_S
from tests.proxied import answer, in_loop, parse_head, request, until, world

H = b"Host: a\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"

HOSTILE = {
    "CL.TE": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 6\r\n" + CHUNKED + b"\r\n0\r\n\r\nG",
    "TE.CL": b"POST / HTTP/1.1\r\n" + H + CHUNKED + b"Content-Length: 4\r\n\r\n5c\r\n" + SMUGGLED + b"0\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n" + SMUGGLED,
    "same length twice": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx",
    "length list": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 1, 1\r\n\r\nx",
    "length with sign": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: +1\r\n\r\nx",
    "length in hex": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 0x1\r\n\r\nx",
    "length with blank": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 1 0\r\n\r\n" + SMUGGLED,
    "length too large": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 99999999999999999999\r\n\r\n",
    "TE with comma": b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n",
    "TE twice": b"POST / HTTP/1.1\r\n" + H + CHUNKED + CHUNKED + b"\r\n0\r\n\r\n",
    "TE list": b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "TE unknown": b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "TE with tab": b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "TE in 1.0": b"POST / HTTP/1.0\r\n" + H + CHUNKED + b"\r\n0\r\n\r\n",
    "obs-fold": b"GET / HTTP/1.1\r\n" + H + b"X: a\r\n b\r\n\r\n",
    "folded first": b"GET / HTTP/1.1\r\n X: a\r\n" + H + b"\r\n",
    "bare LF": b"GET / HTTP/1.1\n" + H + b"\r\n",
    "bare LF in head": b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
    "only LF": b"GET / HTTP/1.1\nHost: a\n\n",
    "bare CR": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
    "NUL": b"GET / HTTP/1.1\r\n" + H + b"X: a\0b\r\n\r\n",
    "control byte": b"GET / HTTP/1.1\r\n" + H + b"X: a\x01b\r\n\r\n",
    "DEL": b"GET / HTTP/1.1\r\n" + H + b"X: a\x7f\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\n" + H + H + b"\r\n",
    "bad Host": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "Host with user": b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
    "blank before colon": b"GET / HTTP/1.1\r\n" + H + b"X : a\r\n\r\n",
    "blank in name": b"GET / HTTP/1.1\r\n" + H + b"X Y: a\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\n" + H + b"X\r\n\r\n",
    "no name": b"GET / HTTP/1.1\r\n" + H + b": a\r\n\r\n",
    "8-bit name": b"GET / HTTP/1.1\r\n" + H + b"\xff: a\r\n\r\n",
    "two blanks": b"GET  / HTTP/1.1\r\n" + H + b"\r\n",
    "tab in line": b"GET\t/ HTTP/1.1\r\n" + H + b"\r\n",
    "8-bit target": b"GET /\xff HTTP/1.1\r\n" + H + b"\r\n",
    "fragment": b"GET /a#b HTTP/1.1\r\n" + H + b"\r\n",
    "no slash": b"GET a HTTP/1.1\r\n" + H + b"\r\n",
    "asterisk": b"GET * HTTP/1.1\r\n" + H + b"\r\n",
    "version 0.9": b"GET / HTTP/0.9\r\n" + H + b"\r\n",
    "version 1.2": b"GET / HTTP/1.2\r\n" + H + b"\r\n",
    "version 1.10": b"GET / HTTP/1.10\r\n" + H + b"\r\n",
    "version in lower case": b"GET / http/1.1\r\n" + H + b"\r\n",
    "no version": b"GET /\r\n\r\n",
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "CONNECT": b"CONNECT a:80 HTTP/1.1\r\n" + H + b"\r\n",
    "TRACE": b"TRACE / HTTP/1.1\r\n" + H + b"\r\n",
    "method of brackets": b"G[T / HTTP/1.1\r\n" + H + b"\r\n",
    "dots": b"GET /a/../b HTTP/1.1\r\n" + H + b"\r\n",
    "encoded dots": b"GET /a/%2e%2E/b HTTP/1.1\r\n" + H + b"\r\n",
    "encoded slash": b"GET /a%2fb HTTP/1.1\r\n" + H + b"\r\n",
    "backslash": b"GET /a\\b HTTP/1.1\r\n" + H + b"\r\n",
    "encoded NUL": b"GET /a%00 HTTP/1.1\r\n" + H + b"\r\n",
    "bad percent": b"GET /a%zz HTTP/1.1\r\n" + H + b"\r\n",
    "chunk size with sign": b"POST / HTTP/1.1\r\n" + H + CHUNKED + b"\r\n+5\r\nhello\r\n0\r\n\r\n",
    "chunk size 0x": b"POST / HTTP/1.1\r\n" + H + CHUNKED + b"\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "chunk size huge": b"POST / HTTP/1.1\r\n" + H + CHUNKED + b"\r\nfffffffffffffffff\r\n",
    "chunk size empty": b"POST / HTTP/1.1\r\n" + H + CHUNKED + b"\r\n\r\nhello",
    "chunk with LF": b"POST / HTTP/1.1\r\n" + H + CHUNKED + b"\r\n5\nhello\r\n0\r\n\r\n",
    "chunk extension with LF": b"POST / HTTP/1.1\r\n" + H + CHUNKED + b"\r\n5;a\nb\r\nhello\r\n0\r\n\r\n",
    "chunk too long": b"POST / HTTP/1.1\r\n" + H + CHUNKED + b"\r\n3\r\nhello\r\n0\r\n\r\n",
    "bad trailer": b"POST / HTTP/1.1\r\n" + H + CHUNKED + b"\r\n0\r\nX Y: a\r\n\r\n",
    "expectation": b"GET / HTTP/1.1\r\n" + H + b"Expect: tea\r\n\r\n",
    "target too long": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n" + H + b"\r\n",
    "head too large": b"GET / HTTP/1.1\r\n" + H + b"X: " + b"a" * 20_000 + b"\r\n\r\n",
    "too many fields": b"GET / HTTP/1.1\r\n" + H + b"X: a\r\n" * 200 + b"\r\n",
}


@pytest.mark.parametrize("name", HOSTILE)
@in_loop
async def test_hostile_requests_are_refused_and_the_connection_is_closed(name: str) -> None:
    async with world() as running:
        origin = await running.backend(lambda _: answer(b"x"))
        raw = await running.send(HOSTILE[name] + SMUGGLED)
        response = parse_head(raw.partition(b"\r\n\r\n")[0])
        assert response.status in (400, 414, 417, 431, 501, 505), raw
        assert raw.count(b"Cache-Status:") == 1
        assert response["connection"] == "close"
        assert (response["cache-status"] or "").startswith("boxlink; detail=")
        assert origin.requests == []


@in_loop
async def test_a_refusal_is_the_same_byte_for_byte_however_the_bytes_arrive() -> None:
    async with world() as running:
        origin = await running.backend(lambda _: answer(b"x"))
        for name in ("CL.TE", "bare LF", "obs-fold", "chunk with LF", "two Hosts"):
            client = await running.client()
            for byte in HOSTILE[name]:
                client.send(bytes((byte,)))
                await client.writer.drain()
                await asyncio.sleep(0)
            assert (await client.receive()).status == 400, name
        assert origin.requests == []


@in_loop
async def test_pipelined_requests_are_answered_in_order() -> None:
    async with world() as running:
        await running.backend(lambda r: answer(r.target.encode(), cache_control="max-age=60"))
        client = await running.client()
        await client.get("/hit")
        client.send(b"".join(request(target) for target in ("/a", "/hit", "/b", "/hit", "/hit")))
        assert [(await client.receive()).body for _ in range(5)] == [b"/a", b"/hit", b"/b", b"/hit", b"/hit"]


@in_loop
async def test_a_request_may_arrive_byte_by_byte() -> None:
    async with world() as running:
        origin = await running.backend(lambda r: answer(r.body))
        client = await running.client()
        chunks = b"2;e=1\r\nab\r\n1\r\nc\r\n0\r\nT: x\r\n\r\n"
        for byte in b"\r\n" + request("/a", method="POST", transfer_encoding="chunked") + chunks:
            client.send(bytes((byte,)))
            await asyncio.sleep(0)
        assert (await client.receive()).body == b"abc"
        assert len(origin.requests) == 1


@in_loop
async def test_absolute_targets_and_hosts_are_one_resource_per_canonical_host() -> None:
    async with world() as running:
        origin = await running.backend(lambda _: answer(b"x", cache_control="max-age=60"))
        client = await running.client()
        for head in (
            b"GET /a HTTP/1.1\r\nHost: A.example:80\r\n\r\n",
            b"GET /a HTTP/1.1\r\nHost: a.EXAMPLE\r\n\r\n",
            b"GET http://a.example/a HTTP/1.1\r\nHost: other\r\n\r\n",
            b"GET http://a.example/a HTTP/1.1\r\nHost: other\r\n\r\n",
            b"GET /a HTTP/1.1\r\nHost: other\r\n\r\n",
        ):
            client.send(head)
            assert (await client.receive()).body == b"x"
        assert [seen["host"] for seen in origin.requests] == ["a.example", "other"]


@in_loop
async def test_old_clients_get_what_they_can_read() -> None:
    async with world() as running:
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        await running.backend(lambda r: chunked if r.target == "/chunked" else answer(b"x"))
        raw = await running.send(b"GET /chunked HTTP/1.0\r\n\r\n")
        assert raw.endswith(b"\r\nConnection: close\r\n\r\nabc")
        assert b"chunked" not in raw.lower()
        client = await running.client()
        for _ in range(2):
            client.send(b"GET /a HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
            response = await client.receive()
            assert (response.body, response["connection"]) == (b"x", "keep-alive")


@in_loop
async def test_a_client_may_stop_sending_and_wait_for_its_answers() -> None:
    async with world() as running:
        await running.backend(lambda r: answer(r.target.encode()))
        client = await running.client()
        client.send(request("/a") + request("/b"))
        client.writer.write_eof()
        assert [(await client.receive()).body for _ in range(2)] == [b"/a", b"/b"]
        assert await client.reader.read() == b""


@in_loop
async def test_a_head_that_does_not_come_is_not_waited_for() -> None:
    async with world() as running:
        slow, idle = await running.client(), await running.client()
        slow.send(b"GET / HTTP/1.1\r\nHost")
        connections = running.server.shared.connections
        await until(lambda: any(connection._buffer for connection in connections))
        running.pass_time(HEAD_S - 1)
        slow.send(b": a")
        await until(lambda: any(bytes(connection._buffer).endswith(b": a") for connection in connections))
        running.pass_time(2)
        assert (await slow.receive()).status == 408
        assert await idle.reader.read() == b""


@in_loop
async def test_idle_connections_are_closed_and_used_ones_are_not() -> None:
    async with world() as running:
        await running.backend(lambda _: answer(b"x", cache_control="max-age=6000"))
        idle, used = await running.client(), await running.client()
        await idle.get("/a")
        for _ in range(3):
            await used.get("/a")
            running.pass_time(IDLE_S / 2)
        assert await idle.reader.read() == b""
        assert (await used.get("/a")).status == 200


@in_loop
async def test_a_client_that_does_not_read_costs_a_bounded_buffer_and_is_dropped() -> None:
    async with world() as running:
        body = b"x" * (4 << 20)
        await running.backend(lambda _: answer(body, cache_control="max-age=6000"))
        await running.get("/large")
        client = await running.client()
        client.writer.transport.pause_reading()
        client.send(request("/large") * 20)
        (connection,) = await _connections(running)
        await until(lambda: connection._responder.is_full)
        for _ in range(100):
            await asyncio.sleep(0)
        assert connection._transport.get_write_buffer_size() <= 256 << 10
        running.pass_time(WRITE_S + 1)
        await until(lambda: not running.server.shared.connections)


@in_loop
async def test_a_flood_of_pipelined_hits_without_reading_is_bounded() -> None:
    async with world() as running:
        await running.backend(lambda _: answer(b"x" * 30_000, cache_control="max-age=6000"))
        client = await running.client()
        await client.get("/a")
        client.writer.transport.pause_reading()
        (connection,) = await _connections(running)
        while not connection._responder.is_full:
            client.send(request("/a"))
            await asyncio.sleep(0)
        client.send(request("/a") * 20_000)
        await until(lambda: not connection._transport.is_reading())
        assert connection._transport.get_write_buffer_size() <= 256 << 10
        assert len(connection._buffer) <= 512 << 10


async def _connections(running: object) -> list[object]:
    connections = running.server.shared.connections  # type: ignore[attr-defined]
    await until(lambda: len(connections) == 1)
    return list(connections)


@in_loop
async def test_connections_over_the_limit_are_turned_away() -> None:
    async with world() as running:
        await running.backend(lambda _: answer(b"x"))
        running.server.shared.connections_max = 2
        first, second = await running.client(), await running.client()
        for client in (first, second):
            assert (await client.get("/a")).status == 200
        third = await running.client()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await third.get("/a")
        assert running.server.counters.turned_away == 1
        first.close()
        await until(lambda: len(running.server.shared.connections) == 1)
        assert (await running.get("/a")).status == 200


@in_loop
async def test_the_short_cut_says_what_the_long_way_says() -> None:
    async with world() as running:
        await running.backend(lambda r: answer(r.target.encode(), etag='"e"', cache_control="max-age=100"))
        client = await running.client()
        for target in ("/a", "/b"):
            await client.get(target)
            await client.get(target)
        for seconds in (0, 5, 40):
            running.pass_time(seconds)
            for target in ("/a", "/b"):
                before = running.server.memo.hits
                short = await client.get(target)
                assert running.server.memo.hits == before + 1
                long = await client.get(target, accept_language=str(seconds), connection="keep-alive, x")
                assert (short.line, short.body) == (long.line, long.body)
                assert short.pairs == long.pairs


@in_loop
async def test_the_short_cut_ends_with_freshness_replacement_and_invalidation() -> None:
    async with world() as running:
        origin = await running.backend(lambda _: answer(b"%d" % len(origin.requests), cache_control="max-age=10"))
        client = await running.client()
        for _ in range(3):
            assert (await client.get("/a")).body == b"1"
        assert running.server.memo.hits == 1
        running.pass_time(9.5)
        assert ((await client.get("/a")).body, running.server.memo.hits) == (b"1", 1)
        running.pass_time(1)
        assert (await client.get("/a")).body == b"2"
        for _ in range(2):
            assert (await client.get("/a")).body == b"2"
        assert running.server.memo.hits == 2
        await client.get("/a", method="DELETE")
        assert (await client.get("/a")).body == b"4"


@in_loop
async def test_requests_that_ask_more_than_a_plain_hit_never_take_the_short_cut() -> None:
    async with world() as running:
        await running.backend(lambda _: answer(b"0123456789", etag='"e"', cache_control="max-age=100"))
        client = await running.client()
        asked = (
            ({"range": "bytes=0-1"}, 206),
            ({"if_none_match": '"e"'}, 304),
            ({"cache_control": "only-if-cached"}, 200),
            ({"authorization": "x"}, 200),
        )
        await client.get("/a")
        for _ in range(3):
            for fields, status in asked:
                assert (await client.get("/a", **fields)).status == status
        assert running.server.memo.hits == 0
        closing = await running.client()
        for _ in range(2):
            closing = await running.client()
            assert (await closing.get("/a", connection="close"))["connection"] == "close"
        assert running.server.memo.hits == 0


@in_loop
async def test_options_that_goes_no_further_is_answered_here() -> None:
    async with world() as running:
        origin = await running.backend(lambda r: answer((r["max-forwards"] or "").encode()))
        assert (await running.get("*", method="OPTIONS")).status == 200
        assert (await running.get("/a", method="OPTIONS", max_forwards="0")).status == 200
        assert (await running.get("/a", method="OPTIONS", max_forwards="3")).body == b"2"
        assert len(origin.requests) == 1


@in_loop
async def test_a_get_with_a_body_is_passed_on_and_never_stored() -> None:
    async with world() as running:
        origin = await running.backend(lambda r: answer(r.body, cache_control="max-age=60"))
        client = await running.client()
        for text in (b"one", b"two"):
            client.send(request("/a", body=text))
            assert (await client.receive()).body == text
        assert len(origin.requests) == 2
        assert len(running.server.cache) == 0


@in_loop
async def test_the_reason_is_readable() -> None:
    async with world() as running:
        raw = await running.send(HOSTILE["two Hosts"])
        told = json.loads(raw.partition(b"\r\n\r\n")[2])["error"]
        assert told == {"status": 400, "reason": "host", "message": "there must be exactly one Host field"}
        assert running.server.counters.refused["host"] == 1
