"""Bring a directory to a seq of a dataset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tools.cli_context import Context, node_option, verb
from tools.cli_seq import SEQ, seq_of

if TYPE_CHECKING:
    from synclib.engine.restore import RestoreResult


# So many paths of a kind are named on a terminal.
_TOLD_MAX = 20


@click.command()
@click.argument("dataset")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--seq", type=SEQ, help="This seq or tag; by default the newest.")
@click.option("--at", metavar="TIME", help="The seq that was the newest at this time, such as 2026-11-24T08:00:00Z.")
@click.option("--path", "sub", metavar="SUB", help="Only this file or folder.")
@click.option("--delete", is_flag=True, help="Remove files that the dataset does not have.")
@click.option(
    "--seed",
    "seeds",
    metavar="SEED",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A directory whose bytes are taken first: an older copy, or a dataset's in a file:// store. Repeatable.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done (-v, --json: to which paths); write nothing.")
@node_option
@verb
def command(
    context: Context,
    dataset: str,
    directory: Path,
    seq: str | None,
    at: str | None,
    sub: str | None,
    delete: bool,
    seeds: tuple[Path, ...],
    dry_run: bool,
) -> None:
    """Bring the directory DIR to the newest seq of DATASET, or to another.

    \b
    boxlink restore covers ./covers
    boxlink restore covers ./covers --seq 7
    boxlink restore covers ./covers --path 2026/11 --dry-run

    Only what is not here is fetched. Files that boxlink did not put there stay, unless --delete.
    """
    from synclib.engine.restore import RestoreOptions, restore_newest, restore_seq
    from synclib.errors import Invalid, Partial
    from tools.cli_engine import (
        connect_of,
        costs_text,
        open_dataset,
        open_host,
        parse_time,
        path_text,
        path_within,
        printable,
        progress_bar,
        size_text,
    )

    if seq is not None and at is not None:
        raise Invalid("--seq and --at exclude each other")
    opened = open_dataset(context, dataset)
    options = RestoreOptions(
        path_within("--path", sub), delete, dry_run, seeds=tuple(os.fsencode(seed) for seed in seeds)
    )
    with progress_bar(context) as progress:
        host, connect = open_host(context), connect_of(context)
        if seq is None and at is None:
            done = restore_newest(opened, connect, directory, host, options, progress)
        else:
            wanted = seq_of(opened, seq)
            manifest = opened.manifest_at(wanted) if at is None else opened.manifest_at_time(parse_time(at))
            done = restore_seq(opened, manifest, connect, directory, host, options, progress)
    assert context.meter is not None
    context.meter.add(done.meter)
    result: dict[str, object] = {
        "dataset": dataset,
        "path": sub or "",
        "seq": done.seq,
        "digest": done.digest,
        "files": done.files,
        "bytes": done.plain_bytes,
        "fetched": done.fetched_files,
        "fetched_bytes": done.fetched_bytes,
        "fetch_requests": done.fetch_requests,
        "deleted": done.deleted,
        "kept": [path_text(path) for path in done.kept],
        "left_out": done.left_out,
        "problems": {path_text(path): reason for path, reason in done.problems},
        "dry_run": dry_run,
    }
    if dry_run:
        result["plan"] = plan = plan_of(done)
        result["would_write"] = [path_text(path) for path in done.would_write]
        result["would_delete"] = [path_text(path) for path in done.would_delete]
        text = (
            f"would fetch {done.fetched_files} files: {done.fetch_requests} requests, "
            f"{size_text(done.fetched_bytes)}, ${plan['usd']:.6f}; would delete at most {done.deleted}\n"
            f"needs {size_text(done.need_bytes)} here, {size_text(done.free_bytes)} are free"
        )
    else:
        fetched = f"{done.fetched_files} files restored ({size_text(done.fetched_bytes)} fetched)"
        what = f"{sub} in {directory}" if sub else f"{directory}"
        text = f"{what} is at seq {done.seq}, digest {done.digest[:16]}: {fetched}, {done.deleted} deleted"
    if dry_run and context.is_verbose:
        text = "".join(f"{line}\n" for line in _paths(done)) + text
    context.emit(result, f"{text}\n{costs_text(context)}")
    for path in done.kept[:_TOLD_MAX]:
        context.note(
            f"boxlink: kept {printable(path)}: the dataset no longer has it, but it was changed or published here"
        )
    if len(done.kept) > _TOLD_MAX:
        context.note(f"boxlink: and {len(done.kept) - _TOLD_MAX} more were kept")
    if done.left_out:
        context.note(f"boxlink: not set, for only root can: {', '.join(done.left_out)}")
    for path, reason in done.problems[:_TOLD_MAX]:
        context.note(f"boxlink: {printable(path)}: {reason}")
    if len(done.problems) > _TOLD_MAX:
        context.note(f"boxlink: and {len(done.problems) - _TOLD_MAX} more could not be restored; --json names them all")
    if done.problems:
        raise click.exceptions.Exit(Partial.exit_code)


def _paths(done: RestoreResult) -> Iterator[str]:
    """Lines with the paths of a dry run, as far as it names them."""
    from tools.cli_engine import printable

    told = (("write", done.would_write, done.write_count), ("delete", done.would_delete, done.deleted))
    for what, paths, count in told:
        yield from (f"would {what} {printable(path)}" for path in paths)
        if count > len(paths):
            yield f"would {what} {count - len(paths)} more"


def plan_of(done: RestoreResult) -> dict[str, object]:
    """What a dry run found that the restore itself would cost, and need."""
    from synclib.store.meter import Meter

    meter = Meter()
    meter.count("get", requests=done.fetch_requests, down=done.fetched_bytes)
    return {
        "files": done.fetched_files,
        "writes": done.write_count,
        "requests": dict(meter.requests),
        "bytes": done.fetched_bytes,
        "usd": round(meter.usd, 9),
        "need_bytes": done.need_bytes,
        "free_bytes": done.free_bytes,
    }
