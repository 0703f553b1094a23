"""Write a file of a dataset to standard output without restoring it."""

from __future__ import annotations

import sys

import click

from tools.cli_context import Context, verb
from tools.cli_seq import SEQ, seq_of


@click.command()
@click.argument("dataset")
@click.argument("path")
@click.option("--seq", type=SEQ, help="At this seq or tag; by default the newest.")
@verb
def command(context: Context, dataset: str, path: str, seq: str | None) -> None:
    """Write a file of DATASET to standard output without restoring it; its bytes are verified.

    \b
    boxlink cat covers 2026/11/9780000000001.jpg > cover.jpg
    """
    from synclib.core.names import dataset_root
    from synclib.errors import Invalid
    from synclib.lazy.dataset import Dataset, check_prefix
    from synclib.lazy.stream_file import stream_file
    from tools.cli_view import opened_view

    if context.is_json:
        raise Invalid("cat writes a file's bytes: it has no --json", hint="boxlink ls DATASET PATH --json")
    if sys.stdout is None:
        raise Invalid("standard output is closed", hint="boxlink cat DATASET PATH > FILE")
    out = sys.stdout.buffer
    opened = Dataset(context.open_store(), dataset_root(dataset))
    with opened_view(context, opened, seq_of(opened, seq)) as view:
        for piece in stream_file(view.open(check_prefix(path))):
            out.write(piece)
    out.flush()
