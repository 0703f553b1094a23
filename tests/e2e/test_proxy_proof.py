"""A new backend gets its share of the requests when it has answered what its registration names as its probe."""

from __future__ import annotations

import asyncio

import pytest

from tests.proxied import Message, Origin, World, answer, in_loop, until, world

PATHS = [f"/tiles/{number}" for number in range(40)]


class Server:
    """Whose tiles are right only when it is well."""

    def __init__(self, name: str) -> None:
        self.name, self.is_well, self.proof = name, True, answer(b"a tile")
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, request: Message) -> bytes:
        if request.target == "/proof":
            await self.gate.wait()
            return self.proof if self.is_well else answer(b"no", status=500)
        return answer(self.name.encode(), cache_control="no-store", status=200 if self.is_well else 500)


async def register(running: World, server: Server, **more: object) -> Origin:
    return await running.backend(server, probe="/proof", node=server.name, **more)


async def seen(running: World) -> list[tuple[int, bytes]]:
    client = await running.client()
    answers = [await client.get(path) for path in PATHS]
    return [(found.status, found.body) for found in answers]


def is_proven(running: World, origin: Origin) -> bool:
    address = running.key(origin).removeprefix("proxy/").replace(".p", ":")
    return any(row["proven"] for backend in running.server.backends if (row := backend.as_dict())["address"] == address)


def proofs(origin: Origin) -> int:
    return sum(request.target == "/proof" for request in origin.requests)


@in_loop
async def test_one_that_fails_at_its_work_gets_no_request_until_it_does_not() -> None:
    async with world() as running:
        old = await running.backend(Server("old"))
        ailing = Server("new")
        ailing.is_well = False
        new = await register(running, ailing)
        await until(lambda: proofs(new) > 0)
        assert set(await seen(running)) == {(200, b"old")}
        assert not is_proven(running, new)
        ailing.is_well = True
        running.poll()
        await until(lambda: is_proven(running, new))
        assert set(await seen(running)) == {(200, b"old"), (200, b"new")}
        asked = proofs(new)
        running.poll()
        await seen(running)
        assert proofs(new) == asked, "who is proven is not asked again"
        assert is_proven(running, old), "who names no probe is taken at his word"


@in_loop
async def test_where_there_is_no_other_it_gets_them() -> None:
    async with world() as running:
        server = Server("only")
        server.gate.clear()
        only = await register(running, server)
        assert set(await seen(running)) == {(200, b"only")}
        assert not is_proven(running, only)
        server.gate.set()


@in_loop
async def test_one_that_takes_long_keeps_no_other_waiting() -> None:
    async with world() as running:
        slow = Server("slow")
        slow.gate.clear()
        await register(running, slow)
        quick = await register(running, Server("quick"))
        await until(lambda: is_proven(running, quick))
        assert set(await seen(running)) == {(200, b"quick")}
        slow.gate.set()


@in_loop
async def test_another_release_on_the_same_address_is_asked_anew() -> None:
    async with world() as running:
        await running.backend(Server("old"))
        server = Server("new")
        new = await register(running, server, release="r@1")
        await until(lambda: is_proven(running, new))
        server.is_well = False
        running.register(new, probe="/proof", node="new", release="r@1", renewed=2)
        assert is_proven(running, new), "a renewal is nobody new"
        running.register(new, probe="/proof", node="new", release="r@2")
        assert not is_proven(running, new)
        assert set(await seen(running)) == {(200, b"old")}
        # Nor is one that was gone believed.
        server.is_well = True
        running.poll()
        await until(lambda: is_proven(running, new))
        running.withdraw(new)
        server.is_well = False
        running.register(new, probe="/proof", node="new", release="r@2")
        assert not is_proven(running, new)


@pytest.mark.parametrize(
    "proof",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort",
        b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"rubbish\r\n\r\n",
    ],
)
@in_loop
async def test_what_is_no_whole_200_proves_nothing(proof: bytes) -> None:
    async with world() as running:
        await running.backend(Server("old"))
        server = Server("new")
        server.proof = proof
        new = await register(running, server)
        for _ in range(2):
            asked = proofs(new)
            running.poll()
            await until(lambda asked=asked: proofs(new) > asked)  # type: ignore[misc]
        assert not is_proven(running, new)
