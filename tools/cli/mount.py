"""Mount a dataset without restoring it: bytes come when they are read."""

from __future__ import annotations

from pathlib import Path

import click

from tools.cli_context import Context, cache_size_option, node_option, verb
from tools.cli_rate import rate_option
from tools.cli_seq import SEQ, seq_of


@click.command()
@click.argument("dataset")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--seq", type=SEQ, help="This seq or tag; by default the newest.")
@rate_option
@click.option("--no-hydrate", is_flag=True, help="Fetch what is read, and what a trace says, but not the rest.")
@click.option("--foreground", is_flag=True, help="Stay until it is unmounted.")
@cache_size_option
@node_option
@verb
def command(
    context: Context,
    dataset: str,
    directory: Path,
    seq: str | None,
    rate: int,
    no_hydrate: bool,
    foreground: bool,
    cache_size: int | None,
) -> None:
    """Mount DATASET on the directory DIR, read-only; returns when it can be read. Needs root.

    \b
    boxlink mount covers /srv/covers
    boxlink umount /srv/covers

    A daemon stays, which fetches what is read, verifies it and keeps it for the next time; and in the background all
    else. When everything is here the next mount needs no daemon.
    """
    from synclib.engine.mount import Background, prepare
    from synclib.errors import Invalid
    from tools.cli_engine import connect_of, manifest_fields, open_dataset, open_host, progress_bar
    from tools.mounting import check_cache_size, check_target, start_mount, wait_for

    target = check_target(directory)
    opened = open_dataset(context, dataset)
    host, connect = open_host(context), connect_of(context)
    check_cache_size(host, cache_size)
    manifest = opened.manifest_at(seq_of(opened, seq))
    prepared = prepare(opened, host, manifest)
    if connect is None:
        raise Invalid("a store in memory cannot be mounted: its daemon is another process")
    background = Background(rate, is_whole=not no_hydrate)
    keeper = start_mount(host, connect, prepared, target, background, cache_size)
    result: dict[str, object] = {
        "dataset": dataset,
        **manifest_fields(manifest),
        "directory": target,
        "mode": "erofs",
        "served": "daemon" if keeper else "native",
        "keeper": keeper.pid if keeper else 0,
        "left_out": {"xattrs": prepared.metadata.left_out},
        "metadata": prepared.metadata.made,
    }
    context.emit(result, f"{dataset} at seq {manifest.seq} is mounted on {target}")
    if prepared.metadata.left_out:
        context.note(
            f"boxlink: the extended attributes of {prepared.metadata.left_out} entries cannot be seen in the mount"
        )
    if foreground and keeper is not None:
        with progress_bar(context) as progress:
            wait_for(host, target, keeper, progress)
