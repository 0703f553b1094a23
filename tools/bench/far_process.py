"""Where a far server runs (far_server.py): in a thread of this process or in a process of its own; what was asked."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from synclib.store.base import Store
from tools.bench.distance import Distance, round_trips
from tools.bench.far_server import Asked, FarServer


def environment(endpoint: str) -> dict[str, str]:
    """The AWS variables that lead a client here, and nowhere else."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "far",
        "AWS_SECRET_ACCESS_KEY": "faraway",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def serving(server: FarServer) -> Iterator[str]:
    """Serve in a thread of this process; yields the endpoint."""
    loop = asyncio.new_event_loop()
    listening = loop.run_until_complete(asyncio.start_server(server.talk, "127.0.0.1", 0, limit=1 << 20))
    thread = threading.Thread(target=loop.run_forever, name="far server", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(listening.close)
        loop.call_soon_threadsafe(_end_all, loop)
        thread.join()
        loop.close()


def _end_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.call_later(0.05, loop.stop)


@dataclass(frozen=True)
class Cost:
    """What some requests came to. ``round_trips``: one after the other; what is asked side by side counts once."""

    requests: int
    round_trips: int
    body_bytes: int
    rows: tuple[Asked, ...]

    @classmethod
    def of(cls, asked: list[Asked]) -> Cost:
        spans = [(row.begin_s, row.end_s) for row in asked]
        return cls(len(asked), round_trips(spans), sum(row.body_bytes for row in asked), tuple(asked))


class FarProcess:
    """A server in a process of its own."""

    def __init__(self, endpoint: str, pipe: Connection) -> None:
        self.endpoint, self._pipe = endpoint, pipe

    def take(self) -> list[Asked]:
        """What was asked since it was taken last, by when it came."""
        self._pipe.send("take")
        rows: list[Asked] = self._pipe.recv()
        return sorted(rows, key=lambda row: row.begin_s)


@contextmanager
def in_process(make: Callable[..., Store], *arguments: Any, distance: Distance, seed: int) -> Iterator[FarProcess]:
    """Before the store that ``make(*arguments)`` opens there."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(theirs, make, arguments, distance, seed), daemon=True)
    process.start()
    theirs.close()
    try:
        yield FarProcess(ours.recv(), ours)
    finally:
        process.terminate()
        process.join()


def _run(
    pipe: Connection, make: Callable[..., Store], arguments: tuple[Any, ...], distance: Distance, seed: int
) -> None:
    server = FarServer(make(*arguments), distance, seed)
    with serving(server) as endpoint, contextlib.suppress(EOFError):
        pipe.send(endpoint)
        while pipe.recv() == "take":
            rows, server.asked = server.asked, []
            pipe.send(rows)
