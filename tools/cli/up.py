"""Run the processes of a role."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tools.cli_context import Context, node_option, verb

if TYPE_CHECKING:
    from tools.fleet.find_role import Place
    from tools.fleet.supervisor import Planned


@click.command()
@click.argument("role")
@click.option("--data", type=click.Path(path_type=Path), default=Path("data"), show_default=True, metavar="DIR")
@click.option("--set", "values", multiple=True, metavar="NAME=VALUE", help="A value of the role. Repeatable.")
@click.option("--seq", "seqs", multiple=True, metavar="DATASET=SEQ", help="Ask for a dataset at a seq. Repeatable.")
@click.option(
    "--from", "source", type=click.Choice(["store", "snapshot"]), default="store",
    help="Where what --seq asks for begins: a volume of its newest snapshot, if there is one.",
)  # fmt: skip
@click.option("--release", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Run its programs.")
@click.option("--follow", metavar="CHANNEL", help="Follow its releases (else the role's release_channel, if any).")
@click.option(
    "--trust",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Who may sign releases that a role follows (else /etc/boxlink/trusted/*.pub). Repeatable.",
)
@click.option("--admin", metavar="HOST:PORT", help="Serve /healthz and /metrics here; port 0 takes a free one.")
@click.option("--systemd", type=click.Path(path_type=Path), metavar="DIR", help="Write units into DIR; run nothing.")
@node_option
@verb
def command(
    context: Context,
    role: str,
    data: Path,
    values: tuple[str, ...],
    seqs: tuple[str, ...],
    source: str,
    release: Path | None,
    follow: str | None,
    trust: tuple[Path, ...],
    admin: str | None,
    systemd: Path | None,
) -> None:
    """Run the processes of ROLE, a TOML file or a name: render, proxy, or one in ./roles.

    \b
    boxlink up render --set dataset=covers
    boxlink up render --systemd /etc/systemd/system

    Where --follow or the role names a channel of releases, a newer one that it names is fetched, checked and activated;
    then all are drained in order, and those of the newer release take their place. So they do when boxlink release
    rollback takes back the release that runs.

    One that ends is started again, after 0.5 to 30 seconds. Their lines are shown, and written to DIR/log, which sync
    sends up. SIGTERM and Ctrl-C stop the last one first, each in the time that its role gives it; a second Ctrl-C kills
    them. Exit code 3: one did not end in its time and was killed. --json: one object a line for each event.
    """
    import os

    from synclib.core.names import check_node
    from synclib.errors import Invalid
    from tools.addresses import parse_address
    from tools.fleet.find_role import Place, environment_of, find_role, parse_values, processes_of
    from tools.fleet.pins import parse_pins, write_pins
    from tools.fleet.programs import BOXLINK, command_of
    from tools.fleet.supervisor import KEPT, Planned
    from tools.notify import SOCKET

    if release is not None and not release.is_dir():
        raise Invalid("there is no such release", path=str(release), hint="boxlink release ls NAME lists what is here")
    if admin is not None and systemd is not None:
        raise Invalid("--admin is of an up that runs, and units run without one", hint="each process has its own")
    admin_address = None if admin is None else parse_address(admin, "--admin")
    kept = os.environ.get(KEPT, "")
    place = Place(data.resolve(), context.node, None if release is None else release.resolve())
    found = find_role(role, place.release)
    if follow is not None:
        found = found.model_copy(update={"release_channel": check_node(follow)})
    environ = {
        name: value for name, value in os.environ.items() if name not in (SOCKET, "WATCHDOG_USEC", "WATCHDOG_PID", KEPT)
    }
    if context.store_url:
        environ["BOXLINK_STORE"] = context.store_url
    environ.setdefault("BOXLINK_ROLE", found.role)
    processes = processes_of(found, place, parse_values(values))
    if systemd is not None:
        from tools.fleet.units import write_units

        store = environ.get("BOXLINK_STORE", "")
        written = context.settings.store if context.settings is not None and not store else None
        paths = write_units(systemd, found.role, processes, place, store, written or "")
        if found.release_channel:
            context.note(
                f"boxlink: units stay at their release: only boxlink up follows channel {found.release_channel}"
            )
        context.emit({"role": found.role, "units": [str(path) for path in paths]}, "\n".join(map(str, paths)))
        return
    write_pins(place.data, parse_pins(seqs), is_from_snapshot=source == "snapshot")
    planned = []
    for process in processes:
        environment = environment_of(place, environ, process)
        command = command_of(process, place, environment)
        is_own = process.run[0] == BOXLINK
        planned.append(Planned(process.name, command, environment, process.stop_s, is_own=is_own))
    if found.release_channel:
        from tools.fleet.renewal import follower_of

        planned.append(follower_of(found, role, place, values, environ, trust))
    words = ["up", role, "--data", str(place.data), "--node", place.node]
    words += [word for value in values for word in ("--set", value)]
    words += [word for path in trust for word in ("--trust", str(path))]
    words += ["--follow", follow] if follow is not None else []
    words += ["--admin", admin] if admin is not None else []
    words += ["--store", context.store_url] if context.store_url else []
    flags = {"--json": context.is_json, "-q": context.is_quiet, "-v": context.is_verbose}
    words += [flag for flag, is_set in flags.items() if is_set]
    _run(context, found.role, planned, place, kept, words, admin_address, found.release_channel)


def _run(
    context: Context,
    role: str,
    planned: list[Planned],
    place: Place,
    kept: str,
    words: list[str],
    admin_address: tuple[str, int] | None,
    channel: str,
) -> None:
    """Until all have ended. ``words``: of the command for a newer release, should one be to run then. ``channel``: of
    the releases that are followed, empty for none."""
    import os

    from synclib.clock import SystemClock
    from synclib.core.names import LOG_DIRECTORY
    from synclib.errors import Partial, Unavailable
    from tools.addresses import bind, show_address
    from tools.bootstrap.links import SEQ, is_taken_back
    from tools.fleet.console import Console
    from tools.fleet.one_up import hold, note_followed
    from tools.fleet.supervisor import ON_TRIAL, RENEWING, Supervisor

    held = hold(place.data, role, os.getppid() if kept else os.getpid())
    note_followed(place.data, role, channel)
    listener = None if admin_address is None else bind(*admin_address)
    if listener is not None:
        listener.listen()  # whoever reads below where it is finds it there
    console = Console(context, role, [process.name for process in planned], place.data / LOG_DIRECTORY)
    told = {} if listener is None else {"admin": show_address(*listener.getsockname()[:2])}
    console.event("up", role=role, node=place.node, data=str(place.data), release=str(place.release or ""), **told)
    supervisor = Supervisor(planned, console, SystemClock(), is_on_trial=kept == ON_TRIAL)
    release = place.release
    if release is not None and SEQ.fullmatch(release.name):
        supervisor.is_taken_back = lambda: is_taken_back(release.parent, int(release.name))
    if listener is not None:
        from tools.fleet.up_admin import UpAdmin
        from tools.fleet.up_figures import UpPages

        is_following = any(process.is_renewing for process in planned)
        pages = UpPages(supervisor.figures, SystemClock(), place.release, is_following=is_following).pages()
        supervisor.admin = UpAdmin(listener, pages, SystemClock())
    supervisor.run()
    note_followed(place.data, role, "")
    console.event("down", role=role)
    if supervisor.is_renewing and kept:
        raise click.exceptions.Exit(RENEWING)
    if supervisor.is_renewing:
        from tools.fleet.renewal import Renewal

        assert release is not None
        os.close(held)
        raise click.exceptions.Exit(Renewal(release, words, console, SystemClock()).run())
    if supervisor.failed:
        raise Unavailable(f"process {supervisor.failed} fails again and again", hint="its lines say why")
    if supervisor.killed:
        raise Partial(
            f"killed, for they did not end in their time: {', '.join(supervisor.killed)}",
            hint="a larger stop_s in the role",
        )
