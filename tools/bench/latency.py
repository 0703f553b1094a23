"""A proxy that lets every byte wait: a store some milliseconds away, on one machine. It counts HTTP requests too.

Bytes are delayed, not throttled: what is sent at once arrives at once, half the round trip later each way.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from typing import Any

_PIECE_BYTES = 256 << 10
# At most so many bytes wait on one connection; what is faster than that over the delay is slowed down.
_WAITING_PIECES = 64


@dataclass(frozen=True)
class Delayed:
    """The proxy's endpoint, and how many requests went through it so far."""

    endpoint: str
    count: Synchronized[int]

    @property
    def requests(self) -> int:
        return self.count.value


@contextmanager
def delayed(endpoint: str, round_trip_s: float) -> Iterator[Delayed]:
    """A proxy in a process of its own in front of ``http://host:port``."""
    host, _, port = endpoint.removeprefix("http://").partition(":")
    context = multiprocessing.get_context("spawn")
    count = context.Value("q", 0)
    ready, started = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(host, int(port), round_trip_s / 2, count, started), daemon=True)
    process.start()
    try:
        yield Delayed(f"http://127.0.0.1:{ready.recv()}", count)
    finally:
        process.terminate()
        process.join()


def _serve(host: str, port: int, delay_s: float, count: Synchronized[int], started: Any) -> None:
    import uvloop

    uvloop.run(_run(host, port, delay_s, count, started))


async def _run(host: str, port: int, delay_s: float, count: Synchronized[int], started: Any) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(
            _pump(reader, upstream_writer, delay_s, count), _pump(upstream_reader, writer, delay_s, None)
        )

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    started.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float, count: Synchronized[int] | None
) -> None:
    """Pass bytes on, each piece ``delay_s`` after it came."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_WAITING_PIECES)

    async def read() -> None:
        piece = b"-"
        while piece:
            piece = await reader.read(_PIECE_BYTES)
            if count is not None and (found := piece.count(b" HTTP/1.1\r\n")):
                with count.get_lock():
                    count.value += found
            await waiting.put((loop.time() + delay_s, piece))

    async def write() -> None:
        while True:
            due, piece = await waiting.get()
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            if not piece:
                return
            writer.write(piece)
            await writer.drain()

    with suppress(OSError):
        await asyncio.gather(read(), write())
    with suppress(OSError):
        writer.close()
