"""The node's daemon: bring down what data/ asks for, follow it, send logs up."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from tools.cli_context import Context, Finite, cache_size_option, mode_option, node_option, verb
from tools.cli_rate import rate_option
from tools.cli_snapshot import driver_options


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=Path("data"), show_default=True, metavar="DIR")
@click.option("--once", is_flag=True, help="One round, then end; the exit code is that of the first error.")
@click.option("--poll", type=Finite(min=0.1, max=3600), metavar="SECONDS", help="How often to ask (10).")
@click.option("--lazy", is_flag=True, help="Mount datasets rather than restore them, where possible (needs root).")
@click.option(
    "--from",
    "source",
    type=click.Choice(["store", "snapshot"]),
    default="store",
    help="Where mounted datasets start from: a volume of their newest snapshot, if there is one (implies --lazy).",
)
@driver_options
@rate_option
@click.option("--no-hydrate", is_flag=True, help="Of mounted datasets fetch what is read, not the rest.")
@cache_size_option
@mode_option
@click.option(
    "--channel",
    "channels",
    multiple=True,
    metavar="NAME",
    help="Follow a channel, for the dataset that it is of, rather than the head (repeatable).",
)
@click.option("--admin", metavar="HOST:PORT", help="Serve /healthz and /metrics here; port 0 takes a free one.")
@click.option(
    "--proxy", metavar="HOST:PORT", help="The --admin of the proxy that runs beside it: the node tells its figures."
)
@node_option
@verb
def command(
    context: Context,
    data: Path,
    once: bool,
    poll: float | None,
    lazy: bool,
    source: str,
    driver_name: str | None,
    pool: Path | None,
    rate: int,
    no_hydrate: bool,
    cache_size: int | None,
    mode: str | None,
    channels: tuple[str, ...],
    admin: str | None,
    proxy: str | None,
) -> None:
    """Bring down the datasets that DIR asks for, keep following them, and send DIR/log up.

    \b
    boxlink sync --data ./data
    mkdir -p data/covers && touch data/covers/synch.active     # asks; data/covers/synch.down answers

    synch.active may hold the words eager, lazy, seq=N, from=snapshot: lazily a dataset is there at once and its bytes
    come as they are read. synch.up asks for the directory to be published. synch.error says why something did not
    happen. --json: one object a line for each event.
    """
    from synclib.core.names import check_node
    from synclib.disk.data_lock import sole_daemon
    from synclib.engine.cache_work import Background
    from synclib.engine.mount import Mode
    from synclib.engine.node import Node
    from synclib.engine.report import Identity
    from synclib.errors import Invalid
    from tools.addresses import parse_address
    from tools.cli_engine import connect_of, open_host
    from tools.cli_snapshot import volumes_here
    from tools.daemon_events import open_events
    from tools.mount_report import mount_figures
    from tools.mounting import KeeperMounter, check_cache_size
    from tools.notify import READY, STOPPING, notify, say_alive
    from tools.proxy_report import proxy_figures

    admin_address = None if admin is None else parse_address(admin, "--admin")
    if proxy is not None:
        parse_address(proxy, "--proxy")
    try:
        (data / "log").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Invalid(f"{data} cannot be used: {error.strerror}", path=str(data)) from error
    click.get_current_context().with_resource(sole_daemon(data))
    log = open_events(context, "sync", data / "log")
    poll_s = poll or (context.settings.poll_s if context.settings else 10.0)
    store = context.open_store()
    for name in channels:
        check_node(name)
    assert context.meter is not None
    host, connect = open_host(context), connect_of(context)
    check_cache_size(host, cache_size)
    background = Background(rate, is_whole=not no_hydrate)
    way = None if mode is None else Mode(mode)
    volumes = volumes_here(context, host, driver_name, pool)
    mounter = None if connect is None else KeeperMounter(host, connect, background, cache_size, way, volumes)
    identity = Identity(
        context.role, context.release, lambda: mount_figures(host.state, data), lambda: proxy_figures(proxy)
    )
    node = Node(
        data,
        store,
        connect,
        host,
        log,
        poll_s,
        context.meter,
        mounter,
        channels,
        identity,
        is_lazy=lazy,
        is_from_snapshot=source == "snapshot",
    )
    if connect is not None:
        from tools.adopt_mounts import adopt_mounts

        adopt_mounts(host.state, log)
    if once:
        errors = node.run_once()
        shown = {name: error.as_dict() for name, error in errors.items()}
        context.emit({"errors": shown}, "" if errors else "done")
        for name, failed in errors.items():
            context.note(f"boxlink: {name}: {failed.kind}: {failed.message}")
        if errors:
            raise click.exceptions.Exit(next(iter(errors.values())).exit_code)
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: node.stop())
    told = {}
    if admin_address is not None:
        from tools.sync_admin import SyncAdmin, serve_in_thread

        pages = SyncAdmin(node, context.meter, host.clock, host.state, data).pages()
        told["admin"] = serve_in_thread(pages, *admin_address)
    log.info("started", data=str(data), store=context.url, node=context.node, **told)
    say_alive(node.late, lambda late: log.warning("stuck: the service manager is not told that it lives", late=late))
    notify(READY)
    node.run()
    notify(STOPPING)
    log.info("stopped", **context.with_costs({}))
