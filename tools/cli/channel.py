"""Channels: which seq nodes follow."""

from __future__ import annotations

import click

from tools.cli_context import Context, node_option, shown_in_line, verb


@click.group()
def command() -> None:
    """Names that say which seq their followers should stand at: `boxlink sync --channel stable`.

    \b
    boxlink channel set stable covers 42
    boxlink channel set stable covers 41 --back
    boxlink channel freeze stable
    boxlink channel ls
    boxlink channel rm stable
    """


@command.command("ls")
@verb
def list_(context: Context) -> None:
    """Say where every channel stands."""
    from synclib.engine.channels import channels
    from synclib.errors import BoxlinkError

    rows: list[dict[str, object]] = []
    lines: list[str] = []
    for name, found in sorted(channels(context.open_store()).items()):
        if isinstance(found, BoxlinkError):
            rows.append({"name": name, "error": found.as_dict()})
            lines.append(f"{name}  damaged: {found.message}")
        else:
            rows.append({"name": name, **found.model_dump(exclude_none=True)})
            frozen = "frozen  " if found.frozen else ""
            lines.append(f"{name}  {found.root} seq {found.seq}  {frozen}{shown_in_line(found.at)}")
    context.emit({"channels": rows}, "\n".join(lines) or "there are no channels")


@command.command("set")
@click.argument("name")
@click.argument("what", metavar="DATASET|RELEASE")
@click.argument("seq", type=click.IntRange(min=1), required=False)
@click.option("--release", "is_release", is_flag=True, help="It is of a release, not of a dataset.")
@click.option("--back", is_flag=True, help="Also to an earlier seq: every follower goes back.")
@node_option
@verb
def set_(context: Context, name: str, what: str, seq: int | None, is_release: bool, back: bool) -> None:
    """Let channel NAME stand at SEQ (by default the newest) of a dataset or release."""
    from synclib.core.names import dataset_root, release_root
    from synclib.core.registration import Channel
    from synclib.engine.channels import move_channel
    from synclib.lazy.dataset import Dataset
    from tools.cli_engine import open_host

    store = context.open_store()
    root = release_root(what) if is_release else dataset_root(what)
    chosen = seq or Dataset(store, root).read_head().manifest.seq
    wanted = Channel.model_validate({"release" if is_release else "dataset": what, "seq": chosen, "at": ""})
    channel = move_channel(store, open_host(context), _named(name), wanted, is_back_allowed=back)
    context.emit({"name": name, **channel.model_dump(exclude_none=True)}, f"channel {name}: {root} seq {channel.seq}")


@command.command("freeze")
@click.argument("name")
@click.option("--thaw", is_flag=True, help="Allow it again.")
@node_option
@verb
def freeze(context: Context, name: str, thaw: bool) -> None:
    """Refuse that channel NAME is moved."""
    from synclib.engine.channels import freeze_channel
    from tools.cli_engine import open_host

    channel = freeze_channel(context.open_store(), open_host(context), _named(name), is_frozen=not thaw)
    state = "frozen" if channel.frozen else "free to move"
    context.emit({"name": name, **channel.model_dump(exclude_none=True)}, f"channel {name}: {state} at {channel.seq}")


@command.command("rm")
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Say what would go; take nothing away.")
@node_option
@verb
def remove(context: Context, name: str, dry_run: bool) -> None:
    """Take channel NAME away, and the tags by which retention spares its seqs. Not while a node that runs follows it.

    Where there is none of that name nothing is done.
    """
    from synclib.clock import SystemClock
    from synclib.core.registration import Channel
    from synclib.engine.channels import remove_channel
    from synclib.engine.fleet import followers
    from synclib.errors import BoxlinkError, Conflict
    from tools.cli_engine import open_host

    store = context.open_store()

    def say(text: str) -> None:
        context.note(f"boxlink: {text}")

    def check(found: Channel | None) -> None:
        problems: list[str] = []
        who = followers(store, SystemClock(), name, found, problems, say, is_waited_for=not dry_run)
        for problem in problems:
            context.note(f"boxlink: passed over: {problem}")
        if who:
            raise Conflict(
                f"channel {name} is followed by {', '.join(who)}",
                hint="stop them, or start them without it (--channel of sync, release_channel of a role) first",
            )

    found = remove_channel(store, open_host(context), _named(name), check, is_dry_run=dry_run)
    result: dict[str, object] = {"name": name, "removed": found is not None and not dry_run}
    if isinstance(found, BoxlinkError):
        result["error"] = found.as_dict()
        context.note(f"boxlink: it was damaged ({found.message}): boxlink tag DATASET lists tags that it may have left")
    elif found is not None:
        result |= found.model_dump(exclude_none=True)
    went = "would be taken away" if dry_run else "is taken away"
    context.emit(result, f"there is no channel {name}" if found is None else f"channel {name} {went}")


def _named(name: str) -> str:
    from synclib.core.names import check_node
    from synclib.errors import Invalid

    try:
        return check_node(name)
    except Invalid as error:
        raise Invalid(f"{name!r} is no channel's name", hint="letters, digits, '-', '_' and '.'") from error
