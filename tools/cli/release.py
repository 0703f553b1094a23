"""Programs as releases: published, signed, fetched beside what runs, switched, taken back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tools.cli_context import Context, Finite, node_option, verb

if TYPE_CHECKING:
    from synclib.core.release import Statement

_INTO = click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/opt/boxlink/release"),
    show_default=True,
    metavar="DIR",
    help="Where releases stand.",
)
_TRUST = click.option(
    "--trust",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A public key (else /etc/boxlink/trusted/*.pub). Repeatable.",
)
_UNSIGNED = click.option("--allow-unsigned", is_flag=True, help="Take one that nobody has signed.")


@click.group()
def command() -> None:
    """Publish programs and run them: key, publish, fetch, activate, rollback, follow, prune, ls.

    \b
    boxlink release key fleet.key                      # fleet.key.pub goes to /etc/boxlink/trusted on the nodes
    boxlink release publish fleet ./build --key fleet.key
    boxlink release fetch fleet && boxlink release activate fleet
    boxlink release rollback fleet
    """


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@verb
def key(context: Context, file: Path) -> None:
    """Make an Ed25519 key pair: FILE, which only its owner can read, and FILE.pub."""
    import os

    from synclib.clock import SystemEntropy
    from synclib.core.signing import KEY_BYTES, Signer, private_pem
    from synclib.errors import Conflict

    pem = private_pem(SystemEntropy().token(KEY_BYTES))
    public = Signer(pem).public
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise Conflict(
            "there is a file already", hint="a key is never overwritten: choose another name", path=str(file)
        ) from error
    with open(descriptor, "wb") as out:
        out.write(pem)
        out.flush()
        os.fsync(descriptor)
    Path(f"{file}.pub").write_text(f"{public}\n")
    context.emit({"key": public, "file": str(file), "public_file": f"{file}.pub"}, f"{public}\nkeep {file} secret")


@command.command()
@click.argument("name")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--key", "key_file", type=click.Path(path_type=Path), metavar="FILE", help="Sign it with this key.")
@node_option
@verb
def publish(context: Context, name: str, directory: Path, key_file: Path | None) -> None:
    """Make the directory DIR the current release NAME: wheels/ for its programs, roles/ for its roles.

    New nodes take it from then on; those that run fetch it when they are told to.
    """
    from synclib.core.signing import Signer
    from synclib.engine.release import publish_release
    from synclib.errors import Invalid
    from tools.bootstrap.build import build_bootstrap
    from tools.cli_engine import connect_of, costs_text, open_host, progress_bar, size_text
    from tools.fleet.find_role import check_roles

    check_roles(directory)  # every new node would take them
    signer = None
    if key_file is not None:
        try:
            signer = Signer(key_file.read_bytes())
        except OSError as error:
            raise Invalid(f"the key cannot be read: {error.strerror}", path=str(key_file)) from error
    store = context.open_store()
    host, connect = open_host(context), connect_of(context)
    with progress_bar(context) as progress:
        done = publish_release(store, connect, name, directory, signer, build_bootstrap(), host, progress)
    assert context.meter is not None
    context.meter.add(done.meter)
    statement = done.statement
    result: dict[str, object] = {
        **statement.model_dump(exclude={"v"}),
        "files": done.files,
        "bytes": done.plain_bytes,
        "is_new": done.is_new,
        "is_current": done.is_current,
    }
    signed = f"signed by {statement.key[:16]}" if statement.key else "not signed"
    context.emit(
        result,
        f"release {name} is at seq {statement.seq}, {signed}; boot tar {size_text(statement.boot_bytes)}, "
        f"sha256 {statement.boot_sha256}\n{costs_text(context)}",
    )
    if not any((directory / "wheels").glob("boxlink-*.whl")):
        context.note("boxlink: it brings no boxlink: its roles are run by the one that is on each machine")
    if not done.is_current:
        context.note(f"boxlink: a newer seq of {name} was published meanwhile, and stays the current one")


@command.command()
@click.argument("name", metavar="NAME[@SEQ]")
@click.option("--seq", type=click.IntRange(min=1), help="This seq; by default the current one.")
@_INTO
@_TRUST
@_UNSIGNED
@node_option
@verb
def fetch(
    context: Context, name: str, seq: int | None, into: Path, trust: tuple[Path, ...], allow_unsigned: bool
) -> None:
    """Bring a release NAME here, beside the one that runs: checked, and its programs installed from its wheels."""
    from tools.cli_engine import connect_of, costs_text, open_host, progress_bar
    from tools.fleet.release_place import fetch as bring
    from tools.fleet.release_place import read_trust

    name, seq = _which(name, seq)
    trusted = read_trust(trust, is_unsigned_allowed=allow_unsigned)
    store = context.open_store()
    host, connect = open_host(context), connect_of(context)
    with progress_bar(context) as progress:
        done = bring(
            store, connect, name, seq, into, trusted, host, progress, lambda text: context.note(f"boxlink: {text}")
        )
    assert context.meter is not None
    context.meter.add(done.meter)
    result: dict[str, object] = {
        "release": name,
        "seq": done.statement.seq,
        "digest": done.statement.digest,
        "key": done.statement.key,
        "directory": str(done.directory),
        "is_new": done.is_new,
    }
    what = "is here" if done.is_new else "was here"
    context.emit(result, f"release {name} seq {done.statement.seq} {what}: {done.directory}\n{costs_text(context)}")


@command.command()
@click.argument("name", metavar="NAME[@SEQ]")
@click.argument("number", metavar="[SEQ]", type=click.IntRange(min=1), required=False)
@click.option("--seq", type=click.IntRange(min=1), help="This seq; by default the newest that is here.")
@_INTO
@_TRUST
@_UNSIGNED
@verb
def activate(
    context: Context,
    name: str,
    number: int | None,
    seq: int | None,
    into: Path,
    trust: tuple[Path, ...],
    allow_unsigned: bool,
) -> None:
    """Let a release that was fetched be the one that runs: SEQ, or the newest that is here. It is checked again.

    DIR/NAME/current names it; what runs already goes on as it is until it is started again.
    """
    from tools.fleet.release_place import activate as switch_to
    from tools.fleet.release_place import read_trust

    name, seq = _which(name, number, seq)
    statement, is_other = switch_to(name, seq, into, read_trust(trust, is_unsigned_allowed=allow_unsigned))
    result: dict[str, object] = {"release": name, "seq": statement.seq, "digest": statement.digest, "is_new": is_other}
    context.emit(result, f"release {name} {'is' if is_other else 'was'} at seq {statement.seq}")


def _which(text: str, *seqs: int | None) -> tuple[str, int | None]:
    """NAME or NAME@SEQ, and the seq in whichever way it was said. Invalid where it was said in two that differ."""
    from synclib.errors import Invalid
    from tools.fleet.release_place import parse_release

    name, own = parse_release(text)
    said = {seq for seq in (own, *seqs) if seq is not None}
    if len(said) > 1:
        raise Invalid(f"which seq of {name}: {' or '.join(map(str, sorted(said)))}?", hint=f"write {name}@SEQ alone")
    return name, next(iter(said), None)


@command.command()
@click.argument("name")
@_INTO
@verb
def rollback(context: Context, name: str, into: Path) -> None:
    """Let the release that ran before be the one that runs again, at once.

    boxlink up of a release that is taken back so drains what runs, and runs the other, by itself. A channel that names
    it moves nobody here to it any more, until it has named another, or boxlink release activate names it.
    """
    from synclib.core.names import check_dataset
    from tools.fleet.release_place import rollback as back

    seq, is_other = back(check_dataset(name), into)
    context.emit({"release": name, "seq": seq, "is_new": is_other}, f"release {name} is at seq {seq}")


@command.command()
@click.argument("name")
@click.option("--channel", required=True, metavar="NAME", help="Which channel says what to run.")
@click.option("--running", required=True, type=click.IntRange(min=1), metavar="SEQ", help="The seq that runs.")
@click.option("--poll", "poll_s", type=Finite(0.1, 3600), metavar="S", help="How often to ask (10).")
@click.option(
    "--spread",
    "spread_s",
    type=Finite(0, 86400),
    default=300.0,
    show_default=True,
    metavar="S",
    help="Activate at a random moment within so many seconds.",
)
@click.option("--role", metavar="ROLE", help="Take only what can run this role, with --set and --data as for up.")
@click.option("--set", "values", multiple=True, metavar="NAME=VALUE", help="A value of the role. Repeatable.")
@click.option("--data", type=click.Path(path_type=Path), default=Path("data"), show_default=True, metavar="DIR")
@_INTO
@_TRUST
@node_option
@verb
def follow(
    context: Context,
    name: str,
    channel: str,
    running: int,
    poll_s: float | None,
    spread_s: float,
    role: str | None,
    values: tuple[str, ...],
    data: Path,
    into: Path,
    trust: tuple[Path, ...],
) -> None:
    """Wait until a channel names a newer seq of a release NAME; fetch, check and activate it, and end.

    What boxlink up does by itself for a role that has a release_channel. Only what is signed is taken; never an older
    seq, and nothing while the channel is frozen.
    """
    from synclib.core.names import check_dataset, check_node
    from tools.cli_engine import connect_of, open_host
    from tools.fleet.release_follow import Following, ReleaseFollower
    from tools.fleet.release_place import read_trust

    every_s = poll_s or (context.settings.poll_s if context.settings else 10.0)
    trial = (
        () if role is None else (role, "--data", str(data), *(word for value in values for word in ("--set", value)))
    )
    following = Following(check_dataset(name), check_node(channel), running, into, every_s, spread_s, trial)
    store, trusted = context.open_store(), read_trust(trust, is_unsigned_allowed=False)
    follower = ReleaseFollower(following, store, connect_of(context), open_host(context), trusted, context.note)
    seq = follower.run()
    context.emit({"release": name, "seq": seq}, f"release {name} is at seq {seq}")


@command.command()
@click.argument("name")
@_INTO
@click.option("--dry-run", is_flag=True, help="Say which would go; delete none.")
@verb
def prune(context: Context, name: str, into: Path, dry_run: bool) -> None:
    """Delete the seqs of a release that were fetched here and are needed no more, and boot tars beside them.

    The one that runs stays, the one before it, those that are newer, and any that a process uses.
    """
    from tools.cli_engine import size_text
    from tools.fleet.release_prune import prune as away

    done = away(name, into, is_dry_run=dry_run)
    result: dict[str, object] = {"release": name, "gone": done.gone, "kept": done.kept, "bytes": done.bytes}
    what = "would go" if dry_run else "went"
    lines = [f"{seq:>8}  stays: {why}" for seq, why in done.kept.items()]
    lines += [f"{seq:>8}  {what}" for seq in done.gone]
    context.emit(result, "\n".join([*lines, f"{size_text(done.bytes)} {'would be' if dry_run else 'are'} free"]))


@command.command()
@click.argument("name")
@_INTO
@verb
def ls(context: Context, name: str, into: Path) -> None:
    """List the seqs of a release: which is current in the store, who signed it, which are here, which runs.

    A statement that is damaged is named, and the others are listed; the exit code is then its kind's.
    """
    from synclib.engine.release import has_signature, read_statement, statements
    from synclib.errors import BoxlinkError, Corrupt, Missing
    from tools.bootstrap.links import CURRENT, PREVIOUS, linked_seq
    from tools.fleet.release_place import seqs

    store = context.open_store()
    known = statements(store, name)
    failed: list[BoxlinkError] = []

    def statement_of(seq: int | None) -> Statement | None:
        try:
            return read_statement(store, name, seq)
        except (Corrupt, Missing) as error:
            failed.append(error)
            return None

    current = statement_of(None) if known else None
    place = into.absolute() / name
    here = seqs(place)
    if not known and not here:
        raise Missing(f"there is no release {name}", hint=f"boxlink release publish {name} DIR")
    rows: list[dict[str, object]] = []
    for seq in sorted({*known, *here}):
        before = len(failed)
        statement = statement_of(seq) if seq in known else None
        rows.append(
            {
                "seq": seq,
                "at": statement.at if statement else "",
                "key": statement.key if statement and statement.key and has_signature(statement) else "",
                "boot_bytes": statement.boot_bytes if statement else 0,
                "is_current": current is not None and seq == current.seq,
                "is_here": seq in here,
                "is_active": seq == linked_seq(place, CURRENT),
                # After a rollback both links name one seq, which is active: there is none to go back to.
                "is_previous": seq == linked_seq(place, PREVIOUS) != linked_seq(place, CURRENT),
                "error": failed[-1].as_dict() if len(failed) > before else None,
            }
        )
    errors = [error.as_dict() for error in failed]
    context.emit({"release": name, "seqs": rows, "errors": errors}, "\n".join(map(_line, rows)))
    for error in failed:
        context.note(f"boxlink: {error.kind}: {error.key}: {error.message}")
    if failed:
        raise click.exceptions.Exit(failed[0].exit_code)


def _line(row: dict[str, object]) -> str:
    signs = [name for name in ("current", "here", "active", "previous") if row[f"is_{name}"]]
    signed = f"signed by {str(row['key'])[:16]}" if row["key"] else "damaged" if row["error"] else "not signed"
    return f"{row['seq']:>8}  {row['at']}  {signed}  {', '.join(signs)}".rstrip()
