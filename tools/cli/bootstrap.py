"""First boot: from user-data to the running role."""

from __future__ import annotations

from pathlib import Path

import click

from tools.cli_context import Context, verb


@click.command()
@click.option("--user-data", type=click.Path(path_type=Path), metavar="FILE", help="Instead of the instance's own.")
@click.option("--root", type=click.Path(path_type=Path, file_okay=False), default=Path("/opt/boxlink"), metavar="DIR")
@click.option(
    "--trusted", type=click.Path(path_type=Path, file_okay=False), default=Path("/etc/boxlink/trusted"), metavar="DIR"
)
@click.option(
    "--imds", type=click.Choice(["v1", "v2"]), default="v2", help="v1 asks the metadata service without a token."
)
@click.option("--no-run", is_flag=True, help="Bring the release; start nothing.")
@click.option(
    "--write", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write the zipapp; no more."
)
@click.option("--cloud-init", is_flag=True, help="Print the cloud-config that runs the zipapp at each boot; no more.")
@verb
def command(
    context: Context,
    user_data: Path | None,
    root: Path,
    trusted: Path,
    imds: str,
    no_run: bool,
    write: Path | None,
    cloud_init: bool,
) -> None:
    """Do what the user-data says: fetch the release that it names, check it, and start the role.

    \b
    boxlink bootstrap --write bootstrap.pyz              # one file, for an image: Python 3.11 is all it needs
    boxlink bootstrap --user-data node.toml --root /srv/node

    The user-data is TOML: store, role, release, sha256, node, run. A release must be pinned by sha256, or be signed by
    a key in /etc/boxlink/trusted. Once its role was started, a machine goes on with the release that its link names.
    """
    from synclib.errors import Invalid, Missing, Unavailable

    if write is not None:
        _write(context, write)
    elif cloud_init:
        from tools.bootstrap.cloud_init import CLOUD_CONFIG

        context.emit({"cloud_config": CLOUD_CONFIG}, CLOUD_CONFIG.rstrip())
    else:
        from tools.bootstrap.failure import Failure, NotThere, Temporary
        from tools.bootstrap.log import Log
        from tools.bootstrap.main import Options, boot

        options = Options(root.absolute(), user_data, trusted, imds == "v1", not no_run)
        log = Log(options.root / "data/log/bootstrap.log")
        try:
            directory = boot(options, log)
        except Failure as error:
            log.failed(error.message, error.hint)
            kinds = ((Temporary, Unavailable), (NotThere, Missing), (Failure, Invalid))
            kind = next(kind for failure, kind in kinds if isinstance(error, failure))
            raise kind(error.message, hint=error.hint) from error
        context.emit({"directory": str(directory)}, f"the release is at {directory}")


def _write(context: Context, path: Path) -> None:
    import hashlib

    from synclib.disk.atomic import write_atomic
    from tools.bootstrap.build import build_bootstrap

    data = build_bootstrap()
    write_atomic(path.absolute(), data, 0o755)
    sha256 = hashlib.sha256(data).hexdigest()
    context.emit({"file": str(path), "bytes": len(data), "sha256": sha256}, f"{path}: {len(data)} bytes, {sha256}")
