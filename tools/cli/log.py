"""Show a dataset's chain and its seqs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from tools.cli_context import Context, shown_in_line, verb

if TYPE_CHECKING:
    from synclib.core.manifest import Manifest


@click.command()
@click.argument("dataset")
@click.option("-n", "--last", type=click.IntRange(min=0), default=20, show_default=True, help="Show so many seqs.")
@verb
def command(context: Context, dataset: str, last: int) -> None:
    """Show the chain that reaches the newest seq of DATASET, and the newest seqs that can be restored.

    \b
    boxlink log covers
    boxlink log covers -n 100
    """
    import time

    from synclib.engine.tags import tags
    from synclib.errors import Missing
    from tools.cli_engine import manifest_fields, open_dataset, size_text, time_text

    opened = open_dataset(context, dataset)
    head = opened.read_head()
    manifest, seqs = head.manifest, opened.seqs(head)
    names: dict[int, list[str]] = {}
    for name, tag in tags(opened).items():
        names.setdefault(tag.seq, []).append(name)
    shown: list[Manifest] = []
    for seq in seqs[max(0, len(seqs) - last) :]:
        # A collector may drop one that was kept a moment ago.
        with contextlib.suppress(Missing):
            shown.append(manifest if seq == manifest.seq else opened.manifest_at(seq))
    history = [
        {
            "seq": found.seq,
            "digest": found.digest,
            "published_at": time_text(found.published_at_ns),
            "publisher": found.publisher,
            "files": found.file_count,
            "bytes": found.plain_bytes,
            "tags": sorted(names.get(found.seq, [])),
        }
        for found in reversed(shown)
    ]
    chain = [
        {
            "level": run.level,
            "seq_first": run.seq_first,
            "seq_last": run.seq_last,
            "entries": run.entry_count,
            "tombstones": run.tombstone_count,
            "bytes": run.object_bytes,
            "created_at": time_text(run.created_at_ns),
        }
        for run in manifest.runs
    ]
    result: dict[str, object] = {
        "dataset": dataset,
        **manifest_fields(manifest),
        "published_at": time_text(manifest.published_at_ns),
        "publisher": manifest.publisher,
        "seqs": seqs,
        "history": history,
        "chain": chain,
    }
    lines = [
        f"{dataset} seq {manifest.seq}  digest {manifest.digest}",
        f"{manifest.file_count} files, {size_text(manifest.plain_bytes)}",
        f"published {time_text(manifest.published_at_ns)} by {shown_in_line(manifest.publisher)}",
        f"seqs kept: {seqs[0]}..{seqs[-1]} ({len(seqs)})",
        "",
        f"{'level':6} {'seqs':>15} {'entries':>10} {'bytes':>10}  age",
    ]
    for run in manifest.runs:
        age = max(0.0, time.time() - run.created_at_ns / 1e9)
        span = f"{run.seq_first}..{run.seq_last}"
        lines.append(f"{run.level:6} {span:>15} {run.entry_count:>10} {size_text(run.object_bytes):>10}  {_age(age)}")
    lines += ["", f"{'seq':>8} {'published':20} {'files':>10} {'bytes':>10}  by"]
    for found in reversed(shown):
        row = f"{found.seq:>8} {time_text(found.published_at_ns)} {found.file_count:>10}"
        tagged = "".join(f"  [{name}]" for name in sorted(names.get(found.seq, [])))
        lines.append(f"{row} {size_text(found.plain_bytes):>10}  {shown_in_line(found.publisher)}{tagged}")
    context.emit(result, "\n".join(lines))


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
