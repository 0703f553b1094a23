"""Snapshots of a dataset as block volumes: make them, look at them, make volumes of them, let them go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tools.cli_context import Context, node_option, shown_in_line, verb
from tools.cli_snapshot import Age, driver_options

if TYPE_CHECKING:
    from synclib.engine.snapshots import Known


@click.group()
def command() -> None:
    """Block-volume snapshots of a dataset: create, ls, show, volume, prune (docs/snapshots.md)."""


@command.command()
@click.argument("dataset")
@click.option("--direct", is_flag=True, help="From the store alone, block by block (the default).")
@click.option("--volume", "volume_id", metavar="ID", help="By way of this volume, which is attached here.")
@click.option("--dry-run", is_flag=True, help="Say what would be put; make nothing.")
@driver_options
@node_option
@verb
def create(
    context: Context,
    dataset: str,
    direct: bool,
    volume_id: str | None,
    dry_run: bool,
    driver_name: str | None,
    pool: Path | None,
) -> None:
    """Make a snapshot of the newest seq of DATASET, upon the newest snapshot that there is.

    \b
    boxlink snapshot create covers
    boxlink snapshot create covers --volume vol-0123456789abcdef0

    Only blocks that changed are put. Where the newest snapshot is of the newest seq nothing is made. One that was
    killed goes on when it is run again.
    """
    from synclib.engine.snapshot_direct import create_direct
    from synclib.engine.snapshot_volume import create_from_volume
    from synclib.errors import Invalid
    from tools.cli_engine import open_dataset, open_host, progress_bar, size_text
    from tools.cli_snapshot import PUT_USD_THOUSAND, note_copies, open_driver, this_machine

    if direct and volume_id is not None:
        raise Invalid("--direct needs no volume", hint="leave one of --direct and --volume out")
    opened, host = open_dataset(context, dataset), open_host(context)
    driver = open_driver(context, host, driver_name, pool)
    with progress_bar(context) as progress:
        if volume_id is None:
            done = create_direct(opened, host, driver, progress, is_dry_run=dry_run)
        else:
            node, _ = this_machine(host, driver)
            done = create_from_volume(opened, host, driver, volume_id, node, progress, is_dry_run=dry_run)
    is_paid = driver.name == "ebs" and volume_id is None
    result: dict[str, object] = {
        "dataset": dataset,
        "snapshot": done.snapshot_id,
        "seq": done.seq,
        "digest": done.digest,
        "parent": done.parent_id,
        "parent_seq": done.parent_seq,
        "new": done.is_new,
        "blocks": done.blocks,
        "zero_blocks": done.zero_blocks,
        "put_blocks": done.put_blocks,
        "put_bytes": done.put_blocks << 19,
        "size_gib": done.size_gib,
        "why_full": done.why_full,
        "refused": done.refused,
        "abandoned": done.abandoned,
        "put_usd": round(done.put_blocks * PUT_USD_THOUSAND / 1000, 6) if is_paid else 0,
        "why_copies": driver.why_copies,
    }
    size = size_text(done.blocks << 19)
    upon = f"upon {done.parent_id} (seq {done.parent_seq})" if done.parent_id else f"whole: {done.why_full}"
    if dry_run and done.blocks:
        text = f"{dataset} seq {done.seq}: {done.blocks:,} blocks ({size}) would be put, {upon}"
    elif done.is_new:
        text = f"{done.snapshot_id}: {dataset} seq {done.seq}, {done.blocks:,} blocks ({size}), {upon}"
    else:
        text = f"{done.snapshot_id} is of {dataset} seq {done.seq} already"
    context.emit(result, text)
    for name, why in done.refused.items():
        context.note(f"boxlink: snapshot {name} is refused: {why}")
    if done.abandoned:
        context.note(f"boxlink: {done.abandoned}, which was begun of an older seq, is deleted")
    if done.is_new:
        note_copies(context, driver)


@command.command()
@click.argument("dataset", required=False)
@driver_options
@node_option
@verb
def ls(context: Context, dataset: str | None, driver_name: str | None, pool: Path | None) -> None:
    """List the snapshots of DATASET (by default of all), the newest first."""
    from synclib.engine.snapshots import find, find_all
    from tools.cli_engine import open_host
    from tools.cli_snapshot import open_driver

    host, store = open_host(context), context.open_store()
    driver = open_driver(context, host, driver_name, pool)
    rows: list[dict[str, object]] = []
    refused: dict[str, str] = {}
    all_found = find_all(driver, store.url) if dataset is None else {dataset: find(driver, store.url, dataset)}
    for found in all_found.values():
        rows += [_row(known) for known in found.snapshots]
        refused |= found.refused
    lines = [
        f"{row['snapshot']}  {row['dataset']}  seq {row['seq']}  {row['size_gib']} GiB  {row['at']}  {row['state']}"
        f"{'  in use' if row['in_use'] else ''}"
        for row in rows
    ]
    context.emit({"snapshots": rows, "refused": refused}, "\n".join(lines) or "there are none")
    for name, why in refused.items():
        context.note(f"boxlink: snapshot {name} is refused: {why}")


def _row(known: Known) -> dict[str, object]:
    from tools.cli_engine import time_text

    snapshot, tags = known.snapshot, known.tags
    return {
        "snapshot": snapshot.id,
        "dataset": tags.dataset,
        "seq": tags.seq,
        "digest": tags.digest,
        "size_gib": snapshot.size_gib,
        "at": time_text(snapshot.started_at_ns),
        "state": "complete" if known.is_complete else f"not complete ({snapshot.state}, {snapshot.progress} %)",
        "complete": known.is_complete,
        "parent": snapshot.parent_id,
        "volume": snapshot.volume_id,
        "in_use": tags.in_use,
    }


@command.command()
@click.argument("snapshot_id", metavar="ID")
@driver_options
@node_option
@verb
def show(context: Context, snapshot_id: str, driver_name: str | None, pool: Path | None) -> None:
    """Say what the snapshot ID says of itself, and what its own header holds."""
    from synclib.core.snapshot_tags import parse_tags
    from synclib.core.volume_layout import decode_header
    from synclib.engine.snapshots import Known
    from synclib.errors import Corrupt, Missing, Unsupported
    from tools.cli_engine import open_host, size_text
    from tools.cli_snapshot import open_driver

    driver = open_driver(context, open_host(context), driver_name, pool)
    found = driver.snapshots([snapshot_id])
    if not found:
        raise Missing(f"there is no snapshot {snapshot_id}", hint="boxlink snapshot ls")
    known = Known(found[0], parse_tags(found[0].tags))
    result = _row(known)
    lines = [shown_in_line(f"{name:9} {value}") for name, value in result.items()]
    if known.is_complete:
        try:
            header = decode_header(driver.blocks().get(snapshot_id, 0))
            slots = [
                None
                if record is None
                else {
                    "root": record.root,
                    "seq": record.seq,
                    "digest": record.digest,
                    "generation": record.generation,
                    "image_bytes": record.image_bytes,
                    "map_bytes": record.map_bytes,
                    "address_end": record.address_end,
                }
                for record in header.records
            ]
            result |= {"slots": slots, "slot_bytes": header.layout.slot_bytes, "header": ""}
            for letter, record in zip("AB", header.records, strict=True):
                holds = "empty" if record is None else f"{record.root} seq {record.seq}, {size_text(record.used_bytes)}"
                lines.append(f"slot {letter}    {holds}")
        except (Corrupt, Unsupported) as error:
            result |= {"slots": [], "slot_bytes": 0, "header": error.message}
            lines.append(f"header    {error.message}")
    context.emit(result, "\n".join(lines))


@command.command()
@click.argument("snapshot_id", metavar="ID")
@click.option("--zone", default="", metavar="Z", help="Where it can be attached.")
@click.option("--yes", is_flag=True, help="Pay for it without being asked.")
@driver_options
@node_option
@verb
def volume(
    context: Context, snapshot_id: str, zone: str, yes: bool, driver_name: str | None, pool: Path | None
) -> None:
    """Make this node's volume of the snapshot ID; the same again makes no other one."""
    from synclib.core.snapshot_tags import parse_tags
    from synclib.engine.node_volume import make_volume
    from synclib.engine.snapshots import Known
    from synclib.errors import Conflict, Invalid, Missing
    from tools.cli_engine import open_host
    from tools.cli_snapshot import VOLUME_USD_GIB_MONTH, check_price, note_copies, open_driver

    host = open_host(context)
    driver = open_driver(context, host, driver_name, pool)
    found = driver.snapshots([snapshot_id])
    if not found:
        raise Missing(f"there is no snapshot {snapshot_id}", hint="boxlink snapshot ls")
    known = Known(found[0], parse_tags(found[0].tags))
    if not known.is_complete:
        raise Conflict(
            f"snapshot {snapshot_id} is not complete", hint=f"boxlink snapshot create {known.tags.dataset} finishes it"
        )
    usd = 0.0
    if driver.name == "ebs":
        if not zone:
            raise Invalid("in which zone?", hint="--zone eu-west-1a")
        usd = known.snapshot.size_gib * VOLUME_USD_GIB_MONTH
        check_price(context, f"a gp3 volume of {known.snapshot.size_gib} GiB costs about ${usd:.2f} a month", yes)
    made = make_volume(driver, host, known.snapshot, known.tags, zone or "local", host.node)
    result: dict[str, object] = {
        "volume": made.id,
        "snapshot": snapshot_id,
        "zone": made.zone,
        "size_gib": made.size_gib,
        "state": made.state,
        "lazy": made.is_lazy,
        "usd_month": round(usd, 2),
        "why_copies": driver.why_copies,
    }
    how = "" if made.is_lazy else ", copied whole"
    context.emit(result, f"{made.id}: {made.size_gib} GiB of {snapshot_id} in {made.zone}{how}")
    note_copies(context, driver)


