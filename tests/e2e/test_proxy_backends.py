"""Discovery, balance, drain, retry, leases and outages, with a real store contract and real sockets."""

from __future__ import annotations

import asyncio
import json

import pytest

from proxy.backends import IN_FLIGHT_MAX
from proxy.connection import ClientConnection
from proxy.core.networks import parse_networks
from proxy.dispatch import ASKS_S, WALL_ASKS_MAX
from proxy.probe import probe_all
from proxy.registry import REGISTRATIONS_MAX
from synclib.core.registration import Registration
from synclib.errors import Unavailable
from tests.proxied import Message, Origin, World, answer, in_loop, request, until, world


def named(name: str) -> bytes:
    return answer(name.encode(), cache_control="no-store")


def reason(response: Message) -> str:
    found: str = json.loads(response.body)["error"]["reason"]
    return found


def shown(running: World, origin: Origin) -> dict[str, object]:
    address = running.key(origin).removeprefix("proxy/").replace(".p", ":")
    return next(row for backend in running.server.backends if (row := backend.as_dict())["address"] == address)


@in_loop
async def test_backends_are_found_served_and_taken_away() -> None:
    async with world() as running:
        nobody = await running.get("/tiles/1")
        assert (nobody.status, reason(nobody), nobody["retry-after"]) == (503, "no-backend", "2")
        assert nobody["cache-status"] == "boxlink; detail=no-backend"
        assert nobody["cache-control"] == "no-store"
        tiles = await running.backend(lambda _: named("tiles"), handles=["/tiles/*"])
        await running.backend(lambda _: named("exact"), handles=["/tiles/1", "/other"])
        assert (await running.get("/tiles/1")).body == b"exact"
        assert (await running.get("/tiles/2")).body == b"tiles"
        assert (await running.get("/tilesX")).status == 503
        running.withdraw(tiles)
        assert reason(await running.get("/tiles/2")) == "no-backend"
        assert shown(running, tiles)["state"] == "gone"


@in_loop
async def test_the_slides_plain_line_is_a_registration() -> None:
    async with world() as running:
        origin = await running.backend(lambda _: answer(b"x"), handles=["/none"])
        running.store.put(running.key(origin), b"I handle '/tiles/*'. Cache for 365d")
        running.poll()
        assert (await running.get("/tiles/1"))["cache-control"] == "public, max-age=31536000, immutable"


@in_loop
async def test_paths_are_shared_out_and_each_keeps_its_backend() -> None:
    async with world() as running:
        origins = [await running.backend(lambda _: named("")) for _ in range(3)]
        client = await running.client()
        for _ in range(2):
            for number in range(60):
                await client.get(f"/{number}")
        served = [{seen.target for seen in origin.requests} for origin in origins]
        assert sum(map(len, served)) == 60
        assert all(len(paths) >= 8 for paths in served)


@in_loop
async def test_one_hot_path_spills_to_the_others_when_its_backend_is_busy() -> None:
    async with world() as running:
        gate = asyncio.Event()

        async def serve(_: Message) -> bytes:
            await gate.wait()
            return named("x")

        origins = [await running.backend(serve) for _ in range(3)]
        posts = [asyncio.create_task(running.get("/hot", method="POST")) for _ in range(30)]
        await until(lambda: sum(len(origin.requests) for origin in origins) == 30)
        assert max(len(origin.requests) for origin in origins) <= 14
        gate.set()
        await asyncio.gather(*posts)


@in_loop
async def test_a_draining_backend_finishes_what_it_has_and_gets_nothing_new() -> None:
    async with world() as running:
        gate = asyncio.Event()

        async def serve(_: Message) -> bytes:
            await gate.wait()
            return named("old")

        old = await running.backend(serve)
        under_way = asyncio.create_task(running.get("/a"))
        await until(lambda: len(old.requests) == 1)
        running.register(old, state="draining")
        refused = await running.get("/b")
        assert (refused.status, reason(refused)) == (503, "draining")
        new = await running.backend(lambda _: named("new"))
        for number in range(20):
            assert (await running.get(f"/{number}")).body == b"new"
        gate.set()
        assert (await under_way).body == b"old"
        assert (len(old.requests), len(new.requests)) == (1, 20)
        assert shown(running, old)["state"] == "draining"


