"""Make a new seq of a dataset from a directory."""

from __future__ import annotations

import os

import click

from tools.cli_context import Context, node_option, verb


@click.command()
@click.argument("dataset")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=bytes))
@click.option("--prefix", metavar="SUB", help="Publish into this folder of the dataset.")
@click.option("--mirror", is_flag=True, help="Make the dataset exactly DIR, also where others changed it meanwhile.")
@click.option("--allow-delete", is_flag=True, help="Allow it to delete most of the dataset.")
@click.option("--dry-run", is_flag=True, help="Say what would change; write nothing.")
@click.option("--owners", is_flag=True, help="Also record who owns each path.")
@click.option("--xattrs", is_flag=True, help="Also record extended attributes, ACLs among them.")
@node_option
@verb
def command(
    context: Context,
    dataset: str,
    directory: bytes,
    prefix: str | None,
    mirror: bool,
    allow_delete: bool,
    dry_run: bool,
    owners: bool,
    xattrs: bool,
) -> None:
    """Make a new seq of DATASET from the directory DIR; none when nothing changed.

    \b
    boxlink publish covers ./covers
    boxlink publish covers ./new --prefix 2026/11

    What is published is the difference between DIR and what DIR was when it was last published or restored, so files
    that others published since are kept. Exit code 3: some files could not be read, or not all of a file can be kept;
    the rest is published.
    """
    from synclib.engine.publish import PublishOptions, publish
    from synclib.errors import Partial
    from tools.cli_engine import (
        connect_of,
        costs_text,
        open_dataset,
        open_host,
        path_text,
        path_within,
        printable,
        progress_bar,
    )
    from tools.store_conditions import check_conditions

    options = PublishOptions(path_within("--prefix", prefix), mirror, allow_delete, dry_run, owners, xattrs)
    opened = open_dataset(context, dataset)
    if not dry_run:
        check_conditions(open_host(context), opened, context.s3_settings()["endpoint"])
    untidied = ""
    with progress_bar(context) as progress:
        done = publish(opened, connect_of(context), os.path.abspath(directory), open_host(context), options, progress)
        if done.is_new and done.head is not None:
            from synclib.engine.maintain import NOT_DONE, maintain

            try:
                untidied = maintain(opened, open_host(context), progress, done.head)
            except KeyboardInterrupt:  # the seq is committed whatever ends this
                untidied = f"{NOT_DONE}: it was interrupted"
    assert context.meter is not None
    context.meter.add(done.meter)
    result: dict[str, object] = {
        "dataset": dataset,
        "seq": done.seq,
        "digest": done.digest,
        "files": done.files,
        "bytes": done.plain_bytes,
        "added": done.added,
        "changed": done.changed,
        "deleted": done.deleted,
        "skipped": [path_text(path) for path, _ in done.skipped],
        "reasons": {path_text(path): reason for path, reason in done.skipped},
        "notes": {path_text(path): note for path, note in done.notes},
        "maintenance": untidied,
        "overridden": [path_text(path) for path in done.overridden],
        "bytes_read": done.read_bytes,
        "is_new": done.is_new,
        "is_whole": done.is_whole,
        "dry_run": dry_run,
    }
    if not done.seq and not dry_run:
        context.note(f"boxlink: {dataset} is still empty: there is nothing in it to publish")
    what = "would be" if dry_run else "is at" if done.is_new else "is still at"
    place = "" if dry_run else f" seq {done.seq}, digest {done.digest[:16]}"
    changes = f"{done.added} added, {done.changed} changed, {done.deleted} deleted"
    context.emit(result, f"{dataset} {what}{place}: {changes}; {done.files} files\n{costs_text(context)}")
    if done.seq and not dry_run and not done.is_whole and not done.skipped:
        context.note(
            f"boxlink: {dataset} has others' changes that are not in this directory: "
            "restore brings them, --mirror takes them back"
        )
    if untidied:
        context.note(f"boxlink: {untidied}")
    for path in done.overridden[:20]:
        context.note(f"boxlink: {printable(path)}: another publisher had changed it too; this publish won")
    if len(done.overridden) > 20:
        context.note(f"boxlink: and {len(done.overridden) - 20} more that this publish won")
    for path, reason in done.skipped[:20]:
        context.note(f"boxlink: skipped {printable(path)}: {reason}")
    if len(done.skipped) > 20:
        context.note(f"boxlink: and {len(done.skipped) - 20} more were skipped")
    for path, note in done.notes[:20]:
        context.note(f"boxlink: {printable(path)}: {note}")
    if len(done.notes) > 20:
        context.note(f"boxlink: and {len(done.notes) - 20} more of which not all could be kept")
    if done.skipped or done.notes:
        raise click.exceptions.Exit(Partial.exit_code)
