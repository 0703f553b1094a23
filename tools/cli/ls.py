"""List a folder of a dataset without restoring it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tools.cli_context import Context, verb
from tools.cli_seq import SEQ, seq_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from synclib.core.entry import Entry
    from synclib.lazy.view import View


@click.command()
@click.argument("dataset", required=False)
@click.argument("path", default="")
@click.option("--seq", type=SEQ, help="At this seq or tag; by default the newest.")
@click.option("-r", "--recursive", is_flag=True, help="Everything below.")
@verb
def command(context: Context, dataset: str | None, path: str, seq: str | None, recursive: bool) -> None:
    """List a folder of DATASET at a seq without restoring it; without DATASET, the datasets.

    \b
    boxlink ls
    boxlink ls covers
    boxlink ls covers 2026/11 --seq 7
    """
    from synclib.lazy.dataset import check_prefix
    from tools.cli_engine import dataset_names, open_dataset
    from tools.cli_view import opened_view

    if dataset is None:
        names = dataset_names(context.open_store())
        context.emit({"datasets": names}, "\n".join(names))
        return
    opened = open_dataset(context, dataset)
    with opened_view(context, opened, seq_of(opened, seq)) as view:
        rows = _show(context, view, check_prefix(path), is_recursive=recursive)
    if context.is_json:
        whole: dict[str, object] = {"dataset": dataset, "seq": view.seq, "digest": view.digest}
        context.emit({**whole, "files": view.file_count, "bytes": view.plain_bytes, "entries": rows})


def _show(context: Context, view: View, folder: bytes, *, is_recursive: bool) -> list[dict[str, object]]:
    """Print what is in a folder; with ``--json`` return it."""
    from synclib.core.entry import Kind
    from tools.cli_engine import path_text

    if folder and view.stat(folder).kind != Kind.DIRECTORY:
        listed = iter([view.stat(folder)])
    else:
        listed = view.walk(folder) if is_recursive else view.listdir(folder)
    if not context.is_json:
        _print(listed, is_recursive=is_recursive)
        return []
    rows: list[dict[str, object]] = []
    for entry in listed:
        row: dict[str, object] = {
            "path": path_text(entry.path),
            "kind": Kind(entry.kind).name.lower(),
            "mode": f"{entry.mode:04o}",
            "size": entry.size,
            "mtime_ns": entry.mtime_ns,
        }
        rows.append(row | ({"target": path_text(entry.target)} if entry.target else {}))
    return rows


def _print(listed: Iterator[Entry], *, is_recursive: bool) -> None:
    """One line an entry, some hundred at a time: a listing may have millions."""
    import functools
    import itertools
    import stat

    from synclib.core.entry import Kind
    from tools.cli_engine import printable, time_text

    kinds = {Kind.FILE: stat.S_IFREG, Kind.DIRECTORY: stat.S_IFDIR, Kind.SYMLINK: stat.S_IFLNK}
    mode_text = functools.lru_cache(1000)(lambda kind, mode: stat.filemode(kinds[Kind(kind)] | mode))
    when_text = functools.lru_cache(1000)(lambda second: time_text(second * 1_000_000_000))

    def line(entry: Entry) -> str:
        when = when_text(entry.mtime_ns // 1_000_000_000) if entry.mtime_ns else "-" * 20
        target = f" -> {printable(entry.target)}" if entry.target else ""
        name = printable(entry.path if is_recursive else entry.name)
        return f"{mode_text(entry.kind, entry.mode)} {entry.size:>12} {when} {name}{target}"

    while lines := [line(entry) for entry in itertools.islice(listed, 500)]:
        click.echo("\n".join(lines))