@in_loop
async def test_a_backend_that_drains_while_it_is_connected_to_gets_nothing() -> None:
    async with world() as running:
        origins = [await running.backend(lambda _: named("x")) for _ in range(2)]
        running.register(origins[1], state="draining")
        pool = next(b for b in running.server.backends if b.takes_requests).pool
        connect = pool.connect

        async def drained_meanwhile() -> object:
            connection = await connect()
            running.register(origins[0], state="draining")
            running.register(origins[1])
            return connection

        pool.connect = drained_meanwhile  # type: ignore[method-assign, assignment]
        assert (await running.get("/a")).status == 200
        assert [len(origin.requests) for origin in origins] == [0, 1]


@pytest.mark.parametrize("broken", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"garbage\r\n\r\n"])
@in_loop
async def test_a_get_that_fails_before_the_first_body_byte_is_tried_once_elsewhere(broken: bytes) -> None:
    async with world() as running:
        origins = []

        def serve(seen: Message) -> bytes:
            first = sum(len(origin.requests) for origin in origins) == 1
            return broken if first else named("x")

        for _ in range(3):
            origins.append(await running.backend(serve))
            origins[-1].closes = True
        response = await running.get("/a")
        assert (response.status, response.body) == (200, b"x")
        assert sorted(len(origin.requests) for origin in origins) == [0, 1, 1]


@in_loop
async def test_only_once_and_a_post_never() -> None:
    async with world() as running:
        origins = [await running.backend(lambda _: b"") for _ in range(4)]
        failed = await running.get("/a")
        assert (failed.status, reason(failed)) == (503, "failed")
        assert sum(len(origin.requests) for origin in origins) == 2
        failed = await running.get("/b", method="POST")
        assert (failed.status, reason(failed)) == (503, "failed")
        assert sum(len(origin.requests) for origin in origins) == 3


@in_loop
async def test_an_answer_that_is_no_http_is_502() -> None:
    async with world() as running:
        origin = await running.backend(lambda _: b"HTTP/1.1 200 OK\r\nBad Name: x\r\n\r\n")
        failed = await running.get("/a")
        assert (failed.status, reason(failed)) == (502, "bad-answer")
        assert shown(running, origin)["errors"] == 1


@in_loop
async def test_503_of_one_backend_is_tried_elsewhere_and_passed_on_when_all_say_it() -> None:
    async with world() as running:
        busy = answer(b"busy", 503)
        origins = [await running.backend(lambda _: busy)]
        assert (await running.get("/a")).body == b"busy"
        origins.append(await running.backend(lambda _: busy))
        assert (await running.get("/a")).body == b"busy"
        origins[0].handler = origins[1].handler = lambda _: named("x") if origins[1].requests else busy
        assert (await running.get("/a")).status == 200


@in_loop
async def test_a_wall_that_one_does_not_hold_is_asked_of_the_others() -> None:
    async with world() as running:
        unknown = answer(b"no wall", 404, boxlink_wall="unknown", cache_control="max-age=60")
        origins = [await running.backend(lambda _: unknown, cache="365d") for _ in range(5)]
        response = await running.get("/tiles/w/0")
        assert (response.status, response["boxlink-wall"]) == (404, "unknown")
        assert [len(origin.requests) for origin in origins] == [1] * 5
        holder = origins[3]
        holder.handler = lambda _: answer(b"tile")
        for number in range(10):
            assert (await running.get(f"/tiles/w/{number}")).body == b"tile"
        assert len(running.server.cache) == 10


@in_loop
async def test_a_wall_that_some_cannot_read_now_is_asked_of_all() -> None:
    async with world() as running:
        away = answer(b"the store is away", 503, boxlink_wall="elsewhere")
        origins = [await running.backend(lambda _: away, cache="365d") for _ in range(4)]
        assert (await running.get("/tiles/w/0")).status == 503
        assert [len(origin.requests) for origin in origins] == [1] * 4
        for origin in origins[1:]:
            origin.handler = lambda _: answer(b"no wall", 404, boxlink_wall="unknown")
        for number in range(5):
            assert (await running.get(f"/tiles/w/{number}")).status == 503, "somebody has it"
        origins[2].handler = lambda _: answer(b"tile")
        for number in range(10):
            assert (await running.get(f"/tiles/w/{number}")).body == b"tile"
        origins += [await running.backend(lambda _: away) for _ in range(WALL_ASKS_MAX)]
        for origin in origins:
            origin.handler = lambda _: away
        before = sum(len(origin.requests) for origin in origins)
        assert (await running.get("/tiles/another/0")).status == 503
        assert sum(len(origin.requests) for origin in origins) == before + WALL_ASKS_MAX


