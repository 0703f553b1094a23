"""Merge the runs of a dataset's chain."""

from __future__ import annotations

import click

from tools.cli_context import Context, node_option, verb


@click.command()
@click.argument("dataset")
@click.option("--full", is_flag=True, help="Merge the whole chain into one snap.")
@click.option("--dry-run", is_flag=True, help="Say what would be merged next; write nothing.")
@node_option
@verb
def command(context: Context, dataset: str, full: bool, dry_run: bool) -> None:
    """Merge the runs of DATASET's chain that are due: diff1s into a diff2, diff2s into a diff3, all into a snap.

    \b
    boxlink compact covers

    Content and digest stay the same; packs are not touched, and every seq can still be restored. Then make the image
    and the map of the snap, from which nodes mount at once, unless there are some. A publish does both by itself when
    it costs little.
    """
    from synclib.engine.attach import attach
    from synclib.engine.compact import compact
    from tools.cli_engine import costs_text, manifest_fields, open_dataset, open_host, progress_bar, size_text

    opened = open_dataset(context, dataset)
    with progress_bar(context) as progress:
        done = compact(opened, open_host(context), progress, is_full=full, is_dry_run=dry_run)
        made = attach(opened, open_host(context), progress, is_dry_run=dry_run)
    manifest = made.manifest
    merges = [
        {
            "level": None if new is None else new.level,
            "seq_first": runs[0].seq_first,
            "seq_last": runs[-1].seq_last,
            "runs": len(runs),
            "bytes_in": sum(run.object_bytes for run in runs),
            "bytes_out": None if new is None else new.object_bytes,
        }
        for runs, new in done.merges
    ]
    result: dict[str, object] = {
        "dataset": dataset,
        **manifest_fields(manifest),
        "merges": merges,
        "runs": len(manifest.runs),
        "attachments": [{"kind": item.kind, "bytes": item.object_bytes} for item in made.attachments],
        "dry_run": dry_run,
    }
    lines = []
    for runs, new in done.merges:
        size = size_text(sum(run.object_bytes for run in runs))
        became = "would be merged" if new is None else f"became a {new.level} of {size_text(new.object_bytes)}"
        lines.append(f"seqs {runs[0].seq_first}..{runs[-1].seq_last}: {len(runs)} runs of {size} {became}")
    is_idle = not lines
    if made.run is not None:
        sizes = ", ".join(f"{item.kind} of {size_text(item.object_bytes)}" for item in made.attachments)
        lines.append(f"seqs 1..{made.run.seq_last}: " + (sizes or "image and map would be made"))
    lines.append(f"{dataset} seq {manifest.seq}: {len(manifest.runs)} runs" + (", nothing to merge" if is_idle else ""))
    context.emit(result, "\n".join([*lines, costs_text(context)]))
