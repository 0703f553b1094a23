"""Make an old seq's content the newest."""

from __future__ import annotations

import click

from tools.cli_context import Context, node_option, verb
from tools.cli_seq import SEQ, seq_of


@click.command()
@click.argument("dataset")
@click.argument("seq", type=SEQ)
@click.option("--dry-run", is_flag=True, help="Say what would change; write nothing.")
@node_option
@verb
def command(context: Context, dataset: str, seq: str, dry_run: bool) -> None:
    """Make a new seq of DATASET with the content of SEQ. Nothing is lost: what was newest stays in the history.

    \b
    boxlink revert covers 41
    """
    from synclib.engine.revert import revert
    from tools.cli_engine import costs_text, manifest_fields, open_dataset, open_host

    opened = open_dataset(context, dataset)
    wanted = seq_of(opened, seq)
    assert wanted is not None
    done = revert(opened, open_host(context), wanted, is_dry_run=dry_run)
    manifest = done.manifest
    result: dict[str, object] = {
        "dataset": dataset,
        **manifest_fields(manifest),
        "added": done.added,
        "changed": done.changed,
        "deleted": done.deleted,
        "is_new": done.is_new and not dry_run,
        "dry_run": dry_run,
    }
    changes = f"{done.added} added, {done.changed} changed, {done.deleted} deleted"
    what = "would change" if dry_run else "is at" if done.is_new else "has that content already: it stays at"
    place = "" if dry_run else f" seq {manifest.seq}, digest {manifest.digest[:16]}"
    context.emit(result, f"{dataset} {what}{place}: {changes}\n{costs_text(context)}")
