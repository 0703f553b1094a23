"""Roll a fleet to a release or a seq."""

from __future__ import annotations

from pathlib import Path

import click

from tools.cli_context import Context, Finite, node_option, verb
from tools.cli_machine import machine_options
from tools.cli_snapshot import driver_options


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
@click.option("--swap", "is_swap", is_flag=True, help="The nodes stay, and swap their volume for one of --snapshot.")
@driver_options
@click.option("--proxy", "proxy_address", metavar="HOST:PORT", help="Its admin address: it is watched.")
@click.option("--batch", type=click.IntRange(1, 1000), default=10, show_default=True, help="So many at a time at most.")
@click.option(
    "--ready-within", type=Finite(1, 86400), default=120.0, show_default=True, metavar="S",
    help="How long a new node may take to be ready.",
)  # fmt: skip
@click.option(
    "--bake", type=Finite(0, 86400), default=5.0, show_default=True, metavar="S",
    help="How long the proxy is watched after a batch.",
)  # fmt: skip
@click.option("--trust", multiple=True, type=click.Path(path_type=Path), help="A public key of releases. Repeatable.")
@click.option("--allow-unsigned", is_flag=True, help="Take a release that nobody has signed.")
@click.option(
    "--set", "values", multiple=True, metavar="NAME=VALUE",
    help="A value of the role that new nodes get; the others are as the old ones have them. Repeatable.",
)  # fmt: skip
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
    is_swap: bool,
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
    boxlink upgrade render --local ./nodes --snapshot snap-… --swap
    boxlink upgrade render --local ./nodes --abort

    A new node is started beside the old one, and has to be ready: it answers, has registered, and the proxy sends to
    it. Only then the old one drains and ends. One that does not get ready, or errors at the proxy, take all back. The
    journal is in the store (upgrade/): after a kill the same command, by anybody who reaches the nodes, goes on.

    With --swap no node is started: each makes a volume of the snapshot, lets its own go, and goes on with the new one,
    one node after the other; how long its port went without an answer is said.
    """
    from tools.fleet.upgrade import pause_upgrade, take_back, upgrade
    from tools.fleet.upgrade_asked import Asked

    machine = (image, types, subnets, groups, profile)
    asked = Asked(
        role, local, release, seq, snapshot, is_swap, driver_name, pool, proxy_address, batch, ready_within, bake,
        tuple(path.absolute() for path in trust), allow_unsigned, values, machine, dry_run,
        "" if local is not None or pause else _region(context),
    )  # fmt: skip
    if pause and abort:
        from synclib.errors import Invalid

        raise Invalid("--pause and --abort are two wishes", hint="choose one")
    if pause:
        pause_upgrade(context, asked)
    elif abort:
        take_back(context, asked)
    else:
        upgrade(context, asked)


def _region(context: Context) -> str:
    from tools.fleet.ec2_instances import region_of

    return region_of(context.s3_settings())
