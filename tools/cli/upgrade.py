"""Roll a fleet to a release or a seq."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tools.cli_context import Context, node_option, verb
from tools.cli_machine import machine_of, machine_options
from tools.cli_snapshot import driver_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from synclib.core.rollout import NodeSpec, Rollout, State
    from synclib.engine.rollout import Entry, Journal
    from synclib.store.base import Store
    from synclib.volume.base import VolumeDriver
    from tools.fleet.ec2_fleet import Ec2Fleet
    from tools.fleet.local_fleet import LocalFleet


@click.command()
@click.argument("role")
@click.option(
    "--local",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The nodes of this machine, below DIR; else instances of EC2.",
)
@click.option("--release", metavar="NAME[@SEQ]", help="To this release.")
@click.option("--seq", metavar="DATASET=SEQ", help="To this seq of a dataset.")
@click.option("--snapshot", metavar="ID", help="To the seq that this snapshot holds, by way of volumes of it.")
@driver_options
@click.option("--proxy", "proxy_address", metavar="HOST:PORT", help="Its admin address: it is watched.")
@click.option("--batch", type=click.IntRange(1, 1000), default=10, show_default=True, help="So many at a time at most.")
@click.option(
    "--ready-within", type=click.FloatRange(1, 86400), default=120.0, show_default=True, metavar="S",
    help="How long a new node may take to be ready.",
)  # fmt: skip
@click.option(
    "--bake", type=click.FloatRange(0, 86400), default=5.0, show_default=True, metavar="S",
    help="How long the proxy is watched after a batch.",
)  # fmt: skip
@click.option("--trust", multiple=True, type=click.Path(path_type=Path), help="A public key of releases. Repeatable.")
@click.option("--allow-unsigned", is_flag=True, help="Take a release that nobody has signed.")
@click.option("--set", "values", multiple=True, metavar="NAME=VALUE", help="EC2: what launch said. Repeatable.")
@machine_options
@click.option("--pause", is_flag=True, help="Let the upgrade that is under way stand still.")
@click.option("--abort", is_flag=True, help="Take the upgrade that is under way back.")
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@node_option
@verb
def command(
    context: Context,
    role: str,
    local: Path | None,
    release: str | None,
    seq: str | None,
    snapshot: str | None,
    driver_name: str | None,
    pool: Path | None,
    proxy_address: str | None,
    batch: int,
    ready_within: float,
    bake: float,
    trust: tuple[Path, ...],
    allow_unsigned: bool,
    values: tuple[str, ...],
    image: str | None,
    types: tuple[str, ...],
    subnets: tuple[str, ...],
    groups: tuple[str, ...],
    profile: str,
    pause: bool,
    abort: bool,
    dry_run: bool,
) -> None:
    """Replace every node of ROLE by one of another release or seq: first one, then a tenth, then --batch at a time.

    \b
    boxlink upgrade render --local ./nodes --release fleet@7 --proxy 127.0.0.1:9080
    boxlink upgrade render --local ./nodes --seq covers=42
    boxlink upgrade render --local ./nodes --abort

    A new node is started beside the old one, and has to be ready: it answers, has registered, and the proxy sends to
    it. Only then the old one drains and ends. One that does not get ready, or errors at the proxy, take all back. The
    journal is in the store (upgrade/): after a kill the same command, by anybody who reaches the nodes, goes on.
    """
    from synclib.core.rollout import State
    from synclib.core.snapshot_tags import IN_USE
    from synclib.engine.rollout import Driver, Journal
    from synclib.errors import Conflict, Invalid, Missing
    from tools.cli_engine import open_host
    from tools.cli_snapshot import open_driver
    from tools.fleet.ec2_fleet import Ec2Fleet
    from tools.fleet.ec2_instances import client
    from tools.fleet.fetched import fetched
    from tools.fleet.find_role import parse_values
    from tools.fleet.local_fleet import LocalFleet, environment
    from tools.fleet.proxy_admin import ProxyAdmin
    from tools.fleet.readiness import Readiness
    from tools.fleet.release_place import full_name

    store, host = context.open_store(), open_host(context)
    journal = Journal(store, host)
    if pause and abort:
        raise Invalid("--pause and --abort are two wishes", hint="choose one")
    opened = journal.open_of(role)
    if pause or abort:
        if opened is None:
            raise Missing(f"no upgrade of {role} is under way", hint="there is nothing to pause or to take back")
        if dry_run:
            _show(context, opened.rollout)
            return
        if pause:
            _pause(context, journal, opened)
            return
    place = "ec2" if local is None else f"{os.uname().nodename}:{local.resolve()}"
    if opened is not None and opened.rollout.place != place:
        raise Conflict(
            f"{opened.rollout.id} is of the nodes at {opened.rollout.place}, not at {place}",
            hint="go on with it there",
        )

    proxy = None if proxy_address is None else ProxyAdmin(proxy_address)
    if proxy is not None:
        proxy.takes()  # an address that is wrong is said before anything is begun
    readiness = Readiness(store, proxy)

    def release_directory(name: str) -> Path | None:
        """Where a release stands on this machine, once it was fetched and checked."""
        if not name or local is None:
            return None
        return fetched(context, local, name, trust, is_unsigned_allowed=allow_unsigned).directory

    fleet: LocalFleet | Ec2Fleet
    if local is not None:
        fleet = LocalFleet(local, readiness, environment(context.url), host.clock, host.entropy, release_directory)
    else:
        machine = machine_of(image, types, subnets, groups, profile)
        fleet = Ec2Fleet(client(context.s3_settings()), readiness, machine, context.url, parse_values(values))

    def say(text: str, rollout: Rollout) -> None:
        done = sum(step.phase == "done" for step in rollout.steps)
        context.note(f"boxlink: {rollout.id} ({done}/{len(rollout.steps)}): {text}")

    def needed(rollout: Rollout, by: str) -> None:
        """Say at the snapshots that an upgrade starts nodes from who needs them, so that none is pruned meanwhile."""
        for name in {step.new.snapshot for step in rollout.steps} - {""}:
            open_driver(context, host, driver_name, pool).tag(name, {IN_USE: by})

    driver = Driver(journal, fleet, host, say, ready_s_max=ready_within, bake_s=bake)
    if abort:
        assert opened is not None
        taken = driver.take(opened, state=State.ROLLING_BACK, reason="an operator took it back")
        done = driver.run(taken)
        needed(done, "")
        _end(context, store, fleet, done, wanted=State.ROLLED_BACK)
        return
    release_name = None if release is None else full_name(store, release)
    if snapshot is not None:
        if seq is not None:
            raise Invalid("--seq and --snapshot both say which seq", hint="leave one of them out")
        seq = _seq_of(open_driver(context, host, driver_name, pool), snapshot)
    new_of = _new_of(release_name, seq, snapshot or "")
    if release_name is not None and not dry_run:
        # Before anything is begun: it may not be trusted, or not be had.
        release_directory(release_name)
    if opened is None:
        planned = _planned(fleet, journal, role, new_of, batch, place)
        if planned is None or dry_run:
            _show(context, planned)
            return
        _check_ready(fleet, planned)
        entry = journal.create(planned.model_copy(update={"driver": host.node}))
    else:
        _check_same(opened.rollout, new_of)
        if dry_run:
            _show(context, opened.rollout)
            return
        context.note(f"boxlink: {opened.rollout.id} is under way, and goes on here")
        is_paused = opened.rollout.state is State.PAUSED
        entry = driver.take(opened, state=State.RUNNING if is_paused else None)
    needed(entry.rollout, entry.rollout.id)
    done = driver.run(entry)
    if done.state.is_final:
        needed(done, "")
    _end(context, store, fleet, done, wanted=State.DONE)


def _seq_of(driver: VolumeDriver, snapshot: str) -> str:
    """DATASET=SEQ of what a complete snapshot holds. Conflict for one that is not complete."""
    from synclib.core.snapshot_tags import parse_tags
    from synclib.errors import Conflict, Missing
    from synclib.volume.base import SnapshotState

    found = driver.snapshots([snapshot])
    if not found:
        raise Missing(f"there is no snapshot {snapshot}", hint="boxlink snapshot ls")
    tags = parse_tags(found[0].tags)
    if not tags.is_complete or found[0].state is not SnapshotState.COMPLETED:
        raise Conflict(f"snapshot {snapshot} is not complete", hint="boxlink snapshot show says what is missing")
    return f"{tags.dataset}={tags.seq}"


def _new_of(release: str | None, seq: str | None, snapshot: str) -> Callable[[NodeSpec], NodeSpec]:
    """What takes the place of a node, but for its name."""
    from synclib.errors import Invalid
    from tools.fleet.pins import parse_pins

    change: dict[str, object] = {}
    if release is not None:
        change["release"] = release
    pins = parse_pins([] if seq is None else [seq])
    if not change and not pins:
        raise Invalid("to what?", hint="--release NAME@SEQ, --seq DATASET=SEQ, or --snapshot ID")
    return lambda old: old.model_copy(update={**change, "pins": {**old.pins, **pins}, "snapshot": snapshot})


def _planned(
    fleet: LocalFleet | Ec2Fleet,
    journal: Journal,
    role: str,
    new_of: Callable[[NodeSpec], NodeSpec],
    batch: int,
    place: str,
) -> Rollout | None:
    """None where every node is what it should be already."""
    from synclib.engine.rollout import plan

    olds = fleet.running(role)
    # Where a node began is no part of what it is.
    stale = [old for old in olds if new_of(old).model_copy(update={"snapshot": old.snapshot}) != old]
    if olds and not stale:
        return None
    name = journal.next_id(role)
    numbers = {old.node: number for number, old in enumerate(stale, 1)}
    return plan(
        name,
        stale,
        lambda old: new_of(old).model_copy(update={"node": f"{name}-{numbers[old.node]}"}),
        batch,
        "",
        place,
    )


def _check_ready(fleet: LocalFleet | Ec2Fleet, rollout: Rollout) -> None:
    """Conflict where an old node is not ready now: it could not be taken back to."""
    from synclib.errors import Conflict

    olds = [step.old for step in rollout.steps]
    for name, view in fleet.look(olds).items():
        if not view.is_ready:
            raise Conflict(
                f"{name} is not ready as it is: {view.why}",
                hint="an upgrade replaces nodes that serve and are registered; mend it, or stop it",
            )


def _check_same(rollout: Rollout, new_of: Callable[[NodeSpec], NodeSpec]) -> None:
    from synclib.errors import Conflict

    for step in rollout.steps:
        if new_of(step.old).model_copy(update={"node": step.new.node}) != step.new:
            raise Conflict(
                f"{rollout.id} is under way, to something else",
                hint=f"finish it with its own options, or boxlink upgrade {rollout.role} --abort",
            )


def _pause(context: Context, journal: Journal, opened: Entry) -> None:
    from synclib.core.rollout import State
    from synclib.errors import Conflict

    if opened.rollout.state is not State.RUNNING:
        raise Conflict(f"{opened.rollout.id} is {opened.rollout.state}")
    change = {"state": State.PAUSED, "reason": "an operator paused it"}
    paused = journal.replace(opened, opened.rollout.model_copy(update=change)).rollout
    _show(context, paused)


def _end(context: Context, store: Store, fleet: LocalFleet | Ec2Fleet, rollout: Rollout, wanted: State) -> None:
    """What is left of nodes that are no longer needed goes; an upgrade that did not end as ``wanted`` is an error."""
    from synclib.core.names import node_key
    from synclib.core.rollout import State
    from synclib.errors import Conflict, Unavailable

    if rollout.state is State.FAILED:
        raise Unavailable(
            f"{rollout.id} could not be taken back: {rollout.reason}", hint="boxlink launch starts what is missing"
        )
    if rollout.state.is_final:
        gone = [step.old if rollout.state is State.DONE else step.new for step in rollout.steps]
        for spec in gone:
            store.delete(node_key(spec.node))  # what it said of itself
        fleet.clear(gone)
    if rollout.state is State.ROLLED_BACK and wanted is not State.ROLLED_BACK:
        raise Conflict(f"{rollout.id} was taken back: {rollout.reason}", hint="correct it, then upgrade again")
    _show(context, rollout)


def _show(context: Context, rollout: Rollout | None) -> None:
    if rollout is None:
        context.emit({"id": None, "state": "done", "steps": []}, "every node is so already")
        return
    lines = [f"{rollout.id}: {rollout.state}{', ' + rollout.reason if rollout.reason else ''}"]
    lines += [f"  batch {step.batch}: {step.old.node} -> {step.new.node}  {step.phase}" for step in rollout.steps]
    context.emit(rollout.model_dump(mode="json"), "\n".join(lines))
