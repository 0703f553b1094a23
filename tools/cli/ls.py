"""List a folder of a dataset without restoring it."""

from __future__ import annotations

import click

from tools.cli_context import Context, verb


@click.command()
@click.argument("dataset")
@click.argument("path", default="")
@click.option("--seq", type=click.IntRange(min=1), help="At this seq; by default the newest.")
@click.option("-r", "--recursive", is_flag=True, help="Everything below.")
@verb
def command(context: Context, dataset: str, path: str, seq: int | None, recursive: bool) -> None:
    """List a folder of DATASET at a seq without restoring it.

    \b
    boxlink ls covers
    boxlink ls covers 2026/11 --seq 7
    """
    import itertools
    import stat

    from synclib.core.entry import Kind
    from synclib.lazy.dataset import check_prefix
    from tools.cli_engine import open_dataset, path_text, printable, time_text
    from tools.cli_view import open_view

    opened = open_dataset(context, dataset)
    view = open_view(opened, seq)
    folder = check_prefix(path)
    listed = view.walk(folder) if recursive else view.listdir(folder)
    if folder and view.stat(folder).kind != Kind.DIRECTORY:
        listed = iter([view.stat(folder)])
    rows: list[dict[str, object]] = []
    kinds = {Kind.FILE: stat.S_IFREG, Kind.DIRECTORY: stat.S_IFDIR, Kind.SYMLINK: stat.S_IFLNK}
    for entry in itertools.chain(listed):
        name = entry.path if recursive else entry.name
        if context.is_json:
            row: dict[str, object] = {
                "path": path_text(entry.path),
                "kind": Kind(entry.kind).name.lower(),
                "mode": f"{entry.mode:04o}",
                "size": entry.size,
                "mtime_ns": entry.mtime_ns,
            }
            rows.append(row | ({"target": path_text(entry.target)} if entry.target else {}))
            continue
        target = f" -> {printable(entry.target)}" if entry.target else ""
        mode = stat.filemode(kinds[Kind(entry.kind)] | entry.mode)
        when = time_text(entry.mtime_ns) if entry.mtime_ns else "-" * 20
        click.echo(f"{mode} {entry.size:>12} {when} {printable(name)}{target}")
    if context.is_json:
        whole: dict[str, object] = {"dataset": dataset, "seq": view.seq, "digest": view.digest}
        context.emit({**whole, "files": view.file_count, "bytes": view.plain_bytes, "entries": rows})