@command.command()
@click.argument("dataset", required=False)
@click.option("--keep-last", type=click.IntRange(min=1), help="Keep this many of the newest complete ones.")
@click.option("--older-than", type=Age(), metavar="AGE", help="Only those that are older: 12h, 30d, 8w.")
@click.option("--dry-run", is_flag=True, help="Say which would go; delete none.")
@driver_options
@node_option
@verb
def prune(
    context: Context,
    dataset: str | None,
    keep_last: int | None,
    older_than: int | None,
    dry_run: bool,
    driver_name: str | None,
    pool: Path | None,
) -> None:
    """Delete old snapshots of DATASET (by default of all).

    \b
    boxlink snapshot prune covers --keep-last 7
    boxlink snapshot prune --older-than 30d

    Never the newest complete one of a dataset, nor one that an upgrade under way needs, or whoever put the tag
    boxlink:in-use. What is not complete goes by its age alone.
    """
    from synclib.core.names import dataset_root
    from synclib.engine.rollout_journal import Journal
    from synclib.engine.snapshots import find, kept_because, newest_confirmed
    from synclib.errors import Invalid
    from synclib.lazy.dataset import Dataset
    from tools.cli_engine import dataset_names, open_host
    from tools.cli_snapshot import open_driver

    if keep_last is None and older_than is None:
        raise Invalid("which are to go?", hint="--keep-last N, --older-than 30d, or both")
    host, store = open_host(context), context.open_store()
    driver = open_driver(context, host, driver_name, pool)
    journal = Journal(store, host)
    gone: list[dict[str, object]] = []
    kept: dict[str, str] = {}
    for name in [dataset] if dataset is not None else dataset_names(store):
        found, opened = find(driver, store.url, name), Dataset(store, dataset_root(name))
        newest = newest_confirmed(opened, opened.read_head().manifest, found) if found.snapshots else None
        kept |= kept_because(found, newest, keep_last, older_than, host.clock.wall_ns())
        for known in found.snapshots:
            if known.snapshot.id in kept:
                continue
            # Right before it goes: the tag alone has room for one upgrade, and comes after the journal.
            if known.snapshot.id in journal.snapshots_needed():
                kept[known.snapshot.id] = "an upgrade under way needs it"
                continue
            if not dry_run:
                driver.delete_snapshot(known.snapshot.id)
            gone.append(_row(known))
    said = "would go" if dry_run else "deleted"
    lines = [f"{name}  stays: {shown_in_line(why)}" for name, why in kept.items()]
    lines += [f"{row['snapshot']}  {row['dataset']}  seq {row['seq']}  {row['at']}  {said}" for row in gone]
    context.emit({"deleted": gone, "kept": kept, "dry_run": dry_run}, "\n".join([*lines, f"{len(gone)} {said}"]))
