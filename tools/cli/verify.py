"""Check that datasets are whole: their structure, or every byte."""

from __future__ import annotations

import click

from tools.cli_context import Context, shown, verb


@click.command()
@click.argument("dataset", required=False)
@click.option("--seq", type=click.IntRange(min=1), help="This seq; by default the newest.")
@click.option("--data", "is_data", is_flag=True, help="Read and hash every byte.")
@verb
def command(context: Context, dataset: str | None, seq: int | None, is_data: bool) -> None:
    """Check that DATASET (by default all) is whole: its structure, or with --data every byte.

    \b
    boxlink verify covers
    boxlink verify --data

    Exit code 20: something is damaged, and named.
    """
    from synclib.core.names import dataset_root
    from synclib.engine.verify import verify
    from synclib.errors import Corrupt
    from synclib.lazy.dataset import Dataset
    from tools.cli_engine import costs_text, dataset_names, progress_bar

    store = context.open_store()
    names = [dataset] if dataset else dataset_names(store)
    results: list[dict[str, object]] = []
    damaged = 0
    for name in names:
        opened = Dataset(store, dataset_root(name))
        with progress_bar(context, unit="count") as progress:
            done = verify(opened, opened.manifest_at(seq), is_data=is_data, progress=progress)
        damaged += len(done.damage)
        results.append(
            {
                "dataset": name,
                "seq": done.seq,
                "digest": done.digest,
                "files": done.files,
                "bytes": done.plain_bytes,
                "runs": done.runs,
                "packs": done.packs,
                "bytes_read": done.read_bytes,
                "damage": [{"key": key, "message": message} for key, message in done.damage],
            }
        )
        if not context.is_json and (done.damage or not context.is_quiet):
            state = f"{len(done.damage)} damaged objects" if done.damage else "whole"
            click.echo(f"{name} seq {done.seq}: {state} ({done.runs} runs, {done.packs} packs)")
            for key, message in done.damage:
                click.echo(shown(f"  {key}: {message}"))
    result: dict[str, object] = results[0] if dataset else {"datasets": results}
    context.emit(result, costs_text(context))
    if damaged:
        raise click.exceptions.Exit(Corrupt.exit_code)
