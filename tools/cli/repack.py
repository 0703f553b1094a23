"""Write packs of which little is used, or that are small, anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tools.cli_context import Context, node_option, verb

if TYPE_CHECKING:
    from synclib.engine.repack import RepackedResult


@click.command()
@click.argument("dataset", required=False)
@click.option(
    "--budget",
    metavar="BYTES",
    type=click.IntRange(min=0),
    default=4 << 30,
    show_default=True,
    help="Read, and write, at most so many bytes.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be written anew; write nothing.")
@click.option("--dask", metavar="ADDRESS", help="Use the Dask cluster whose scheduler is here.")
@node_option
@verb
def command(context: Context, dataset: str | None, budget: int, dry_run: bool, dask: str | None) -> None:
    """Write packs of DATASET (by default of all) anew of which the newest seq uses little, or which are small; gather
    what many publishes have strewn over many packs although it stands side by side.

    \b
    boxlink repack covers
    boxlink repack --dry-run

    Content and digest stay the same. The old packs are freed by `boxlink gc` when no kept seq needs them.
    """
    from synclib.core.names import dataset_root
    from synclib.engine.repack import RepackOptions, repack_dataset
    from synclib.lazy.dataset import Dataset
    from tools.cli_engine import (
        connect_of,
        dataset_names,
        each_dataset,
        executor_of,
        manifest_fields,
        open_host,
        progress_bar,
        say,
    )

    store, connect = context.open_store(), connect_of(context)
    start = executor_of(context, "synclib.engine.repack_job", dask)
    options = RepackOptions(budget, dry_run, start)

    def run(name: str) -> dict[str, object]:
        opened = Dataset(store, dataset_root(name))
        with progress_bar(context) as progress:
            done = repack_dataset(opened, open_host(context), connect, options, progress)
        assert context.meter is not None
        context.meter.add(done.meter)
        manifest = done.manifest
        say(context, f"{name}: {_told(done, is_dry_run=dry_run)}")
        return {
            "dataset": name,
            **manifest_fields(manifest),
            "packs": done.packs,
            "pack_bytes": done.pack_bytes,
            "live_bytes": done.live_bytes,
            "gathered_bytes": done.gathered_bytes,
            "new_packs": done.new_packs,
            "dry_run": dry_run,
        }

    each_dataset(context, dataset, [] if dataset else dataset_names(store), run)


def _told(done: RepackedResult, *, is_dry_run: bool) -> str:
    from tools.cli_engine import size_text

    if not done.packs and not done.live_bytes:
        return "nothing to repack"
    found = f"{done.packs} packs ({size_text(done.pack_bytes)}) and {size_text(done.gathered_bytes)} that lay strewn"
    if is_dry_run:
        return f"{found} would be written anew, {size_text(done.live_bytes)} in all"
    return f"{found} became {done.new_packs} packs of {size_text(done.live_bytes)}"
