"""Serve a dataset's covers as a wall of tiles."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from pathlib import Path

import click

from tools.cli_context import Context, Finite, node_option, shown, verb
from tools.cli_share import share_option


@click.command()
@click.option("--data", required=True, type=click.Path(file_okay=False, path_type=Path), help="The node's data/.")
@click.option("--dataset", required=True, help="Whose covers are shown.")
@click.option("--listen", required=True, metavar="HOST:PORT", help="Port 0 takes a free one.")
@share_option
@click.option(
    "--advertise", metavar="HOST:PORT", help="What is registered (else the address of the route to the store)."
)
@click.option(
    "--lease",
    "lease_s",
    type=Finite(1, 3600),
    default=30.0,
    show_default=True,
    metavar="S",
    help="How long the registration holds without being renewed, which is done every third of it.",
)
@node_option
@verb
def command(
    context: Context, data: Path, dataset: str, listen: str, is_shared: bool, advertise: str | None, lease_s: float
) -> None:
    """Serve a dataset's covers as a wall of tiles.

    Touches DATA/DATASET/synch.active where it is absent, waits for synch.down, then serves and registers. SIGTERM
    drains: the registration goes first, what is in flight is finished.
    """
    from synclib.clock import SystemClock
    from synclib.core.names import LOG_DIRECTORY, check_dataset
    from synclib.store.meter import cost_between
    from tools import addresses
    from tools.cli_engine import open_host
    from tools.daemon_log import open_log
    from tools.heard import marked
    from tools.notify import READY, notify
    from tools.render_daemon import Plan, RenderDaemon, Stop
    from tools.render_reader import RenderReader
    from tools.shared_listener import bind_unless_shared

    check_dataset(dataset)
    host, port = addresses.parse_address(listen, "--listen")
    listener: socket.socket | None
    if is_shared:
        listener, address = bind_unless_shared(host, port)
    else:
        listener = addresses.bind(host, port)
        address = listener.getsockname()[:2]
    if advertise is not None:
        shown_host, shown_port = addresses.parse_address(advertise, "--advertise", port_min=1)
        plan_ip, plan_port = addresses.check_ip(shown_host, "--advertise"), shown_port
    else:
        plan_ip = addresses.advertised(address[0], context.url, context.s3_settings()["endpoint"])
        plan_port = None
    store = context.open_store()
    assert context.meter is not None
    meter = context.meter
    log = open_log("render", data / LOG_DIRECTORY, context.is_verbose)
    reader = RenderReader(data, dataset, store, open_host(context), log)

    def say(event: str, **fields: object) -> None:
        if event == "ready":
            notify(READY)
            fields |= cost_between((0, 0, 0), meter.mark())
        if event == "waiting":
            log.info(event, **fields)  # all else that is said is in the log already
        # Whoever started us may have stopped listening; serving goes on, and the log has it all.
        with contextlib.suppress(BrokenPipeError):
            if context.is_json:
                click.echo(marked(json.dumps({"event": event, **fields})))
            elif not context.is_quiet:
                told = " ".join(f"{name}={value}" for name, value in fields.items())
                click.echo(marked(shown(f"render: {event} {told}")), err=True)

    stop = Stop()

    def on_signal(number: int, frame: object) -> None:
        # A second signal ends the process at once.
        signal.signal(number, signal.SIG_DFL)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    plan = Plan(data, dataset, context.node, plan_ip, plan_port, lease_s, address, context.release, is_shared)
    RenderDaemon(
        plan, listener, store, reader.open, reader.list_covers, reader.say_ready, SystemClock(), log, say, stop
    ).run()
