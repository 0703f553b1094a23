"""Delete what nothing needs any more."""

from __future__ import annotations

import click

from tools.cli_context import Context, node_option, verb


@click.command()
@click.argument("dataset", required=False)
@click.option("--keep-last", type=click.IntRange(min=1), help="Keep this many of the newest seqs.")
@click.option("--keep-daily", type=click.IntRange(min=1), help="Keep the last seq of this many days.")
@click.option("--keep-weekly", type=click.IntRange(min=1), help="Keep the last seq of this many weeks.")
@click.option("--keep-monthly", type=click.IntRange(min=1), help="Keep the last seq of this many months.")
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

    Every seq is kept unless a --keep option, or else [gc] in boxlink.toml, says otherwise; tagged seqs always are.
    Publishers and readers may be at work meanwhile: what they hold stays, and is said, with when it may go.
    """
    from concurrent.futures import ThreadPoolExecutor

    from synclib.core.names import dataset_root
    from synclib.core.retention import Retention
    from synclib.engine.collect import collect
    from synclib.lazy.dataset import Dataset
    from tools.cli_engine import (
        dataset_names,
        each_dataset,
        open_host,
        progress_bar,
        say,
        seqs_text,
        size_text,
        time_text,
    )
    from tools.gc_text import reasons

    given = (keep_last, keep_daily, keep_weekly, keep_monthly)
    settings = context.settings.gc if context.settings is not None else None
    configured: tuple[int | None, ...] = (None,) * 4
    if settings is not None:
        configured = (settings.keep_last, settings.keep_daily, settings.keep_weekly, settings.keep_monthly)
    chosen = [said if said is not None else default for said, default in zip(given, configured, strict=True)]
    retention = Retention(*(number or 0 for number in chosen))
    store = context.open_store()

    def run(name: str) -> dict[str, object]:
        opened = Dataset(store, dataset_root(name))
        with progress_bar(context) as progress, ThreadPoolExecutor(16) as executor:
            done = collect(opened, open_host(context), retention, executor, progress, is_dry_run=dry_run)
        counts = done.found if dry_run else done.swept
        freed = sum(size for _, size in counts.values())
        what = ", ".join(f"{number} {kind}" for kind, (number, _) in counts.items() if number) or "nothing"
        verb_text = "would delete" if dry_run else "deleted"
        dropped = f", {seqs_text(done.dropped_seqs)} {'would go' if dry_run else 'gone'}" if done.dropped_seqs else ""
        seqs = f"seqs {seqs_text(done.kept_seqs)} kept{dropped}" if done.kept_seqs else "no seq"
        say(context, f"{name}: {seqs}; {verb_text} {what} ({size_text(freed)})")
        for line in reasons(done, is_dry_run=dry_run):
            context.note(f"boxlink: {name}: {line}")
        if done.sweeping:
            context.note(
                f"boxlink: {name}: {', '.join(done.sweeping)} collects too, or was killed while it did: until that is "
                "over, at most two days, no replication brings back what is deleted now"
            )
        return {
            "dataset": name,
            "seq": done.seq,
            "digest": done.digest,
            "files": done.files,
            "bytes": done.plain_bytes,
            "seqs_kept": done.kept_seqs,
            "seqs_dropped": done.dropped_seqs,
            "deleted": {kind: number for kind, (number, _) in counts.items()},
            "bytes_freed": freed,
            "kept_by": done.kept_by,
            "reached": done.reached,
            "held": done.held,
            "waiting_for": done.waiting_for,
            "next_step_at": time_text(done.next_step_ns) if done.next_step_ns else "",
            "sweeping": done.sweeping,
            "dry_run": dry_run,
        }

    each_dataset(context, dataset, [] if dataset else dataset_names(store, with_head=False), run)
