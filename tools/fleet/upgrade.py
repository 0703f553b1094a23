"""What ``boxlink upgrade`` does: plans a rollout, or goes on with one, and drives it to its end."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from synclib.core.machine import Machine
from synclib.core.names import node_key, swap_key
from synclib.core.registration import NodeStatus
from synclib.core.rollout import NodeSpec, Phase, Rollout, State, gone_of
from synclib.core.snapshot_tags import IN_USE
from synclib.engine.fleet import live_nodes
from synclib.engine.host import Host
from synclib.engine.rollout import Driver, Fleet
from synclib.engine.rollout_journal import Entry, Journal
from synclib.errors import BoxlinkError, Conflict, Invalid, Missing, Unavailable
from synclib.store.base import Store
from tools.cli_context import Context
from tools.cli_engine import open_host
from tools.cli_machine import machine_of, machine_words
from tools.cli_snapshot import open_driver
from tools.fleet.boot_pins import BootPins
from tools.fleet.ec2_fleet import Ec2Fleet
from tools.fleet.fetched import fetched
from tools.fleet.find_role import parse_values
from tools.fleet.local_fleet import LocalFleet, environment
from tools.fleet.local_nodes import is_alive, nodes
from tools.fleet.local_volumes import volumes_of
from tools.fleet.looked_for import none_found, telling_where, way_to
from tools.fleet.node_file import LocalNode
from tools.fleet.pins import check_pins
from tools.fleet.proxy_admin import ProxyAdmin
from tools.fleet.readiness import Readiness
from tools.fleet.release_place import full_name, read_trust
from tools.fleet.release_role import ReleaseRoles
from tools.fleet.swap_fleet import SwapFleet, keep
from tools.fleet.upgrade_asked import Asked
from tools.fleet.upgrade_keys import trusting
from tools.fleet.upgrade_plan import Change, check_ready, check_same, planned, seq_of
from tools.fleet.upgrade_text import command_of, launch_command, paused_text, standing_text, would_text


@dataclass(frozen=True)
class Site:
    """What an upgrade works with, opened once. ``nodes``: where they are started and ended."""

    context: Context
    asked: Asked
    store: Store
    host: Host
    journal: Journal
    readiness: Readiness
    nodes: LocalFleet | Ec2Fleet

    def release_directory(self, name: str) -> Path | None:
        return _release_directory(self.context, self.asked, name)

    def say(self, text: str, rollout: Rollout) -> None:
        done = sum(step.phase == "done" for step in rollout.steps)
        self.context.note(f"boxlink: {rollout.id} ({done}/{len(rollout.steps)}): {text}")

    def need(self, rollout: Rollout, by: str) -> None:
        """Say at the snapshots that an upgrade needs who needs them, for a person to see; ``by``: its id, empty when it
        does no longer. What another has written there stays: prune reads the journals besides."""
        specs = [spec for step in rollout.steps for spec in (step.old, step.new)]
        for name in {spec.snapshot for spec in specs} - {""}:
            driver = open_driver(self.context, self.host, self.asked.driver_name, self.asked.pool)
            try:
                found = driver.snapshots([name])
                if not found or found[0].tags.get(IN_USE, "") == ("" if by else rollout.id):
                    driver.tag(name, {IN_USE: by})
            except Missing:
                if any(step.new.snapshot == name for step in rollout.steps) and by:
                    raise


def pause_upgrade(context: Context, asked: Asked) -> None:
    journal = Journal(context.open_store(), open_host(context))
    opened = _under_way(journal, asked)
    if opened.rollout.state is State.PAUSED:
        _show_paused(context, asked, opened.rollout)
        return
    if opened.rollout.state is not State.RUNNING:
        raise Conflict(
            f"{opened.rollout.id} is {opened.rollout.state}",
            hint="it is being taken back, which stands still for nobody",
        )
    if asked.is_dry_run:
        _show_would(context, opened.rollout, "would be paused")
        return
    change = {"state": State.PAUSED, "reason": "an operator paused it"}
    _show_paused(context, asked, journal.replace(opened, opened.rollout.model_copy(update=change)).rollout)


def take_back(context: Context, asked: Asked) -> None:
    journal = Journal(context.open_store(), open_host(context))
    opened = _under_way(journal, asked)
    if asked.is_dry_run:
        _show_would(context, opened.rollout, "would be taken back")
        return
    site = _open(context, asked, journal, opened)
    for name in sorted({step.old.release for step in opened.rollout.steps if step.phase is not Phase.WAITING}):
        site.release_directory(name)  # what is not trusted could not be started again: before anything is ended
    fleet = _fleet(site, opened.rollout)
    driver = _driver(site, fleet)
    entry = driver.take(opened, state=State.ROLLING_BACK, reason="an operator took it back")
    _end(site, fleet, driver.run(entry), wanted=State.ROLLED_BACK)


def upgrade(context: Context, asked: Asked) -> None:
    """Conflict where another one is under way, or it was taken back."""
    journal = Journal(context.open_store(), open_host(context))
    found = journal.find(asked.role)
    opened = found.opened
    site = _open(context, asked, journal, opened)
    change = _change(site)
    if change.release is not None and not asked.is_dry_run:
        # Before anything is begun: it may not be trusted, or not be had.
        site.release_directory(change.release)
    if opened is None:
        if asked.snapshot is None:
            check_pins(site.store, change.pins)
        olds = _running(site)
        if change.swap and found.last and not asked.is_dry_run:
            # Whoever was killed at the end of the last one may not have said it.
            for node in olds:
                keep(site.store, node.node, found.last)
        rollout = planned(olds, found.next_id, site.store, change, asked.batch, asked.place)
        if rollout is not None:
            _check_new(site, change, rollout)
        if rollout is None:
            _show(context, None)
            return
        check_ready(site.nodes, rollout)
        if asked.is_dry_run:
            _show_plan(context, rollout)
            return
        now = site.nodes.traffic()
        begun = {
            "driver": site.host.node,
            "proxy": asked.proxy_address or "",
            "p99_ms_before": None if now is None else now.p99_ms,
        }
        _run(site, journal.create(rollout.model_copy(update=begun)))
        return
    check_same(opened.rollout, change)
    if asked.is_dry_run:
        _show_would(context, opened.rollout, "would be gone on with")
        return
    context.note(f"boxlink: {opened.rollout.id} is under way, and goes on here")
    is_paused = opened.rollout.state is State.PAUSED
    fleet = _fleet(site, opened.rollout)
    _run(site, _driver(site, fleet).take(opened, state=State.RUNNING if is_paused else None))


def _running(site: Site) -> list[NodeSpec]:
    """The nodes of the role. Missing, with where they were looked for, where there is none."""
    asked = site.asked
    with telling_where(asked):
        found = site.nodes.running(asked.role)
    if not found:
        others = [] if asked.local is None else [_described(node) for node in nodes(asked.local)]
        live: dict[str, NodeStatus] = {}
        with contextlib.suppress(BoxlinkError):  # who may not look there is told the rest
            live = live_nodes(site.store, site.host.clock)
        raise none_found(asked, others, sorted(name for name, status in live.items() if status.role == asked.role))
    return found


def _described(node: LocalNode) -> str:
    return f"{node.node} (role {node.role}{'' if is_alive(node) else ', stopped'})"


def _check_new(site: Site, change: Change, rollout: Rollout) -> None:
    """Invalid, or Missing, for nodes that could not be started as they are to be."""
    is_local = site.asked.local is not None
    if is_local and site.asked.is_dry_run and change.release:
        return  # the role is in the release, which a dry run does not fetch
    roles = ReleaseRoles(site.store)
    for step in rollout.steps:
        site.nodes.check(step.new)
        if not is_local:
            roles.check(step.new.role, step.new.release, step.new.values)


def _run(site: Site, entry: Entry) -> None:
    fleet = _fleet(site, entry.rollout)
    site.need(entry.rollout, entry.rollout.id)
    _end(site, fleet, _driver(site, fleet).run(entry), wanted=State.DONE)


def _under_way(journal: Journal, asked: Asked) -> Entry:
    opened = journal.open_of(asked.role)
    if opened is None:
        raise Missing(f"no upgrade of {asked.role} is under way", hint="there is nothing to pause or to take back")
    return opened


def _open(context: Context, asked: Asked, journal: Journal, opened: Entry | None) -> Site:
    """Conflict where what is under way is of nodes elsewhere."""
    if opened is not None and opened.rollout.place != asked.place:
        raise Conflict(
            f"{opened.rollout.id} is of the nodes at {opened.rollout.place}, not at {asked.place}",
            hint=way_to(opened.rollout),
        )
    store, host = context.open_store(), open_host(context)
    proxy = None if asked.proxy_address is None else ProxyAdmin(asked.proxy_address)
    if proxy is not None:
        proxy.takes()  # an address that is wrong is said before anything is begun
    readiness = Readiness(store, proxy)
    nodes = _nodes(context, asked, readiness, host, store)
    if isinstance(nodes, Ec2Fleet) and opened is not None:
        nodes.check_here(opened.rollout.role)
    return Site(context, asked, store, host, journal, readiness, nodes)


def _nodes(context: Context, asked: Asked, readiness: Readiness, host: Host, store: Store) -> LocalFleet | Ec2Fleet:
    """By the store's own spelling of its name: volumes and instances carry that."""
    if asked.local is None:
        from tools.fleet.ec2_instances import client

        boots = BootPins(store, read_trust(asked.trust, is_unsigned_allowed=asked.is_unsigned_allowed))
        with telling_where(asked):
            ec2 = client(context.s3_settings())
        return Ec2Fleet(ec2, readiness, _machine(asked), store.url, boots=boots)
    environ = environment(store.url)
    return LocalFleet(
        asked.local,
        readiness,
        environ,
        host.clock,
        host.entropy,
        lambda name: _release_directory(context, asked, name),
        lambda node: volumes_of(context, host, node),
        asked.trust,
    )