@in_loop
async def test_servers_that_dawdle_are_not_all_asked_for_one_wall() -> None:
    async with world() as running:
        unknown = answer(b"no wall", 404, boxlink_wall="unknown")

        def dawdle(_: Message) -> bytes:
            running.clock.advance(ASKS_S / 3)
            return unknown

        origins = [await running.backend(dawdle) for _ in range(WALL_ASKS_MAX)]
        assert (await running.get("/tiles/w/0")).status == 404
        assert sum(len(origin.requests) for origin in origins) == 4


@in_loop
async def test_nobody_else_is_asked_for_a_wall_when_the_client_has_gone() -> None:
    async with world() as running:
        answered = asyncio.Event()

        async def unknown(_: Message) -> bytes:
            await answered.wait()
            return answer(b"no wall", 404, boxlink_wall="unknown")

        origins = [await running.backend(unknown) for _ in range(4)]
        client = await running.client()
        client.send(request("/tiles/w/0"))
        await until(lambda: any(origin.requests for origin in origins))
        client.reset()
        await until(lambda: not running.server.shared.connections)
        answered.set()
        await until(lambda: not any(backend.in_flight for backend in running.server.backends))
        assert sum(len(origin.requests) for origin in origins) == 1
        assert (await running.get("/tiles/w/1")).status == 404
        assert sum(len(origin.requests) for origin in origins) == 5


@in_loop
async def test_a_kept_connection_that_the_backend_closed_costs_no_request() -> None:
    async with world() as running:
        origin = await running.backend(lambda _: named("x"))
        for _ in range(5):
            assert (await running.get("/a")).status == 200
            for writer in list(origin._writers):
                writer.transport.abort()
        assert shown(running, origin)["errors"] == 0


@in_loop
async def test_a_backend_that_refuses_connections_is_taken_out_and_put_back_by_a_probe() -> None:
    async with world() as running:
        good, bad = [await running.backend(lambda _: named("x")) for _ in range(2)]
        port = int(running.key(bad).rpartition(".p")[2])
        await bad.stop()
        for number in range(20):
            assert (await running.get(f"/{number}")).status == 200
        assert (shown(running, bad)["ejected"], shown(running, bad)["errors"]) == (True, 3)
        await probe_all(running.server.backends)
        assert shown(running, bad)["ejected"] is True
        await bad.start(port)
        await probe_all(running.server.backends)
        assert shown(running, bad)["ejected"] is False
        assert (len(good.requests), bad.requests[0].method) == (20, "HEAD")


@in_loop
async def test_one_request_that_a_backend_cannot_bear_takes_it_from_nobody() -> None:
    async with world() as running:
        origin = await running.backend(lambda r: b"" if r.target == "/bad" else named("x"))
        for number in range(5):
            assert (await running.get("/bad")).status == 503
            assert (await running.get(f"/{number}")).status == 200
        await running.get("/bad")
        await probe_all(running.server.backends)
        assert origin.requests[-1].target == "/healthz"
        assert (await running.get("/a")).status == 200


@in_loop
async def test_a_backend_that_accepts_and_never_answers_is_taken_out_by_probes() -> None:
    async with world() as running:
        silent, good = await running.backend(lambda _: b""), await running.backend(lambda _: named("x"))
        while not silent.requests:
            assert (await running.get(f"/{len(good.requests)}")).status == 200
        for _ in range(3):
            assert shown(running, silent)["ejected"] is False
            await probe_all(running.server.backends)
        assert shown(running, silent)["ejected"] is True
        assert all(seen.target != "/healthz" for seen in good.requests)


@in_loop
async def test_all_failed_is_said() -> None:
    async with world() as running:
        origin = await running.backend(lambda _: named("x"))
        await origin.stop()
        for _ in range(4):
            failed = await running.get("/a")
            assert (failed.status, reason(failed)) == (503, "failed")


