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
    """Unmount DIR, where boxlink mount has mounted a dataset. What was fetched is kept."""
    from tools.cli_engine import open_host
    from tools.mounting import end_mount, mounted_place

    host = open_host(context)
    target = mounted_place(host, directory)
    end_mount(host, target, is_forced=force)
    context.emit({"directory": target}, f"{target} is unmounted")
