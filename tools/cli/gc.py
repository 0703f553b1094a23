"""Delete what nothing needs any more."""

from __future__ import annotations

import click

from tools.cli_context import Context, node_option, verb


@click.command()
@click.argument("dataset", required=False)
@click.option("--keep-last", type=click.IntRange(min=0), help="Keep this many of the newest seqs.")
@click.option("--keep-daily", type=click.IntRange(min=0), help="Keep the last seq of this many days.")
@click.option("--keep-weekly", type=click.IntRange(min=0), help="Keep the last seq of this many weeks.")
@click.option("--keep-monthly", type=click.IntRange(min=0), help="Keep the last seq of this many months.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted; write nothing.")
@node_option
@verb
def command(
    context: Context,
    dataset: str | None,
    keep_last: int | None,
    keep_daily: int | None,
    keep_weekly: int | None,
    keep_monthly: int | None,
    dry_run: bool,
) -> None:
    """Delete from the store what no kept seq of DATASET (by default of all) reaches.

    \b
    boxlink gc --dry-run
    boxlink gc covers --keep-last 10 --keep-daily 7 --keep-monthly 12

    Every seq is kept unless a --keep option, or [gc] in boxlink.toml, says otherwise; tagged seqs always are.
    Publishers and readers may be at work meanwhile: what they hold stays, and is said.
    """
    from concurrent.futures import ThreadPoolExecutor

    from synclib.core.names import dataset_root
    from synclib.core.retention import Retention
    from synclib.engine.collect import collect
    from synclib.lazy.dataset import Dataset
    from tools.cli_engine import costs_text, dataset_names, open_host, progress_bar, size_text

    given = (keep_last, keep_daily, keep_weekly, keep_monthly)
    configured = context.settings.gc if context.settings is not None else None
    if all(number is None for number in given) and configured is not None:
        given = (configured.keep_last, configured.keep_daily, configured.keep_weekly, configured.keep_monthly)
    retention = Retention(*(number or 0 for number in given))
    store = context.open_store()
    results: list[dict[str, object]] = []
    for name in [dataset] if dataset else dataset_names(store):
        opened = Dataset(store, dataset_root(name))
        with progress_bar(context, unit="count") as progress, ThreadPoolExecutor(16) as executor:
            done = collect(opened, open_host(context), retention, executor, progress, is_dry_run=dry_run)
        counts = done.found if dry_run else done.swept
        freed = sum(size for _, size in counts.values())
        results.append(
            {
                "dataset": name,
                "seq": done.seq,
                "digest": done.digest,
                "files": done.files,
                "bytes": done.plain_bytes,
                "seqs_kept": done.kept_seqs,
                "deleted": {kind: number for kind, (number, _) in counts.items()},
                "bytes_freed": freed,
                "held": done.held,
                "waiting_for": done.waiting_for,
                "dry_run": dry_run,
            }
        )
        if not context.is_json and not context.is_quiet:
            verb_text = "would delete" if dry_run else "deleted"
            what = ", ".join(f"{number} {kind}" for kind, (number, _) in counts.items() if number) or "nothing"
            click.echo(f"{name}: {len(done.kept_seqs)} seqs kept; {verb_text} {what} ({size_text(freed)})")
        if done.held:
            context.note(f"boxlink: {name}: {done.held} objects are held by {', '.join(done.waiting_for)}")
    context.emit(results[0] if dataset else {"datasets": results}, costs_text(context))