def _machine(asked: Asked) -> Machine | None:
    """None where nothing was said of it: then new nodes are on such as the old ones are."""
    return machine_of(*asked.machine) if any(asked.machine) else None


def _release_directory(context: Context, asked: Asked, name: str) -> Path | None:
    """Where a release stands on this machine, once it was fetched and checked."""
    if not name or asked.local is None:
        return None
    return fetched(context, asked.local, name, asked.trust, is_unsigned_allowed=asked.is_unsigned_allowed).directory


def _change(site: Site) -> Change:
    asked = site.asked
    release = None if asked.release is None else full_name(site.store, asked.release)
    if asked.is_swap and (asked.snapshot is None or release is not None or asked.values):
        raise Invalid(
            "--swap changes the volume alone, and needs to know of which snapshot",
            hint="--snapshot ID --swap, without --release and --set",
        )
    seq = asked.seq
    if asked.snapshot is not None:
        if seq is not None:
            raise Invalid("--seq and --snapshot both say which seq", hint="leave one of them out")
        seq = seq_of(open_driver(site.context, site.host, asked.driver_name, asked.pool), asked.snapshot)
    values = parse_values(asked.values)
    return Change.of(release, seq, asked.snapshot or "", values, is_swap=asked.is_swap, machine=_machine(asked))


