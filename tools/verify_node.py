"""`boxlink verify --node`: read and hash what this node has cached of datasets that it mounts."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from synclib.core.entry import ADDRESS_UNIT
from synclib.core.names import dataset_root
from synclib.disk.blob_cache import BlobCache
from synclib.disk.faults import disk_errors
from synclib.engine.cache_work import cached_dataset
from synclib.errors import BoxlinkError, Corrupt
from synclib.lazy.blob import Extents
from synclib.lazy.maps import file_map, local_map
from synclib.lazy.scrub import ScrubCounts, scrub
from tools.cli_context import Context
from tools.cli_engine import open_host, progress_bar, say, size_text


def verify_node(context: Context, dataset: str | None) -> None:
    """Every cache of this node, or that of one dataset; what is damaged is forgotten. Exit code 20 where something
    was."""
    rows: list[dict[str, object]] = []
    damaged = 0
    for directory in sorted(open_host(context).cache.glob("*/lazy")):
        store, root = cached_dataset(directory)
        if not (directory / "blob").exists() or (dataset is not None and root != dataset_root(dataset)):
            continue
        done = _verify(context, directory)
        damaged += done.damaged
        name = root.partition("/")[2] or directory.parent.name
        rows.append(
            {
                "dataset": name,
                "store": store,
                "chunks": done.chunks,
                "bytes": done.bytes,
                "damaged": done.damaged,
            }
        )
        state = f"{done.damaged} damaged chunks, forgotten" if done.damaged else "whole"
        say(context, f"{name}: {state} ({done.chunks} chunks, {size_text(done.bytes)})")
    context.emit({"node": context.node, "caches": rows})
    if damaged:
        raise click.exceptions.Exit(Corrupt.exit_code)


def _verify(context: Context, directory: Path) -> ScrubCounts:
    """By the maps of all seqs that are known here. What no map has cannot be told, and is never handed out."""
    units = (directory / "blob").stat().st_size // ADDRESS_UNIT
    with progress_bar(context) as progress, contextlib.ExitStack() as stack, disk_errors():
        cache = BlobCache(directory, units)
        stack.callback(cache.close)
        maps: list[Extents] = []
        for path in sorted([*directory.glob("*.map"), *directory.glob("*.map-object")]):
            try:
                read = local_map if path.suffix == ".map-object" else file_map
                maps.append(read(stack.enter_context(path.open("rb"))))
            except BoxlinkError as error:
                context.note(f"boxlink: {path}: {error.message}: what it has is not looked at")
        whole = cache.held_bytes()
        if whole and not maps:
            context.note(f"boxlink: {directory}: no map is here, for it was mounted as a tree alone: nothing is hashed")

        def show(counts: ScrubCounts) -> bool:
            progress("hashed", counts.bytes, max(whole, counts.bytes))
            return True

        return scrub(cache, maps, units, show)
