"""Show what differs between two seqs of a dataset."""

from __future__ import annotations

import click

from tools.cli_context import Context, verb
from tools.cli_seq import SEQ, seq_of


@click.command()
@click.argument("dataset")
@click.argument("first", metavar="SEQ", type=SEQ)
@click.argument("second", metavar="SEQ", type=SEQ)
@verb
def command(context: Context, dataset: str, first: str, second: str) -> None:
    """Show what differs between two seqs of DATASET: + added, ~ changed, - deleted.

    \b
    boxlink diff covers 6 7
    """
    from synclib.lazy.steady_changes import steady_changes
    from tools.cli_engine import manifest_fields, open_dataset, path_text, printable

    opened = open_dataset(context, dataset)
    manifests = [opened.manifest_at(seq_of(opened, seq)) for seq in (first, second)]
    found: dict[str, list[str]] = {"added": [], "changed": [], "deleted": []}
    for before, after in steady_changes(opened, *manifests):
        entry = after or before
        assert entry is not None
        kind = "added" if before is None else "deleted" if after is None else "changed"
        if context.is_json:
            found[kind].append(path_text(entry.path))
        else:
            click.echo(f"{ {'added': '+', 'changed': '~', 'deleted': '-'}[kind] } {printable(entry.path)}")
    if context.is_json:
        newest = manifests[1]
        context.emit(
            {
                "dataset": dataset,
                **manifest_fields(newest),
                **found,
            }
        )
