"""A dataset that stands in a node's data directory without having been restored.

``data/<dataset>`` is an overlay: below, the seq's own mount, which fetches what is read; above, a small directory that
holds the markers, so that programs find them where they always are. A new seq is a new pair of both, put in place of
the old one at once: files that are open keep their old bytes, every path that is opened is of one seq or of the other.

    data/.boxlink/lazy/<dataset>/state.json     what stands there
    data/.boxlink/lazy/<dataset>/<slot>/        seq (the mount), upper, work, view (where the overlay is made)
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from synclib.core import names
from synclib.core.frame import DECODE_ERRORS
from synclib.core.manifest import Manifest
from synclib.disk.atomic import write_atomic
from synclib.disk.faults import disk_errors
from synclib.disk.mounts import MNT_DETACH, UMOUNT_NOFOLLOW, escaped, mount_overlay, mounted_on, put_mount, unmount
from synclib.engine.mount import Prepared, VolumeRef, is_here, manifest_again
from synclib.errors import Unsupported
from synclib.lazy.dataset import Dataset

_CARRIED = (names.ACTIVE, names.UP)  # markers that a program may have put there


class Started(NamedTuple):
    """How a seq was mounted: whether straight on the cache's file, so that no process serves it; and why nothing comes
    from the volume that was prepared for it, empty where it does, or where there is none."""

    is_native: bool
    why_no_volume: str = ""


class Mounter(Protocol):
    """Starts and ends the processes that serve a seq."""

    def prepare(self, dataset: Dataset, manifest: Manifest, *, from_snapshot: bool = False) -> Prepared:
        """What a seq needs to be mounted in the best way that there is here. Unsupported where there is none.
        ``from_snapshot``: with a volume that bytes come from first, if there is a snapshot for it."""

    def start(self, prepared: Prepared, target: str) -> Started:
        """Mount a seq on a directory; returns when it can be read. Any BoxlinkError says why not."""

    def is_alive(self, target: str) -> bool:
        """Whether what was mounted there is served."""

    def forget(self, target: str) -> None:
        """What is kept of a mount that has ended goes."""

    def release(self, dataset: Dataset, kept: str = "") -> bool:
        """The volumes that were made for a dataset are no longer needed, but for ``kept``; whether all are gone."""

    def swap(
        self,
        prepared: Prepared,
        dataset: Dataset,
        manifest: Manifest,
        snapshot: str,
        former: VolumeRef | None,
        let_go: Callable[[], None],
    ) -> Prepared:
        """With a volume of a snapshot, attached in the place of the former one (engine/volume_swap.py)."""

    def former_again(self, dataset: Dataset, former: VolumeRef) -> VolumeRef | None:
        """The volume that was let go for another, attached again; None where it is gone."""

    def serve_from(self, dataset: Dataset, volume: VolumeRef | None) -> None:
        """Let all that is mounted of a dataset take its bytes from a volume first, or from none: nobody has another one
        open then."""


class Standing(msgspec.Struct, frozen=True):
    """What stands in a dataset's directory, and in which slot; ``is_native``: on the cache's file; ``former``: the
    volume that was let go for another which has not taken its place yet. ``why_no_volume``: why the volume of
    ``prepared``, which the next start tries again, is not served from now."""

    slot: int
    prepared: Prepared
    is_native: bool = False
    former: VolumeRef | None = None
    why_no_volume: str = ""


class LazyPlace:
    """One dataset's directory."""

    def __init__(self, data: Path, name: str, mounter: Mounter) -> None:
        self._directory = Path(os.path.realpath(data)) / name
        self._home = Path(os.path.realpath(data)) / names.STATE_DIRECTORY / "lazy" / name
        self._mounter = mounter

    def prepare(self, dataset: Dataset, manifest: Manifest, *, from_snapshot: bool = False) -> Prepared:
        """What :meth:`put` needs. A volume that a seq here has been started from serves those after it."""
        standing = self.standing()
        if standing is None:
            return self._mounter.prepare(dataset, manifest, from_snapshot=from_snapshot)
        prepared = self._mounter.prepare(dataset, manifest)
        former = standing.prepared
        return msgspec.structs.replace(prepared, volume=former.volume, why_no_volume=former.why_no_volume)

    def release(self, dataset: Dataset, kept: str = "") -> bool:
        """The volumes that it was started from are no longer needed, but for ``kept``. Whether all are gone."""
        return self._mounter.release(dataset, kept)

    def swap(self, dataset: Dataset, manifest: Manifest, snapshot: str) -> Prepared:
        """What :meth:`put` needs for a seq whose bytes come from a volume of this snapshot; it is attached when this
        returns, and what stood here before takes its bytes from the store. Until :meth:`put` has put it there, whatever
        happens, :meth:`take_swap_back` brings the former volume back."""
        standing = self.standing()
        assert standing is not None, "what is not there has no volume"
        prepared = self._mounter.prepare(dataset, manifest)
        former = standing.prepared.volume or standing.former

        def let_go() -> None:
            if former is None:
                self._mounter.serve_from(dataset, None)
            else:
                why = f"the volume of {former.snapshot_id} was let go for one of {snapshot}"
                self._serve_from(dataset, standing, None, former, why)

        return self._mounter.swap(prepared, dataset, manifest, snapshot, former, let_go)

    def take_swap_back(self, dataset: Dataset) -> None:
        """Let what stands here take its bytes from the volume that was let go, if there is one. Any BoxlinkError: the
        same again may do it."""
        standing = self.standing()
        if standing is not None and standing.former is not None:
            volume = self._mounter.former_again(dataset, standing.former)
            why = f"volume {standing.former.volume_id} is gone" if volume is None else ""
            self._serve_from(dataset, standing, volume, None, why)

    def _serve_from(
        self, dataset: Dataset, standing: Standing, volume: VolumeRef | None, former: VolumeRef | None, why: str
    ) -> None:
        """The state first: who is killed here knows which volume was let go, and does not look for one that is gone."""
        prepared = msgspec.structs.replace(standing.prepared, volume=volume, why_no_volume=why)
        self._write(msgspec.structs.replace(standing, prepared=prepared, former=former, why_no_volume=""))
        self._mounter.serve_from(dataset, volume)

    def _write(self, standing: Standing) -> None:
        write_atomic(self._home / "state.json", msgspec.json.encode(standing))

    def standing(self) -> Standing | None:
        """What was put there last; None where nothing was, or where it can no longer be told."""
        try:
            return msgspec.json.decode((self._home / "state.json").read_bytes(), type=Standing)
        except (OSError, *DECODE_ERRORS):
            return None

    def prepare_again(self, dataset: Dataset, prepared: Prepared) -> Prepared:
        """What :meth:`put` needs for what stood there: from the store where it is not here any more."""
        return prepared if is_here(prepared) else self.prepare(dataset, manifest_again(dataset, prepared))

    def strangers(self) -> bool:
        """Whether the directory holds anything but markers: what is mounted over it would hide that."""
        with disk_errors(), os.scandir(self._directory) as listing:
            return any(not names.is_reserved(b"", os.fsencode(item.name)) for item in listing)

    def is_served(self, standing: Standing) -> bool:
        """Whether it is there still: mounted, and its processes alive."""
        slot = self._slot(standing.slot)
        return self._is_ours(standing.slot) and self._mounter.is_alive(str(slot / "seq"))

    def put(self, prepared: Prepared, down: Callable[[Started], bytes], let_go: VolumeRef | None = None) -> None:
        """Let a seq stand there, with ``down``, of how it was mounted, as the text of its synch.down. What stood there
        goes when it is unused.
        ``let_go``: the volume that it still has to come back to.

        Errors leave what was there.
        """
        former = self.standing()
        slot = self._new_slot(former)
        place = self._slot(slot)
        with disk_errors():
            if former is not None and not self._is_ours(former.slot):
                self._bring_markers(former.slot)
            for part in ("seq", "upper", "work", "view"):
                (place / part).mkdir(parents=True)
            shutil.copymode(self._directory, place / "upper")
        started = self._mounter.start(prepared, str(place / "seq"))
        try:
            with disk_errors():
                carried = self._carry_markers(place / "upper")
                write_atomic(place / "upper" / names.DOWN, down(started))
                # The state first: what is not mounted is mounted anew, what nobody knows of would stay for ever.
                self._write(Standing(slot, prepared, started.is_native, let_go, started.why_no_volume))
            self._switch(place, is_over=former is not None and self._is_ours(former.slot))
        except BaseException:
            if former is None:
                (self._home / "state.json").unlink(missing_ok=True)
            else:
                self._write(former)
            self._end_slot(slot)
            raise
        if former is not None:
            self._carry_late(former.slot, place / "upper", carried)
        self.clean()

    def _switch(self, place: Path, *, is_over: bool) -> None:
        """Make the overlay, and put it where the dataset is read. Unsupported where the kernel refuses."""
        view = os.fsencode(place / "view")
        try:
            mount_overlay(os.fsencode(place / "seq"), os.fsencode(place / "upper"), os.fsencode(place / "work"), view)
            try:
                put_mount(view, os.fsencode(self._directory), replaces=is_over)
            finally:
                unmount(view, MNT_DETACH | UMOUNT_NOFOLLOW)
        except OSError as error:
            raise Unsupported(f"an overlay cannot be put there: {error.strerror}", path=str(self._directory)) from error

    def clean(self) -> None:
        """End the mounts of slots that nobody uses any more; those still open stay for a later call."""
        standing = self.standing()
        for path in self._home.glob("*/seq"):
            slot = int(path.parent.name) if path.parent.name.isdigit() else 0
            if slot and (standing is None or slot != standing.slot):
                self._end_slot(slot)

    def _slot(self, slot: int) -> Path:
        return self._home / str(slot)

    def _new_slot(self, former: Standing | None) -> int:
        used = [int(path.name) for path in self._home.glob("*") if path.name.isdigit()]
        return max([0 if former is None else former.slot, *used]) + 1

    def _is_ours(self, slot: int) -> bool:
        """Whether what is on top at the directory is the overlay of a slot."""
        found = mounted_on(os.fsencode(self._directory))
        lower = b"lowerdir=" + escaped(os.fsencode(self._slot(slot) / "seq"))
        return bool(found) and found[-1][0] == b"overlay" and lower in found[-1][1].split(b",")

    def _bring_markers(self, former: int) -> None:
        """What programs asked for while something stood here is in its upper directory alone: after the machine's end
        it is put back, or taken away, unless somebody has asked for something since."""
        upper = self._slot(former) / "upper"
        if not upper.is_dir():
            return
        for name in _CARRIED:
            there, here = _time_ns(upper / name), _time_ns(self._directory / name)
            if there is not None and (here is None or here < there):
                temporary = self._home / name
                _copy(upper / name, temporary)
                os.replace(temporary, self._directory / name)
            elif there is None and here is not None and here < os.stat(upper).st_mtime_ns:
                os.unlink(self._directory / name)

    def _carry_markers(self, upper: Path) -> dict[str, int | None]:
        """What programs ask for goes along; when each that went was written."""
        for name in _CARRIED:
            with contextlib.suppress(FileNotFoundError):
                _copy(self._directory / name, upper / name)
        return {name: _time_ns(upper / name) for name in _CARRIED}

    def _carry_late(self, former: int, upper: Path, carried: dict[str, int | None]) -> None:
        """A marker that came into the old place after it was copied from there, and before it was replaced. One that
        was copied and is not here any more was taken away here."""
        for name in _CARRIED:
            late = self._slot(former) / "upper" / name
            there, here = _time_ns(late), _time_ns(upper / name)
            if there is not None and there != carried[name] and (here is None or here < there):
                with contextlib.suppress(FileNotFoundError):
                    _copy(late, self._directory / name)

    def _end_slot(self, slot: int) -> None:
        """The keeper sees that its mount is gone, and ends when no file of it is open; then the slot goes."""
        place = self._slot(slot)
        target = os.fsencode(place / "seq")
        with contextlib.suppress(OSError):
            if mounted_on(target):
                unmount(target, MNT_DETACH | UMOUNT_NOFOLLOW)
        if not self._mounter.is_alive(str(place / "seq")):
            self._mounter.forget(str(place / "seq"))
            shutil.rmtree(place, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    """A marker as it is: a link is not followed, for it may lead to what nobody else may read. A pipe or the like stays
    behind."""
    with contextlib.suppress(shutil.SpecialFileError):
        shutil.copy2(source, target, follow_symlinks=False)


def _time_ns(path: Path) -> int | None:
    """When it was written; None where it is not there."""
    try:
        return os.lstat(path).st_mtime_ns
    except FileNotFoundError:
        return None
