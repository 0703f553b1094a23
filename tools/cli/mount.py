"""Mount a dataset without restoring it: bytes come when they are read."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from synclib.core.names import dataset_root
from tools.cli_context import Context, cache_size_option, mode_option, node_option, verb
from tools.cli_rate import rate_option
from tools.cli_seq import SEQ, seq_of

if TYPE_CHECKING:
    import subprocess

    from synclib.core.manifest import Manifest
    from synclib.engine.host import Host
    from synclib.engine.mount import Prepared
    from tools.mount_ahead import KeeperAhead
    from tools.mount_spec import MountSpec


@click.command()
@click.argument("dataset")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--seq", type=SEQ, help="This seq or tag; by default the newest.")
@rate_option
@click.option("--no-hydrate", is_flag=True, help="Fetch what is read, and what a trace says, but not the rest.")
@click.option("--foreground", is_flag=True, help="Stay until it is unmounted.")
@cache_size_option
@mode_option
@node_option
@verb
def command(
    context: Context,
    dataset: str,
    directory: Path,
    seq: str | None,
    rate: int,
    no_hydrate: bool,
    foreground: bool,
    cache_size: int | None,
    mode: str | None,
) -> None:
    """Mount DATASET on the empty directory DIR, read-only; returns when it can be read. Where another seq of it is
    mounted there, it is replaced at once: what is open keeps its bytes.

    \b
    boxlink mount covers /srv/covers
    boxlink mount covers /srv/covers --seq 7
    boxlink umount /srv/covers

    A daemon stays, which fetches what is read, verifies it and keeps it for the next time; and in the background all
    else. When everything is here the next mount needs no daemon. Where there is no EROFS, or for one who is not root
    (who needs fusermount3), it is a FUSE tree. With --foreground as a service of systemd (Type=notify) a mount whose
    processes were killed is gone on with, where the service keeps descriptors (docs/mount.md).
    """
    from tools.cli_engine import open_host
    from tools.mount_ahead import keeper_ahead

    host = open_host(context)
    if foreground and _goes_on(context, host, dataset, directory):
        return
    # Its imports and ours go side by side.
    ahead = keeper_ahead(host.state, host.dataset_cache(context.url, dataset_root(dataset)))
    wanted = Wanted(dataset, directory, seq, rate, not no_hydrate, cache_size, mode, foreground)
    with contextlib.nullcontext() if ahead is None else contextlib.closing(ahead):
        target, keeper = _mounted(context, host, wanted, ahead)
    if foreground:
        _wait(context, host, target, keeper)


def _goes_on(context: Context, host: Host, dataset: str, directory: Path) -> bool:
    """Until it is unmounted, with a mount whose processes were killed; whether there was one."""
    from tools.adopt_mounts import adopt_mounts
    from tools.daemon_events import Notes
    from tools.mounted import mounted_place

    # Before anything looks at the directory: it may be that nobody answers there yet.
    place = mounted_place(host, directory)
    adopted = adopt_mounts(host.state, Notes(context)).get(place)
    if adopted is None:
        return False
    result: dict[str, object] = {"dataset": dataset, "directory": place, "served": "daemon", "keeper": adopted.pid}
    context.emit(result, f"{dataset} is still mounted on {place}")
    _wait(context, host, place, adopted)
    return True


def _wait(context: Context, host: Host, target: str, keeper: subprocess.Popen[bytes] | None) -> None:
    """Until it is unmounted; whoever started this is told that it can be read."""
    from tools.cli_engine import progress_bar
    from tools.mounting import wait_for, wait_for_native
    from tools.notify import READY, notify

    notify(READY)
    if keeper is None:
        wait_for_native(host, target)
        return
    with progress_bar(context) as progress:
        wait_for(host, target, keeper, progress)


class Wanted(NamedTuple):
    """What is to be mounted where, and how, as the command line has it."""

    dataset: str
    directory: Path
    seq: str | None
    rate: int
    is_hydrated: bool
    cache_size: int | None
    mode: str | None
    is_foreground: bool

    def is_just(self, standing: MountSpec, store: str, root: str, manifest: Manifest) -> bool:
        """Whether that is what stands there, and nothing is asked for that it may not have."""
        there = standing.prepared
        is_same = (standing.store, there.root, there.seq, there.digest) == (store, root, manifest.seq, manifest.digest)
        says_how = self.rate or not self.is_hydrated or self.cache_size or self.mode or self.is_foreground
        return is_same and not says_how


def _described(target: str, prepared: Prepared, why: str, keeper_pid: int) -> dict[str, object]:
    """``keeper_pid``: 0 where no process serves it."""
    return {
        "directory": target,
        "mode": str(prepared.mode),
        "why": why,
        "served": "daemon" if keeper_pid else "native",
        "keeper": keeper_pid,
        "left_out": {"xattrs": None if prepared.mode == "fuse" else prepared.metadata.left_out},
        "metadata": prepared.metadata.made,
    }


def _mounted(
    context: Context, host: Host, wanted: Wanted, ahead: KeeperAhead | None
) -> tuple[str, subprocess.Popen[bytes] | None]:
    """Where it is mounted, and its keeper."""
    from synclib.engine.cache_work import Background
    from synclib.engine.mount import Mode
    from synclib.errors import Invalid
    from tools.cli_engine import connect_of, manifest_fields, open_dataset
    from tools.lazy_probe import Rung
    from tools.mounted import check_replaceable, standing_at, tell_replaced
    from tools.mounting import ASKED_FOR, check_cache_size, check_empty, check_target, prepare_as, probe, start_mount

    target = check_target(wanted.directory)
    check_empty(target)
    opened = open_dataset(context, wanted.dataset)
    connect = connect_of(context)
    check_cache_size(host, wanted.cache_size)
    manifest = opened.manifest_at(seq_of(opened, wanted.seq))
    if connect is None:
        raise Invalid("a store in memory cannot be mounted: its daemon is another process")
    former = standing_at(host, target)
    if former is not None:
        if wanted.is_just(former, connect.url, opened.root, manifest):
            tell_replaced(host.state, target)  # whoever put it there may have been killed before
            row = {"dataset": wanted.dataset, **manifest_fields(manifest), "is_new": False}
            row |= _described(target, former.prepared, former.prepared.why, former.keeper_pid)
            context.emit(row, f"{wanted.dataset} at seq {manifest.seq} is mounted on {target} already")
            return target, None
        check_replaceable(former, connect.url, opened.root, manifest.seq)
    rung = probe(host, with_overlay=False) if wanted.mode is None else Rung(Mode(wanted.mode), ASKED_FOR)
    prepared = prepare_as(rung, opened, host, manifest)
    is_tree = prepared.mode is Mode.FUSE
    background = Background(wanted.rate, is_whole=wanted.is_hydrated)
    keeper = start_mount(host, connect, prepared, target, background, wanted.cache_size, ahead)
    result: dict[str, object] = {
        "dataset": wanted.dataset,
        **manifest_fields(manifest),
        **_described(target, prepared, rung.why, keeper.pid if keeper else 0),
        "is_new": True,
        "replaced": former.prepared.seq if former else None,
    }
    how = f" as a FUSE tree ({rung.why})" if is_tree else ""
    how += f", in the place of seq {former.prepared.seq}" if former else ""
    context.emit(result, f"{wanted.dataset} at seq {manifest.seq} is mounted on {target}{how}")
    if prepared.metadata.left_out:
        context.note(
            f"boxlink: the extended attributes of {prepared.metadata.left_out} entries cannot be seen in the mount"
        )
    return target, keeper
