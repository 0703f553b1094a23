"""Start nodes of a role: on this machine, or on EC2."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tools.cli_context import Context, verb
from tools.cli_machine import machine_of, machine_options

if TYPE_CHECKING:
    from collections.abc import Mapping


@click.command()
@click.argument("role")
@click.option("--local", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Here, below DIR.")
@click.option("--release", default="", metavar="NAME[@SEQ]", help="A release of the store; else what runs now.")
@click.option("--set", "values", multiple=True, metavar="NAME=VALUE", help="A value of the role. Repeatable.")
@click.option("--seq", "seqs", multiple=True, metavar="DATASET=SEQ", help="They stay at a seq. Repeatable.")
@click.option("--count", type=click.IntRange(1, 1000), help="So many: ROLE-1, ROLE-2, …; one by default.")
@click.option("--node", "name", metavar="NAME", help="The name of the one node.")
@click.option(
    "--stop", is_flag=True,
    help="Let local nodes drain and end instead: all of the role below DIR, or those of --count or --node.",
)  # fmt: skip
@click.option("--remove", "is_removed", is_flag=True, help="With --stop: take away what they have here, too.")
@click.option("--trust", multiple=True, type=click.Path(path_type=Path), help="A public key of releases. Repeatable.")
@click.option("--allow-unsigned", is_flag=True, help="Take a release that nobody has signed.")
@machine_options
@click.option("--dry-run", is_flag=True, help="Say what would be started, stopped, or asked of EC2; do nothing.")
@verb
def command(
    context: Context,
    role: str,
    local: Path | None,
    release: str,
    values: tuple[str, ...],
    seqs: tuple[str, ...],
    count: int | None,
    name: str | None,
    stop: bool,
    is_removed: bool,
    trust: tuple[Path, ...],
    allow_unsigned: bool,
    image: str | None,
    types: tuple[str, ...],
    subnets: tuple[str, ...],
    groups: tuple[str, ...],
    profile: str,
    dry_run: bool,
) -> None:
    """Start nodes of ROLE: with --local on this machine, each in a directory of its own; else on EC2.

    \b
    boxlink launch render --local ./nodes --count 3
    boxlink launch render --local ./nodes --stop --remove
    boxlink launch render --release fleet --image ami-0abc --type m7g.large --type m6g.large --dry-run

    A local node that is up already is left as it is; it is a conflict where --seq, --set or --release say something
    else than it is. Its boxlink up goes on by itself.
    """
    from synclib.core.names import check_node
    from synclib.errors import Invalid
    from tools.fleet.find_role import parse_values
    from tools.fleet.pins import parse_pins

    if name is not None and (count or 1) > 1:
        raise Invalid("--node names one node, --count makes several", hint="leave one of them out")
    if is_removed and not stop:
        raise Invalid("--remove is for nodes that are stopped", hint="--stop --remove")
    set_values = parse_values(values)
    stem = Path(role).stem
    if local is None:
        if stop:
            raise Invalid("--stop is for local nodes", hint="name their directory with --local")
        machine = (image, types, subnets, groups, profile)
        given = None if name is None else [check_node(name)]
        pins = parse_pins(seqs)
        trusted = trust, allow_unsigned
        _launch_instances(
            context, given, count or 1, stem, release, set_values, pins, machine, trusted, is_dry_run=dry_run
        )
        return
    names = [check_node(name)] if name is not None else [f"{stem}-{number + 1}" for number in range(count or 1)]
    pins = parse_pins(seqs)
    if stop:
        from tools.fleet.local_stop import stop_local

        is_all = name is None and count is None
        chosen = None if is_all else names
        stop_local(context, local, role, chosen, is_removed=is_removed, is_dry_run=dry_run)
        return
    from tools.fleet.local_launch import Trusted, launch_local
    from tools.fleet.local_nodes import Wish

    wish = Wish(role, values=set_values, pins=pins)
    launch_local(context, local, names, wish, release, Trusted(trust, allow_unsigned), is_dry_run=dry_run)


def _launch_instances(
    context: Context,
    given: list[str] | None,
    count: int,
    role: str,
    release: str,
    values: Mapping[str, str],
    pins: Mapping[str, int],
    machine: tuple[str | None, tuple[str, ...], tuple[str, ...], tuple[str, ...], str],
    trusted: tuple[tuple[Path, ...], bool],
    *,
    is_dry_run: bool,
) -> None:
    """``given``: the nodes' names; None for new ones. ``trusted``: keys, and whether none is needed."""
    import json
    from contextlib import nullcontext

    from synclib.errors import Invalid
    from tools.cli_engine import open_host
    from tools.fleet.boot_pins import BootPins
    from tools.fleet.ec2_instances import as_sent, client, run_instance
    from tools.fleet.instance_request import Start, requests
    from tools.fleet.launch_names import launch_names
    from tools.fleet.pins import check_pins
    from tools.fleet.release_place import full_name, read_trust
    from tools.fleet.release_role import ReleaseRoles

    kind = machine_of(*machine)
    if not release:
        raise Invalid("--release is needed for EC2", hint="or start it on this machine: --local DIR")
    # All that may be wrong is looked at before anything is paid for; a dry run does it too.
    store, host = context.open_store(), open_host(context)
    keys, is_unsigned_allowed = trusted
    boots = BootPins(store, read_trust(keys, is_unsigned_allowed=is_unsigned_allowed))
    # With its seq, so that an instance that starts anew is what it was.
    release = full_name(store, release)
    boots.check(release)
    check_pins(store, pins)
    ReleaseRoles(store).check(role, release, values)

    def tries_of(name: str) -> list[dict[str, object]]:
        start = Start(name, role, context.url, release, boots.of(release), values=values, pins=pins)
        return requests(kind, start)

    wanted = [context.url, release, dict(values), dict(pins), machine]
    new = launch_names(host.state, role, count, wanted, host.clock, host.entropy, is_dry_run=is_dry_run)
    with new if given is None else nullcontext(given) as names:
        if is_dry_run:
            plans = {name: [as_sent(request) for request in tries_of(name)] for name in names}
            context.emit({"run_instances": plans}, json.dumps([tries[0] for tries in plans.values()], indent=1))
            return
        ec2 = client(context.s3_settings())
        told = [{"node": name, "instance": run_instance(ec2, tries_of(name))} for name in names]
    context.emit({"nodes": told}, "\n".join(f"{node['node']}: {node['instance']}" for node in told))
