"""Unmount a dataset that was mounted lazily."""

from __future__ import annotations

from pathlib import Path

import click

from tools.cli_context import Context, verb


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Even while files are open there: who reads gets an error.")
@verb
def command(context: Context, directory: Path, force: bool) -> None:
    """Unmount DIR, where boxlink mount or sync has mounted a dataset. What was fetched is kept.

    A sync that runs on DIR's data directory mounts it again; take DIR/synch.active away if that is not wanted.
    """
    from synclib.core.names import ACTIVE
    from tools.cli_engine import open_host
    from tools.mounted import known_at, mounted_place
    from tools.mounting import end_mount

    host = open_host(context)
    target = mounted_place(host, directory)
    if not known_at(host.state, target):
        from tools.end_standing import end_standing

        ended = end_standing(host, directory, is_forced=force)
        if ended is not None:
            context.emit({"directory": ended}, f"{ended} is unmounted")
            if (directory / ACTIVE).exists():
                context.note(f"boxlink: a sync that runs there mounts it again; {ACTIVE} asks for it")
            return
    end_mount(host, target, is_forced=force)
    context.emit({"directory": target}, f"{target} is unmounted")
