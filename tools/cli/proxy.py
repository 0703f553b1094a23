"""Cache and balance: find backends in the store, forward to them, keep what may be kept."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from synclib.errors import Invalid
from tools.cli_context import Context, Finite, verb
from tools.cli_share import share_option
from tools.heard import is_heard
from tools.notify import ALIVE, READY, notify, watchdog_s

if TYPE_CHECKING:
    import socket

    import structlog

    from proxy.server import ProxySettings
    from synclib.store.base import Store
    from tools.shared_listener import HandOut


@click.command()
@click.option("--listen", required=True, metavar="HOST:PORT", help="Where clients connect; port 0 takes a free one.")
@share_option
@click.option(
    "--allow",
    multiple=True,
    metavar="CIDR",
    help="Where backends may live, repeatable (default: private networks; loopback only with a file:// store).",
)
@click.option("--admin", metavar="HOST:PORT", help="Serve /healthz, /backends and /metrics here.")
@click.option("--poll", "poll_s", type=Finite(0.1, 3600), default=2.0, show_default=True, metavar="S")
@click.option(
    "--cache-size",
    type=click.IntRange(min=1 << 20),
    default=256 << 20,
    show_default=True,
    metavar="BYTES",
    help="Memory for stored answers.",
)
@click.option("--check", is_flag=True, help="Check the settings and exit.")
@verb
def command(
    context: Context,
    listen: str,
    is_shared: bool,
    allow: tuple[str, ...],
    admin: str | None,
    poll_s: float,
    cache_size: int,
    check: bool,
) -> None:
    """Cache and balance what the backends registered in the store serve."""
    from proxy.core.networks import parse_networks
    from proxy.server import ProxySettings

    settings = ProxySettings(
        listen=_address(listen, "--listen"),
        networks=parse_networks(allow or (context.settings.allow if context.settings else []), context.url),
        admin=None if admin is None else _address(admin, "--admin"),
        poll_s=poll_s,
        cache_bytes=cache_size,
    )
    store = context.open_store()
    if check:
        allowed = [str(network) for network in settings.networks]
        context.emit({"ok": True, "listen": listen, "admin": admin, "allow": allowed}, "the settings are right")
        return
    if is_shared:
        from tools.shared_listener import shared_bind

        settings = replace(settings, listener=shared_bind(*settings.listen)[0])
    _raise_file_limit()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(context, settings, store, _logger(context)))


async def _serve(
    context: Context, settings: ProxySettings, store: Store, log: structlog.typing.FilteringBoundLogger
) -> None:
    from proxy.server import ProxyServer
    from synclib.clock import SystemClock, SystemEntropy

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = ProxyServer(settings, store, SystemClock(), SystemEntropy(), log)
    await server.start()
    freeze_collector()
    _tell(
        context,
        {
            "event": "ready",
            "listen": _text(server.address),
            "admin": None if server.admin_address is None else _text(server.admin_address),
        },
        f"listening on {_text(server.address)}"
        + ("" if server.admin_address is None else f", admin on {_text(server.admin_address)}"),
    )
    shared = None if settings.listener is None else _shared(settings.listener)
    notify(READY)
    alive = asyncio.create_task(_say_alive())
    waits = [asyncio.create_task(event.wait()) for event in (stopped, server.crashed)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in (*waits, alive):
        wait.cancel()
    if shared is not None and await asyncio.to_thread(shared.close):
        await server.let_go()
    await server.stop()
    if server.crash is not None:
        raise server.crash
    _tell(context, {"event": "stopped"}, "stopped")


def _shared(listener: socket.socket) -> HandOut:
    from tools.shared_listener import HandOut

    return HandOut(listener)


async def _say_alive() -> None:
    """As often as systemd wants to hear it; that the loop comes round is what it is to know."""
    while (pause_s := watchdog_s()) is not None:
        notify(ALIVE)
        await asyncio.sleep(pause_s)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop, or asyncio's own loop where it does not run."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def freeze_collector() -> None:
    """What stands after the start stands for good: full collections need not look at it again, nor come as often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _tell(context: Context, event: dict[str, object], text: str) -> None:
    """One line on stdout, at once: whoever started us may wait for it."""
    if context.is_json:
        click.echo(json.dumps(event))
    elif not context.is_quiet:
        click.echo(text)
    sys.stdout.flush()


def _address(text: str, flag: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise Invalid(f"{flag} {text!r} is no address", hint="write it as 0.0.0.0:8080 or [::1]:8080")
    return host, int(port)


def _text(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _logger(context: Context) -> structlog.typing.FilteringBoundLogger:
    import structlog

    level = logging.WARNING if context.is_quiet else logging.DEBUG if context.is_verbose else logging.INFO
    as_json = context.is_json or context.is_verbose or is_heard()
    renderer = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=False)
    logger: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at" if is_heard() else "timestamp"),
            structlog.processors.format_exc_info,
            renderer,
        ],
    )
    return logger


def _raise_file_limit() -> None:
    """As many open files as the system allows: each client and each backend's connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