class _Outage:
    """Makes the store's listing fail until it is over."""

    def __init__(self, running: World) -> None:
        self.running = running
        self.listing = running.store.list

        def fail(*_: object, **__: object) -> None:
            raise Unavailable("the store does not answer")

        running.store.list = fail  # type: ignore[method-assign, assignment]

    def poll(self) -> None:
        try:
            self.running.poll()
        except Unavailable as error:
            self.running.server.note_outage(error)

    def end(self) -> None:
        self.running.store.list = self.listing  # type: ignore[method-assign]


@in_loop
async def test_a_lease_that_is_not_renewed_runs_out_and_a_renewed_one_stands() -> None:
    async with world() as running:
        quiet = await running.backend(lambda _: named("quiet"), handles=["/quiet"], lease_s=10)
        alive = await running.backend(lambda _: named("alive"), handles=["/alive"], lease_s=10)
        for beat in range(6):
            running.pass_time(2)
            running.register(alive, handles=["/alive"], lease_s=10, seq=beat)
        assert (await running.get("/alive")).status == 200
        assert (await running.get("/quiet")).status == 503
        assert shown(running, quiet)["state"] == "gone"
        running.register(quiet, handles=["/quiet"], lease_s=10, seq=1)
        assert (await running.get("/quiet")).status == 200


@in_loop
async def test_an_outage_of_the_store_for_five_leases_loses_no_request() -> None:
    async with world() as running:
        origin = await running.backend(lambda _: named("x"), lease_s=10)
        running.pass_time(9)
        running.poll()
        outage = _Outage(running)
        for number in range(25):
            running.pass_time(2)
            outage.poll()
            assert (await running.get(f"/{number}")).status == 200
        assert running.server.backends.is_store_readable is False
        outage.end()
        for number in range(5):
            # The backend could not renew meanwhile: it gets a whole lease to do so.
            running.poll()
            assert (await running.get(f"/after/{number}")).status == 200
            running.pass_time(1.9)
        running.register(origin, lease_s=10, seq=1)
        assert (await running.get("/renewed")).status == 200
        assert running.server.backends.is_store_readable is True


@in_loop
async def test_during_an_outage_probes_take_a_dead_backend_out() -> None:
    async with world() as running:
        origins = [await running.backend(lambda _: named("x")) for _ in range(2)]
        outage = _Outage(running)
        outage.poll()
        await origins[0].stop()
        for _ in range(3):
            await probe_all(running.server.backends)
        assert [shown(running, origin)["ejected"] for origin in origins] == [True, False]
        for number in range(10):
            assert (await running.get(f"/{number}")).status == 200
        assert running.server.counters.retries == 0
        outage.end()


@pytest.mark.parametrize(
    ("key", "text", "why"),
    [
        ("proxy/10.0.0.1.p80", b"{", "malformed"),
        ("proxy/10.0.0.1.p80", b'{"handles": ["tiles"]}', "malformed"),
        ("proxy/10.0.0.1.p80", b"x" * 20_000, "malformed"),
        ("proxy/10.0.0.1.p0", b"{}", "malformed"),
        ("proxy/010.0.0.1.p80", b"{}", "malformed"),
        ("proxy/localhost.p80", b"{}", "malformed"),
        ("proxy/169.254.169.254.p80", b'{"handles": ["/*"]}', "unwelcome"),
        ("proxy/fd00:ec2::254.p80", b'{"handles": ["/*"]}', "unwelcome"),
        ("proxy/127.0.0.1.p80", b'{"handles": ["/*"]}', "unwelcome"),
        ("proxy/8.8.8.8.p80", b'{"handles": ["/*"]}', "unwelcome"),
    ],
)
@in_loop
async def test_malformed_and_unwelcome_registrations_are_ignored_counted_and_told_once(
    key: str, text: bytes, why: str
) -> None:
    async with world(networks=parse_networks([], "s3://bucket")) as running:
        running.store.put(key, text)
        running.poll()
        running.poll()
        assert list(running.server.backends) == []
        assert dict(running.server.counters.ignored) == {why: 1}
        running.store.put(key, text)
        running.poll()
        told = [event for event in running.logged if event["event"] == "registration ignored"]
        assert [(event["key"], event["reason"]) for event in told] == [(key, why)]


