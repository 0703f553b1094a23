"""`boxlink status --fleet`: a line for each node, and what is wrong."""

from __future__ import annotations

import time
from datetime import datetime

import click

from synclib.clock import SystemClock
from synclib.core.fleet import Row
from synclib.core.rollout import Phase, State
from synclib.engine.fleet import fleet_rows
from synclib.engine.rollout_journal import Journal
from synclib.errors import Invalid, Partial, Unavailable
from synclib.store.base import Store
from tools.cli_context import Context, shown, shown_in_line
from tools.cli_engine import open_host, size_text
from tools.log_text import line_text

_WATCH_S = 5.0
_LINE_MAX = 200
_STILL_S = 900  # longer than a store that is away is waited for, or a node by default


def show_fleet(context: Context, lag_max: int, *, is_check: bool, is_watch: bool) -> None:
    """Once, or for ever. Partial with ``is_check`` where anything is wrong."""
    store = context.open_store()
    while is_watch:
        try:
            text, _ = _look(context, store, lag_max)
        except Unavailable as error:
            text = f"the store does not answer: {error.message}"
        click.clear()
        click.echo(shown(f"{time.strftime('%H:%M:%S')}\n{text}"))
        time.sleep(_WATCH_S)
    text, answer = _look(context, store, lag_max)
    alarms = answer["alarms"]
    assert isinstance(alarms, list)
    if is_check and alarms:
        if not context.is_json:
            context.emit({}, text)
        raise Partial(f"{len(alarms)} alarms, the first: {alarms[0]}", hint="boxlink status --fleet shows all")
    context.emit(answer, text)


def forget(context: Context, name: str, *, is_dry_run: bool) -> None:
    """Take away what a node that is gone left in the store. Conflict for one that runs."""
    from synclib.engine.fleet_forget import forget_node

    def say(text: str) -> None:
        context.note(f"boxlink: {text}")

    keys = forget_node(context.open_store(), SystemClock(), name, say, is_dry_run=is_dry_run)
    result = {"node": name, "removed": bool(keys) and not is_dry_run, "keys": keys}
    went = "would be forgotten" if is_dry_run else "is forgotten"
    context.emit(result, f"{name} {went}: {', '.join(keys)}" if keys else f"nothing is known of a node {name}")


def _look(context: Context, store: Store, lag_max: int) -> tuple[str, dict[str, object]]:
    rows, problems = fleet_rows(store, SystemClock(), lag_max, with_logs=True)
    upgrades, failed = _upgrades(Journal(store, open_host(context)))
    alarms = [f"{row.seen.node}: {alarm}" for row in rows for alarm in row.alarms] + problems + failed
    lines = [row_text(row) for row in rows if not row.is_history] or ["no node has said anything"]
    if history := sum(row.is_history for row in rows):
        lines.append(f"  {history} stopped more than a day ago (--json has them)")
    lines += [_upgrade_text(upgrade) for upgrade in upgrades]
    if alarms:
        lines += [
            "",
            f"{len(alarms)} alarm{'s' if len(alarms) > 1 else ''}:",
            *(f"  {shown_in_line(alarm)}" for alarm in alarms),
        ]
    found = {"nodes": [_object(row) for row in rows], "upgrades": upgrades, "alarms": alarms}
    return "\n".join(lines), found


def _upgrades(journal: Journal) -> tuple[list[dict[str, object]], list[str]]:
    """Those that are under way or paused, and alarms: of those that failed, until the next one of their role."""
    found: list[dict[str, object]] = []
    alarms: list[str] = []
    try:
        for rollout in journal.newest(lambda error: alarms.append(f"{error.key}: {error.message}")):
            if rollout.state is State.FAILED:
                alarms.append(f"upgrade {rollout.id} failed: {rollout.reason}")
            elif not rollout.state.is_final:
                done = sum(step.phase is Phase.DONE for step in rollout.steps)
                state, reason = str(rollout.state), rollout.reason
                age_s = _age_s(rollout.at)
                found.append(
                    {
                        "id": rollout.id,
                        "state": state,
                        "reason": reason,
                        "done": done,
                        "nodes": len(rollout.steps),
                        "driver": rollout.driver,
                        "age_s": age_s,
                    }
                )
                if rollout.state is not State.PAUSED and age_s > _STILL_S:
                    alarms.append(
                        f"upgrade {rollout.id} has not moved for {age_s} s: if {rollout.driver or 'nobody'} does not "
                        "drive it any more, the same command again goes on with it"
                    )
    except Invalid:
        pass  # who may not see upgrades sees the nodes
    return found, alarms


def _age_s(at: str) -> int:
    """Seconds since a journal was written; 0 where it says no time."""
    try:
        return round(max(0.0, time.time() - datetime.fromisoformat(at).timestamp()))
    except (ValueError, OverflowError):
        return 0


def _upgrade_text(upgrade: dict[str, object]) -> str:
    why = f", {upgrade['reason']}" if upgrade["reason"] else ""
    done = f"{upgrade['done']} of {upgrade['nodes']} nodes, moved {upgrade['age_s']} s ago by {upgrade['driver']}"
    return shown_in_line(f"  upgrade {upgrade['id']}: {upgrade['state']}{why}: {done}")


def row_text(row: Row) -> str:
    seen, status = row.seen, row.seen.status
    words = [seen.node]
    if status is not None:
        words += [word for word in (status.role, status.release) if word]
        for name, seq in status.seq.items():
            text = f"{name} seq {seq}"
            if name in status.held:
                text += f" (told to stand at {status.held[name]})"
            if row.lag.get(name):
                text += f" ({row.lag[name]} behind)"
            text += f" {status.mode.get(name, '')}"
            if name in status.hydrated:
                text += f" {100 * status.hydrated[name]:.0f} %"
            if status.reason.get(name):
                text += f" ({status.reason[name]})"
            words.append(text)
        if status.channels:
            words.append(f"follows {' and '.join(status.channels)}")
        if status.proxy_requests is not None:
            words.append(f"proxy: {status.proxy_requests} requests, {status.proxy_errors or 0} errors")
        words.append(f"{size_text(status.disk_free_bytes)} free")
        words.append(f"{max(seen.age_s, 0):.0f} s ago")
    for key, found in seen.registrations.items():
        words.append(f"{key} {found.state}: {found.requests} requests, {found.errors} errors")
    if status is not None and status.is_stopped:
        words.append("stopped")
    text = ("! " if row.alarms else "  ") + shown_in_line(", ".join(words))
    return text + (f"\n      {shown_in_line(line_text(seen.last_line)[:_LINE_MAX])}" if seen.last_line else "")


def _object(row: Row) -> dict[str, object]:
    seen = row.seen
    return {
        "node": seen.node,
        "status": None if seen.status is None else seen.status.model_dump(),
        "age_s": round(seen.age_s, 1),
        "registrations": {key: found.model_dump() for key, found in seen.registrations.items()},
        "lag": dict(row.lag),
        "alarms": list(row.alarms),
        "last_line": seen.last_line[:_LINE_MAX],
    }
