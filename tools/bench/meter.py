"""A proxy that counts what goes to an S3 server: requests by verb, bytes up and down. It changes nothing."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.sharedctypes import SynchronizedArray
from typing import Any

# LIST is a GET of the bucket; DELETES a POST that deletes many.
VERBS = ("GET", "HEAD", "LIST", "PUT", "POST", "DELETE", "DELETES")
_UP, _DOWN = len(VERBS), len(VERBS) + 1
_PIECE_BYTES = 256 << 10


@dataclass(frozen=True)
class Traffic:
    """What went through: requests by verb (those that occurred), bytes with their headers each way."""

    requests: dict[str, int]
    up_bytes: int
    down_bytes: int

    @property
    def count(self) -> int:
        return sum(self.requests.values())


@dataclass(frozen=True)
class Meter:
    """The proxy's endpoint and its counters."""

    endpoint: str
    counters: SynchronizedArray[int]

    def reset(self) -> None:
        self.counters[:] = [0] * len(self.counters)

    def read(self) -> Traffic:
        values = self.counters[:]
        requests = {verb: count for verb, count in zip(VERBS, values, strict=False) if count}
        return Traffic(requests, values[_UP], values[_DOWN])


@contextmanager
def metered(endpoint: str) -> Iterator[Meter]:
    """A proxy in a process of its own in front of ``http://host:port``."""
    host, _, port = endpoint.removeprefix("http://").partition(":")
    context = multiprocessing.get_context("spawn")
    counters = context.Array("q", len(VERBS) + 2)
    ready, started = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(host, int(port), counters, started), daemon=True)
    process.start()
    try:
        yield Meter(f"http://127.0.0.1:{ready.recv()}", counters)
    finally:
        process.terminate()
        process.join()


class _Requests:
    """Counts the requests on one connection, whatever pieces their bytes come in (callbacks of httptools)."""

    def __init__(self, counters: SynchronizedArray[int]) -> None:
        import httptools

        self.counters = counters
        self.url = b""
        self.parser = httptools.HttpRequestParser(self)

    def feed(self, piece: bytes) -> None:
        self.counters[_UP] += len(piece)
        self.parser.feed_data(piece)

    def on_message_begin(self) -> None:
        self.url = b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_headers_complete(self) -> None:
        self.counters[VERBS.index(verb(self.parser.get_method().decode(), self.url))] += 1


def verb(method: str, url: bytes) -> str:
    """The S3 operation's kind: ``PUT``, ``LIST``..."""
    path, _, query = url.partition(b"?")
    if method == "GET" and path.count(b"/") < 2 + path.endswith(b"/") and query:
        return "LIST"
    if method == "POST" and query.startswith(b"delete"):
        return "DELETES"
    return method


def _serve(host: str, port: int, counters: SynchronizedArray[int], started: Any) -> None:
    import uvloop

    uvloop.run(_run(host, port, counters, started))


async def _run(host: str, port: int, counters: SynchronizedArray[int], started: Any) -> None:
    def down(piece: bytes) -> None:
        counters[_DOWN] += len(piece)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.close()
            return
        up = _Requests(counters).feed
        await asyncio.gather(_pump(reader, upstream_writer, up), _pump(upstream_reader, writer, down))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    started.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: Any) -> None:
    with suppress(OSError):
        while piece := await reader.read(_PIECE_BYTES):
            count(piece)
            writer.write(piece)
            await writer.drain()
    with suppress(OSError):
        writer.close()
