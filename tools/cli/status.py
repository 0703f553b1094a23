"""Say what boxlink serves on this machine."""

from __future__ import annotations

from typing import Any

import click

from tools.cli_context import Context, verb


@click.command()
@click.option("--metrics", is_flag=True, help="As Prometheus reads it: one scrape for all mounts.")
@click.option("--fleet", is_flag=True, help="Every node, from what they wrote to the store.")
@click.option("--check", is_flag=True, help="With --fleet: exit code 3 where anything is wrong.")
@click.option("--watch", is_flag=True, help="With --fleet: again every few seconds.")
@click.option(
    "--lag-max",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    metavar="N",
    help="With --fleet: how many seqs a node may be behind its dataset's head.",
)
@click.option("--forget", metavar="NODE", help="With --fleet: take away what a node that is gone left in the store.")
@click.option("--dry-run", is_flag=True, help="With --forget: say what would go; take nothing away.")
@verb
def command(
    context: Context,
    metrics: bool,
    fleet: bool,
    check: bool,
    watch: bool,
    lag_max: int,
    forget: str | None,
    dry_run: bool,
) -> None:
    """Say which datasets are mounted on this machine, and how they do. The mounts themselves are not touched.

    \b
    boxlink status
    boxlink status --fleet --watch
    boxlink status --fleet --check        for alarms: what is wrong, and exit code 3
    boxlink status --fleet --forget n1    one that is gone for good; its logs stay
    """
    if (forget is not None and (not fleet or check or watch)) or (dry_run and forget is None):
        from synclib.errors import Invalid

        hint = "boxlink status --fleet --forget NODE --dry-run"
        raise Invalid("--forget is of a node of a fleet, and --dry-run of that alone", hint=hint)
    if forget is not None:
        from tools.fleet_status import forget as forget_one

        forget_one(context, forget, is_dry_run=dry_run)
        return
    if (check or watch) and (not fleet or (watch and (check or context.is_json))):
        from synclib.errors import Invalid

        raise Invalid(
            "--check and --watch are ways to look at a fleet, one at a time, and --watch has no --json: it never ends",
            hint="boxlink status --fleet --check ends with an exit code, --fleet --watch is for a terminal",
        )
    if fleet:
        from tools.fleet_status import show_fleet

        show_fleet(context, lag_max, is_check=check, is_watch=watch)
        return
    from tools.cli_engine import open_host, size_text
    from tools.hydration_text import hydration_text
    from tools.mount_rows import mount_rows

    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    for row, figures, spec in mount_rows(open_host(context).state, is_clearing=True):
        prepared, name, state = spec.prepared, row["dataset"], row["state"]
        rows.append(row)
        line = f"{name} seq {prepared.seq} on {spec.directory}: {state}"
        if prepared.mode == "fuse":
            line += f"; a FUSE tree ({prepared.why})"
        if spec.is_native:
            line += "; every byte is here, nothing runs"
        elif figures is not None:
            line += (
                f"; {figures['reads']} reads, {figures['faults']} faults (p50 {figures['fault_p50_ms']} ms, "
                f"p99 {figures['fault_p99_ms']} ms), {figures['errors']} errors, "
                f"{size_text(int(figures['fetched_bytes']))} fetched, {size_text(int(figures['cache_bytes']))} here"
                f"{_limit_text(figures)}; {hydration_text(figures)}; {figures['evicted_chunks']} chunks evicted, "
                f"{figures['unkept_chunks']} found no room, {figures['damaged_chunks']} were damaged; "
                f"{figures['restarts']} restarts"
            )
        elif state == "dead":
            line += f"; boxlink umount --force {spec.place} clears it away"
        lines.append(line)
    if metrics:
        from tools.mount_metrics import exposition

        click.echo(exposition(rows), nl=False)
        return
    context.emit({"node": context.node, "mounts": rows}, "\n".join(lines) or "nothing is mounted here")


def _limit_text(figures: dict[str, Any]) -> str:
    from tools.cli_engine import size_text

    limit = figures["cache_bytes_max"]
    return "" if limit is None else f" of {size_text(limit)}"
