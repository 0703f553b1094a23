"""List a folder of a dataset without restoring it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tools.cli_context import Context, verb

if TYPE_CHECKING:
    from synclib.lazy.view import View


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
    from synclib.lazy.dataset import check_prefix
    from tools.cli_engine import open_dataset
    from tools.cli_view import opened_view

    with opened_view(context, open_dataset(context, dataset), seq) as view:
        rows = _show(context, view, check_prefix(path), is_recursive=recursive)
    if context.is_json:
        whole: dict[str, object] = {"dataset": dataset, "seq": view.seq, "digest": view.digest}
        context.emit({**whole, "files": view.file_count, "bytes": view.plain_bytes, "entries": rows})


def _show(context: Context, view: View, folder: bytes, *, is_recursive: bool) -> list[dict[str, object]]:
    """Print what is in a folder; with ``--json`` return it."""
    import itertools
    import stat

    from synclib.core.entry import Kind
    from tools.cli_engine import path_text, printable, time_text

    listed = view.walk(folder) if is_recursive else view.listdir(folder)
    if folder and view.stat(folder).kind != Kind.DIRECTORY:
        listed = iter([view.stat(folder)])
    rows: list[dict[str, object]] = []
    kinds = {Kind.FILE: stat.S_IFREG, Kind.DIRECTORY: stat.S_IFDIR, Kind.SYMLINK: stat.S_IFLNK}
    for entry in itertools.chain(listed):
        name = entry.path if is_recursive else entry.name
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
    return rows