@in_loop
async def test_a_good_registration_that_turns_bad_is_gone() -> None:
    async with world() as running:
        origin = await running.backend(lambda _: named("x"))
        running.store.put(running.key(origin), b"{}")
        running.poll()
        assert (await running.get("/a")).status == 503


@in_loop
async def test_unchanged_registrations_are_not_read_again() -> None:
    async with world() as running:
        await running.backend(lambda _: named("x"))
        reads = []
        get = running.store.get
        running.store.get = lambda key, **rest: (reads.append(key), get(key, **rest))[1]  # type: ignore[method-assign]
        running.poll()
        assert reads == []


@in_loop
async def test_a_request_that_comes_round_again_is_refused() -> None:
    async with world() as running:
        host, port = running.server.address
        running.put(f"proxy/{host}.p{port}", {})
        response = await running.get("/a")
        assert (response.status, reason(response)) == (508, "loop")


@in_loop
async def test_what_a_backend_is_sent_is_built_anew() -> None:
    async with world() as running:
        origin = await running.backend(lambda _: named("x"))
        await running.get(
            "/a?b=c",
            connection="X-Hop",
            x_hop="1",
            x_forwarded_for="9.9.9.9",
            x_forwarded_host="evil.example",
            x_original_url="/admin",
            te="trailers",
            upgrade="websocket",
            accept="image/*",
        )
        seen = origin.requests[0]
        assert seen.line == "GET /a?b=c HTTP/1.1"
        assert seen["host"] == "covers.example"
        assert seen["accept"] == "image/*"
        assert seen["x-forwarded-for"] == "9.9.9.9, 127.0.0.1"
        assert (seen["via"] or "").startswith("1.1 boxlink-")
        for name in ("x-hop", "x-forwarded-host", "x-original-url", "te", "upgrade", "connection"):
            assert seen[name] is None, name


@in_loop
async def test_bodies_are_forwarded_whole_and_bounded() -> None:
    async with world() as running:
        origin = await running.backend(lambda r: answer(r.body))
        client = await running.client()
        client.send(request("/a", method="POST", body=b"x" * 300_000))
        assert (await client.receive()).body == b"x" * 300_000
        client.send(request("/a", method="POST", transfer_encoding="chunked") + b"3\r\nabc\r\n0\r\n\r\n")
        assert (await client.receive()).body == b"abc"
        assert origin.requests[1]["content-length"] == "3"
        client.send(request("/a", method="POST", content_length="5", expect="100-continue"))
        assert (await client.receive()).status == 100
        client.send(b"hello")
        assert (await client.receive()).body == b"hello"
        client.send(request("/a", method="POST", content_length=str(2 << 20)))
        assert (await client.receive()).status == 413
        assert len(origin.requests) == 3


@in_loop
async def test_the_poller_finds_a_backend_by_itself() -> None:
    async with world(poll_s=0.02) as running:
        origin = Origin(lambda _: named("x"))
        port = await origin.start()
        running.origins[f"proxy/127.0.0.1.p{port}"] = origin
        running.store.put(f"proxy/127.0.0.1.p{port}", Registration(handles=["/*"]).model_dump_json().encode())
        await until(lambda: len(list(running.server.backends)) == 1)
        assert (await running.get("/a")).status == 200


@in_loop
async def test_stop_lets_what_is_under_way_end() -> None:
    async with world() as running:
        gate = asyncio.Event()

        async def serve(_: Message) -> bytes:
            await gate.wait()
            return named("x")

        origin = await running.backend(serve)
        idle = await running.client()
        busy = await running.client()
        busy.send(request("/a"))
        await until(lambda: len(origin.requests) == 1 and len(running.server.shared.connections) == 2)
        stopping = asyncio.create_task(running.server.stop())
        assert await idle.reader.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await running.client()
        gate.set()
        response = await busy.receive()
        assert (response.body, response["connection"]) == (b"x", "close")
        await stopping
        assert not any(isinstance(c, ClientConnection) for c in running.server.shared.connections)


