"""Mount a dataset without restoring it: bytes come when they are read."""

from __future__ import annotations

from pathlib import Path

import click

from tools.cli_context import Context, cache_size_option, node_option, verb
from tools.cli_seq import SEQ, seq_of


@click.command()
@click.argument("dataset")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--seq", type=SEQ, help="This seq or tag; by default the newest.")
@click.option("--foreground", is_flag=True, help="Stay until it is unmounted.")
@cache_size_option
@node_option
@verb
def command(
    context: Context, dataset: str, directory: Path, seq: str | None, foreground: bool, cache_size: int | None
) -> None:
    """Mount DATASET on the directory DIR, read-only; returns when it can be read. Needs root.

    \b
    boxlink mount covers /srv/covers
    boxlink umount /srv/covers

    A daemon stays, which fetches what is read, verifies it and keeps it for the next time.
    """
    from synclib.engine.mount import prepare
    from synclib.errors import Invalid
    from tools.cli_engine import connect_of, manifest_fields, open_dataset, open_host
    from tools.mounting import check_cache_size, check_target, start_keeper, wait_for

    target = check_target(directory)
    opened = open_dataset(context, dataset)
    host, connect = open_host(context), connect_of(context)
    check_cache_size(host, cache_size)
    manifest = opened.manifest_at(seq_of(opened, seq))
    prepared = prepare(opened, host, manifest)
    if connect is None:
        raise Invalid("a store in memory cannot be mounted: its daemon is another process")
    keeper = start_keeper(host, connect, prepared, target, cache_size)
    result: dict[str, object] = {
        "dataset": dataset,
        **manifest_fields(manifest),
        "directory": target,
        "mode": "erofs",
        "keeper": keeper.pid,
        "left_out": {"xattrs": prepared.left_out},
    }
    context.emit(result, f"{dataset} at seq {manifest.seq} is mounted on {target}")
    if prepared.left_out:
        context.note(f"boxlink: the extended attributes of {prepared.left_out} entries cannot be seen in the mount")
    if foreground:
        wait_for(keeper)
