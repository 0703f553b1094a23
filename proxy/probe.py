"""Looking whether a backend answers, where nothing else tells: after failures, and while the store cannot be read; and
whether a new one does what it is there for, before others' share goes to it."""

from __future__ import annotations

import asyncio
import contextlib

from proxy.backends import Backend, Backends
from proxy.core.health import Event, State
from proxy.upstream import converse
from synclib.errors import Corrupt, Unavailable

INTERVAL_S = 1.0
ANSWER_S = 3.0
AT_ONCE_MAX = 32
PROBE_BYTES_MAX = 16 << 20


async def probe_for_ever(backends: Backends) -> None:
    """Probe those that need it, every second."""
    while True:
        await probe_all(backends)
        await asyncio.sleep(INTERVAL_S)


async def probe_all(backends: Backends) -> None:
    """Probe each active backend that was taken out or is suspect; all of them while the store cannot be read."""
    gate = asyncio.Semaphore(AT_ONCE_MAX)
    due = [
        backend
        for backend in backends
        if backend.health.state is State.ACTIVE
        and (backend.health.is_ejected or backend.is_suspect or not backends.is_store_readable)
    ]

    async def one(backend: Backend) -> None:
        async with gate:
            backends.report(backend, Event.ANSWERED if await answers(backend) else Event.FAILED)

    await asyncio.gather(*map(one, due))


async def prove_for_ever(backends: Backends) -> None:
    """Ask each active backend that is not proven for its probe, as soon as it is known and then every second. One that
    takes long keeps no other waiting."""
    under_way: dict[Backend, asyncio.Task[None]] = {}
    try:
        while True:
            backends.has_news.clear()
            for backend, task in list(under_way.items()):
                if task.done():
                    task.result()
                    del under_way[backend]
            due = [one for one in backends if one.health.state is State.ACTIVE and not one.is_proven]
            for backend in due[:AT_ONCE_MAX]:
                if backend not in under_way:
                    under_way[backend] = asyncio.create_task(prove(backends, backend))
            # Not wait_for: until Python 3.12 it may lose that it was cancelled.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_S):
                    await backends.has_news.wait()
    finally:
        for task in under_way.values():
            task.cancel()


async def prove(backends: Backends, backend: Backend) -> None:
    """Whether a backend answers its probe with a whole 200."""
    asked = backend.who
    why = await _failing(backend, backend.registration.probe)
    if backend.who == asked:  # not another one that has registered there since
        backends.report_proof(backend, why)


async def _failing(backend: Backend, probe: str) -> str:
    """Why a GET is no whole 200; empty where it is."""
    request = b"GET %b HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % (probe.encode(), backend.address.encode())
    try:
        connection = await backend.pool.connect()
        try:
            answer = await converse(connection, b"GET", request)
            if answer.head.status != 200:
                return f"it answers {answer.head.status}"
            size = 0
            while data := await answer.read():
                size += len(data)
                if size > PROBE_BYTES_MAX:
                    return "its answer is too long"
        finally:
            connection.close()
    except (Unavailable, Corrupt) as error:
        return error.message
    return ""


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
