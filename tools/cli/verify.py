"""Check that datasets are whole: their structure, or every byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tools.cli_context import Context, shown, verb
from tools.cli_seq import SEQ, seq_of

if TYPE_CHECKING:
    from pathlib import Path

    from synclib.lazy.dataset import Dataset

_JOURNAL_AGE_S = 24 * 3600


@click.command()
@click.argument("dataset", required=False)
@click.option("--seq", type=SEQ, help="This seq or tag; by default the newest.")
@click.option("--all", "is_all", is_flag=True, help="What any kept seq reaches, not only one.")
@click.option("--data", "is_data", is_flag=True, help="Read and hash every byte.")
@click.option("--node", "is_node", is_flag=True, help="What this node has cached of mounted datasets, instead.")
@click.option("--dask", metavar="ADDRESS", help="Use the Dask cluster whose scheduler is here.")
@verb
def command(
    context: Context,
    dataset: str | None,
    seq: str | None,
    is_all: bool,
    is_data: bool,
    is_node: bool,
    dask: str | None,
) -> None:
    """Check that DATASET (by default each) is whole: its structure, or with --data every byte.

    \b
    boxlink verify covers
    boxlink verify --all --data
    boxlink verify --node

    Exit code 20: something is damaged, and named. A run that is broken off goes on where it was. With --node what is
    damaged is forgotten too, and so fetched again when it is read.
    """
    if is_node:
        from tools.verify_node import verify_node

        verify_node(context, dataset)
        return
    from synclib.core.names import dataset_root
    from synclib.engine.verify import VerifyOptions, verify
    from synclib.errors import Corrupt
    from synclib.lazy.dataset import Dataset
    from tools.cli_engine import (
        connect_of,
        dataset_names,
        each_dataset,
        executor_of,
        progress_bar,
        seqs_text,
        size_text,
    )

    store, connect = context.open_store(), connect_of(context)
    start = executor_of(context, "synclib.engine.verify_job", dask)

    def run(name: str) -> dict[str, object]:
        opened = Dataset(store, dataset_root(name))
        options = VerifyOptions(is_data, start, _journal(context, opened, is_data=is_data), is_all)
        with progress_bar(context) as progress:
            done = verify(opened, opened.manifest_at(seq_of(opened, seq)), connect, options, progress)
        assert context.meter is not None
        context.meter.add(done.meter)
        if done.passed_over:
            context.note(f"boxlink: {name}: {done.passed_over} packs were verified before it was broken off")
        if not context.is_json and (done.damage or not context.is_quiet):
            state = f"{len(done.damage)} damaged objects" if done.damage else "whole"
            seqs = f"seqs {seqs_text(done.seqs)}" if is_all else f"seq {done.seq}"
            click.echo(
                f"{name} {seqs}: {state} ({done.runs} runs, {done.packs} packs, {done.attachments} attachments; "
                f"{size_text(done.read_bytes)} read)"
            )
            for key, message in done.damage:
                click.echo(shown(f"  {key}: {message}"))
        return {
            "dataset": name,
            "seq": done.seq,
            "digest": done.digest,
            "files": done.files,
            "bytes": done.plain_bytes,
            "seqs": done.seqs,
            "runs": done.runs,
            "packs": done.packs,
            "attachments": done.attachments,
            "passed_over": done.passed_over,
            "bytes_read": done.read_bytes,
            "damage": [{"key": key, "message": message} for key, message in done.damage],
            "exit_code": Corrupt.exit_code if done.damage else 0,
        }

    each_dataset(context, dataset, [] if dataset else dataset_names(store), run)


def _journal(context: Context, dataset: Dataset, *, is_data: bool) -> Path:
    """Where the progress of verifying a dataset is noted; what is older than a day is begun anew."""
    import time

    from blake3 import blake3

    from tools.cli_engine import open_host

    directory = open_host(context).state / "verify"
    name = blake3(f"{dataset.store.url}\0{dataset.root}".encode()).hexdigest(16)
    path = directory / f"{name}-{'data' if is_data else 'structure'}"
    if path.exists() and time.time() - path.stat().st_mtime > _JOURNAL_AGE_S:
        path.unlink()
    return path
