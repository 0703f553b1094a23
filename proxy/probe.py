"""Looking whether a backend answers, where nothing else tells: after failures, and while the store cannot be read."""

from __future__ import annotations

import asyncio

from proxy.backends import Backend, Backends
from proxy.core.health import Event, State
from proxy.upstream import converse
from synclib.errors import Corrupt, Unavailable

INTERVAL_S = 1.0
ANSWER_S = 3.0
AT_ONCE_MAX = 32


async def probe_for_ever(backends: Backends) -> None:
    """Probe those that need it, every second."""
    while True:
        await probe_all(backends)
        await asyncio.sleep(INTERVAL_S)


async def probe_all(backends: Backends) -> None:
    """Probe each active backend that was taken out; all of them while the store cannot be read."""
    gate = asyncio.Semaphore(AT_ONCE_MAX)
    due = [
        backend
        for backend in backends
        if backend.health.state is State.ACTIVE and (backend.health.is_ejected or not backends.is_store_readable)
    ]

    async def one(backend: Backend) -> None:
        async with gate:
            backends.report(backend, Event.ANSWERED if await answers(backend) else Event.FAILED)

    await asyncio.gather(*map(one, due))


async def answers(backend: Backend) -> bool:
    """Whether a backend answers a HEAD with anything below 500: a process that hangs accepts connections too."""
    request = b"HEAD /healthz HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % backend.address.encode()
    try:
        connection = await backend.pool.connect()
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await converse(connection, b"HEAD", request)
        finally:
            connection.close()
    except (Unavailable, Corrupt, TimeoutError):
        return False
    return answer.head.status < 500