def _fleet(site: Site, rollout: Rollout) -> Fleet:
    if not rollout.swap:
        return site.nodes
    return SwapFleet(rollout.id, rollout.swap, site.store, site.readiness, site.nodes.look, site.host.clock)


def _driver(site: Site, fleet: Fleet) -> Driver:
    asked = site.asked
    return Driver(
        site.journal,
        fleet,
        site.host,
        site.say,
        ready_s_max=asked.ready_s_max,
        bake_s=asked.bake_s,
        settle=lambda rollout: _settle(site, rollout),
    )


def _settle(site: Site, rollout: Rollout) -> None:
    site.need(rollout, "")
    for spec in gone_of(rollout):
        site.store.delete(node_key(spec.node))  # what it said of itself
        site.store.delete(swap_key(spec.node))


def _end(site: Site, fleet: Fleet, rollout: Rollout, wanted: State) -> None:
    """Nodes that stay may go on from here; an upgrade that did not end as ``wanted`` is an error."""
    if rollout.state is State.PAUSED:
        _show_paused(site.context, site.asked, rollout)
        return
    if rollout.state is State.FAILED:
        raise Unavailable(
            f"{rollout.id} could not be taken back: {rollout.reason}", hint=_hint_of_failed(site.asked, rollout)
        )
    if rollout.state.is_final and isinstance(fleet, SwapFleet):
        fleet.keep(rollout)
        for step in rollout.steps:
            site.nodes.note_pins(step.new if rollout.state is State.DONE else step.old)
    if rollout.state is State.ROLLED_BACK and wanted is not State.ROLLED_BACK:
        raise Conflict(f"{rollout.id} was taken back: {rollout.reason}", hint=_hint_of_taken_back(rollout))
    _show(site.context, rollout)


