"""Have this boxlink take over mounts that another one serves."""

from __future__ import annotations

from pathlib import Path

import click

from tools.cli_context import Context, verb


@click.command()
@click.argument("directory", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@verb
def command(context: Context, directory: Path | None) -> None:
    """Upgrade in place: this boxlink serves the mount on DIR (by default all of this machine) from now on.

    \b
    pip install --upgrade boxlink && boxlink remount

    Who reads meanwhile waits at most a moment. Where this boxlink cannot take over, the former one goes on.
    """
    from synclib.errors import BoxlinkError
    from tools.cli_engine import open_host
    from tools.mount_spec import all_specs
    from tools.mounted import is_keeper, mount_at
    from tools.mounting import renew

    host = open_host(context)
    if directory is not None:
        found = [mount_at(host, directory)]
    else:
        found = [(place, spec) for place, spec in all_specs(host.state) if is_keeper(spec.keeper_pid)]
    rows: list[dict[str, object]] = []
    code = 0
    for place, spec in found:
        row: dict[str, object] = {"directory": spec.directory}
        try:
            row["version"] = renew(place, spec)["version"]
        except BoxlinkError as error:
            row["error"], code = error.as_dict(), code or error.exit_code
            context.note(f"boxlink: {error.kind}: {spec.directory}: {error.message}")
        rows.append(row)
    done = [row for row in rows if "error" not in row]
    context.emit({"mounts": rows}, f"{len(done)} of {len(rows)} mounts are served by this boxlink")
    if code:
        raise click.exceptions.Exit(code)