@in_loop
async def test_the_admin_address_tells_health_backends_and_metrics() -> None:
    async with world(admin=("127.0.0.1", 0)) as running:
        origin = await running.backend(lambda _: named("x"), node="node-1")
        await running.get("/a")

        async def page(path: str) -> tuple[int, bytes]:
            reader, writer = await asyncio.open_connection(*running.server.admin_address or ())
            writer.write(request(path))
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
            return int(head.split(b" ")[1]), body

        status, body = await page("/healthz")
        assert (status, json.loads(body)["status"], json.loads(body)["backends"]) == (200, "ok", 1)
        (row,) = json.loads((await page("/backends"))[1])
        assert row["address"] == running.key(origin).removeprefix("proxy/").replace(".p", ":")
        assert (row["state"], row["requests"], row["errors"], row["node"]) == ("active", 1, 0, "node-1")
        assert row["p99_ms"] == 0.0
        metrics = (await page("/metrics"))[1].decode()
        assert 'boxlink_proxy_answers_total{cache="pass"} 1.0' in metrics
        assert f'boxlink_proxy_backend_requests_total{{address="{row["address"]}",state="active"}} 1.0' in metrics
        assert (await page("/nothing"))[0] == 404


@in_loop
async def test_a_backend_is_given_no_more_than_it_can_queue() -> None:
    async with world() as running:
        origin = await running.backend(lambda _: named("x"))
        (backend,) = running.server.backends
        backend.in_flight = IN_FLIGHT_MAX
        refused = await running.get("/a")
        assert (refused.status, reason(refused)) == (503, "busy")
        backend.in_flight = 0
        assert (await running.get("/a")).status == 200
        assert len(origin.requests) == 1


@in_loop
async def test_more_registrations_than_are_read_are_said() -> None:
    async with world() as running:
        for number in range(REGISTRATIONS_MAX + 5):
            running.store.put(f"proxy/127.0.{number >> 8}.{number & 255}.p80", b'{"handles": ["/*"]}')
        running.poll()
        assert len(list(running.server.backends)) == REGISTRATIONS_MAX
        assert running.server.counters.ignored["too-many"] == 1


@in_loop
async def test_a_registration_that_changed_and_cannot_be_read_stays_as_it_was() -> None:
    async with world() as running:
        origin = await running.backend(lambda _: named("x"), lease_s=10)
        get = running.store.get

        def fail(*_: object, **__: object) -> None:
            raise Unavailable("the store does not answer")

        for _ in range(8):
            running.store.put(running.key(origin), b'{"handles": ["/*"], "state": "draining"}')
            running.store.get = fail  # type: ignore[method-assign, assignment]
            running.pass_time(2)
            running.poll()
            assert (await running.get("/a")).status == 200
        running.store.get = get  # type: ignore[method-assign]
        running.poll()
        assert reason(await running.get("/a")) == "draining"


@in_loop
async def test_a_bug_in_the_poller_ends_the_proxy_instead_of_freezing_its_routes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    async with world(poll_s=0.01) as running:
        running.store.list = lambda *_, **__: 1 // 0  # type: ignore[method-assign, assignment]
        await running.server.crashed.wait()
        assert isinstance(running.server.crash, ZeroDivisionError)


@in_loop
async def test_a_rolling_upgrade_loses_no_request() -> None:
    async with world() as running:
        failed: list[int] = []
        is_over = False

        async def browse(number: int) -> int:
            client, count = await running.client(), 0
            while not is_over:
                response = await client.get(f"/{number}/{count}")
                if response.status != 200:
                    failed.append(response.status)
                count += 1
            return count

        old = [await running.backend(lambda _: named("0")) for _ in range(2)]
        browsers = [asyncio.create_task(browse(number)) for number in range(8)]
        for release in range(1, 6):
            new = [await running.backend(lambda _, text=str(release): named(text)) for _ in range(2)]
            for origin in old:
                running.register(origin, state="draining")
            await until(lambda old=old: all(shown(running, origin)["in_flight"] == 0 for origin in old))
            served = [len(origin.requests) for origin in old]
            await until(lambda new=new: all(len(origin.requests) > 20 for origin in new))
            assert served == [len(origin.requests) for origin in old]
            for origin in old:
                running.withdraw(origin)
                await origin.stop()
            old = new
        is_over = True
        assert sum(await asyncio.gather(*browsers)) > 200
        assert failed == []
