"""Steer the cache of a dataset that is mounted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tools.cli_context import BYTES, Context, verb

if TYPE_CHECKING:
    from synclib.engine.mount_control import Request

# Evicting all of a large cache makes the disk work.
_ANSWER_S = 600.0

_DIRECTORY = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))


@click.group()
def command() -> None:
    """Steer the cache of the dataset that is mounted on a directory: evict, pin, unpin, rate.

    \b
    boxlink cache evict /srv/covers --to 2G
    boxlink cache pin /srv/covers index.html 2026
    """


@command.command()
@_DIRECTORY
@click.option("--to", "to_bytes", type=BYTES, default=0, metavar="BYTES", help="Keep that much (by default nothing).")
@verb
def evict(context: Context, directory: Path, to_bytes: int) -> None:
    """Let go of what was fetched, but for what is pinned; it is fetched again when it is read."""
    from synclib.engine.mount_control import Evict
    from tools.cli_engine import size_text

    done = _ask(context, directory, Evict(to_bytes))
    context.emit(done, f"the cache takes {size_text(done['cache_bytes'])}")


@command.command()
@_DIRECTORY
@click.argument("paths", metavar="PATH…", nargs=-1, required=True)
@verb
def pin(context: Context, directory: Path, paths: tuple[str, ...]) -> None:
    """Never evict PATH, a file or folder of the dataset at the seq that is mounted. It is not fetched by this."""
    from synclib.engine.mount_control import Pin
    from tools.cli_engine import open_host
    from tools.mount_pins import pinned_ranges
    from tools.mounted import mount_at

    _, spec = mount_at(open_host(context), directory)
    done: dict[str, Any] = {}
    for path, ranges in pinned_ranges(spec, paths):
        done = _ask(context, directory, Pin(path, ranges))
    context.emit(done, f"pinned: {', '.join(done['pinned'])}")


@command.command()
@_DIRECTORY
@click.argument("paths", metavar="PATH…", nargs=-1, required=True)
@verb
def unpin(context: Context, directory: Path, paths: tuple[str, ...]) -> None:
    """Take a pin away again."""
    from synclib.engine.mount_control import Unpin

    done: dict[str, Any] = {}
    for path in paths:
        done = _ask(context, directory, Unpin(path.strip("/")))
    context.emit(done, f"pinned: {', '.join(done['pinned']) or 'nothing'}")


@command.command()
@_DIRECTORY
@click.argument("rate", type=BYTES, metavar="BYTES")
@verb
def rate(context: Context, directory: Path, rate: int) -> None:
    """Let work in the background read or fetch at most so many bytes a second; 0: as it sees fit."""
    from synclib.engine.mount_control import Rate

    done = _ask(context, directory, Rate(rate))
    context.emit(done, f"{done['rate']} bytes a second" if done["rate"] else "no limit")


def _ask(context: Context, directory: Path, request: Request) -> dict[str, Any]:
    """What the mount's worker answers; Unavailable where it does not, its own error where it will or can not."""
    from synclib.errors import BoxlinkError, Invalid, Unavailable
    from tools.cli_engine import open_host
    from tools.mount_control import ask
    from tools.mounted import mount_at

    place, _ = mount_at(open_host(context), directory)
    answer = ask(place, request, _ANSWER_S)
    if answer is None:
        raise Unavailable("the mount did not answer", hint=f"see {place / 'log'}", path=str(directory))
    if "error" in answer:
        error = answer["error"]
        kind = next((kind for kind in BoxlinkError.__subclasses__() if kind.kind == error["kind"]), Invalid)
        raise kind(error["message"], hint=error.get("hint", ""), path=error.get("path", str(directory)))
    return answer
