"""Carry datasets with their history to another store."""

from __future__ import annotations

import click

from tools.cli_context import Context, node_option, verb


@click.command()
@click.argument("target", metavar="STORE")
@click.argument("dataset", required=False)
@click.option("--dry-run", is_flag=True, help="Say what would be copied; write nothing.")
@node_option
@verb
def command(context: Context, target: str, dataset: str | None, dry_run: bool) -> None:
    """Copy DATASET (by default all) with its history into another store, which is usable at every moment.

    \b
    boxlink replicate s3://other-bucket/boxlink covers
    boxlink replicate file:///mnt/copy

    What is there already is not copied again; a run that was broken off goes on. Nodes can follow either store. An
    older seq of which an object is lost is left out and named (exit code 3); what the newest needs has to be there.
    """
    from concurrent.futures import ThreadPoolExecutor

    from synclib.core.names import dataset_root
    from synclib.engine.replicate import replicate
    from synclib.errors import Invalid, Partial
    from synclib.lazy.dataset import Dataset
    from synclib.store.open import open_store
    from tools.cli_engine import dataset_names, each_dataset, manifest_fields, open_host, progress_bar, say, size_text
    from tools.store_conditions import check_conditions

    source = context.open_store()
    copy, meter = open_store(target, context.s3_settings())
    if copy.url == source.url:
        raise Invalid("that is the store itself", hint="name another store to replicate into")

    def run(name: str) -> dict[str, object]:
        here, there = (Dataset(store, dataset_root(name)) for store in (source, copy))
        if not dry_run:
            check_conditions(open_host(context), there, context.s3_settings()["endpoint"])
        with progress_bar(context) as progress, ThreadPoolExecutor(4) as executor:
            done = replicate(here, there, open_host(context), executor, progress, is_dry_run=dry_run)
        assert context.meter is not None
        context.meter.add(meter.take())
        size = sum(length for _, length in done.copied.values())
        manifest = done.manifest
        what = ", ".join(f"{number} {kind}" for kind, (number, _) in done.copied.items() if number) or "nothing new"
        place = f"is at seq {manifest.seq} there, digest {manifest.digest[:16]}"
        say(context, f"{name} {'would copy' if dry_run else f'{place}; copied'} {what} ({size_text(size)})")
        for left in done.left_out:
            context.note(f"boxlink: {name}: seq {left.seq} left out: {left.why}")
        return {
            "dataset": name,
            **manifest_fields(manifest),
            "copied": {kind: number for kind, (number, _) in done.copied.items()},
            "bytes_copied": size,
            "tags": done.tags,
            "is_new": done.is_new,
            "left_out": [{"seq": left.seq, "why": left.why} for left in done.left_out],
            "dry_run": dry_run,
            "exit_code": Partial.exit_code if any(left.is_damage for left in done.left_out) else 0,
        }

    each_dataset(context, dataset, [] if dataset else dataset_names(source), run)
