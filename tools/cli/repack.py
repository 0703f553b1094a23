"""Write packs of which little is used, or that are small, anew."""

from __future__ import annotations

import click

from tools.cli_context import Context, node_option, verb


@click.command()
@click.argument("dataset", required=False)
@click.option(
    "--budget",
    metavar="BYTES",
    type=click.IntRange(min=0),
    default=4 << 30,
    show_default=True,
    help="Move at most so many bytes.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be written anew; write nothing.")
@click.option("--dask", metavar="ADDRESS", help="Use the Dask cluster whose scheduler is here.")
@node_option
@verb
def command(context: Context, dataset: str | None, budget: int, dry_run: bool, dask: str | None) -> None:
    """Write packs of DATASET (by default of all) anew of which the newest seq uses little, or which are small.

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
        size_text,
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
        sizes = f"{size_text(done.pack_bytes)}, {size_text(done.live_bytes)} of them used"
        state = "would be written anew" if dry_run else f"became {done.new_packs}"
        say(context, f"{name}: {done.packs} packs ({sizes}) {state}" if done.packs else f"{name}: nothing to repack")
        return {
            "dataset": name,
            **manifest_fields(manifest),
            "packs": done.packs,
            "pack_bytes": done.pack_bytes,
            "live_bytes": done.live_bytes,
            "new_packs": done.new_packs,
            "dry_run": dry_run,
        }

    each_dataset(context, dataset, [] if dataset else dataset_names(store), run)