def _hint_of_failed(asked: Asked, rollout: Rollout) -> str:
    if not rollout.swap:
        lacking = next((step.old for step in rollout.steps if step.phase is not Phase.UNDONE), rollout.steps[0].old)
        local = [*([] if asked.local is None else ["--local", str(asked.local)]), *asked.trust_words]
        on = lacking.machine
        known = asked.machine if on is None else (on.image, on.types, on.subnets, on.security_groups, on.profile)
        machine = machine_words(*known)
        return f"{launch_command(lacking, [*local, *machine])} starts it again, and so each that is missing"
    return (
        "no node was ended: boxlink status says how each does; see that its boxlink sync runs and reaches the store, "
        "which still holds what it was asked (swap/), then say the upgrade again"
    )


def _hint_of_taken_back(rollout: Rollout) -> str:
    named = [step.new.node for step in rollout.steps if rollout.reason.startswith(f"{step.new.node} ")]
    logs = f"boxlink logs {named[0]} has what it said; " if named and not rollout.swap else ""
    return f"{logs}correct it, then upgrade again"


def _show(context: Context, rollout: Rollout | None) -> None:
    if rollout is None:
        context.emit({"id": None, "state": "done", "steps": []}, "every node is so already")
        return
    context.emit(rollout.model_dump(mode="json"), standing_text(rollout))


def _show_plan(context: Context, rollout: Rollout) -> None:
    """Of one that is not begun: no journal has it."""
    context.emit({**rollout.model_dump(mode="json"), "state": "planned"}, would_text(rollout, "would be begun"))


def _show_would(context: Context, rollout: Rollout, would: str) -> None:
    """Of one that is under way: it is ``state`` now, and stays so."""
    context.emit(rollout.model_dump(mode="json"), would_text(rollout, f"is {rollout.state} and {would}"))


def _show_paused(context: Context, asked: Asked, rollout: Rollout) -> None:
    """Where it stands, and what goes on: whoever drove it may not be who paused it."""
    asked = trusting(context.open_store(), asked, rollout)
    place = asked.words_for(rollout) + (["--store", context.store_url] if context.store_url else [])
    text = f"{standing_text(rollout)}\n{paused_text(rollout, place)}"
    goes_on = command_of(rollout, place)
    context.emit({**rollout.model_dump(mode="json"), "goes_on_with": goes_on}, text)
