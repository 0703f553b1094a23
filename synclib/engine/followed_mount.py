"""How a dataset that a node follows stands there without having been restored: mounted, or read in place.

What stands and where the kernel has it is lazy_place.py's; here it is decided when it is put there, served again after
its processes ended, and which volumes it takes its bytes from.
"""

from __future__ import annotations

import msgspec

from synclib.clock import now_text
from synclib.core.manifest import Manifest
from synclib.core.markers import Active, Down
from synclib.core.markers import Mode as MarkerMode
from synclib.disk.held import Held
from synclib.disk.markers import encode_down
from synclib.engine.event_log import Log
from synclib.engine.host import Host
from synclib.engine.lazy_place import LazyPlace, Standing, Started
from synclib.engine.mount import Mode, Prepared, VolumeRef, is_hydrated
from synclib.engine.node_figures import Followed
from synclib.errors import BoxlinkError, Invalid, Unsupported
from synclib.lazy.dataset import Dataset
from synclib.store.meter import Meter, cost_between

_FILES_STAY = "files were restored here before: take synch.active away, empty the directory (.boxlink too), ask again"
_TO_END = "stop boxlink sync, boxlink umount {}, write synch.active again, start it"


class FollowedMount:
    """One dataset's. ``place``: None where nothing can be mounted. ``why_eager``: why the last seq that should have
    been mounted was not."""

    def __init__(
        self,
        name: str,
        place: LazyPlace | None,
        dataset: Dataset,
        held: Held,
        host: Host,
        log: Log,
        meter: Meter,
        figures: Followed,
        *,
        is_lazy: bool,
        is_from_snapshot: bool,
    ) -> None:
        self.why_eager = ""
        self._name, self._place, self._dataset, self._held = name, place, dataset, held
        self._host, self._log, self._meter, self._figures = host, log, meter, figures
        self._is_lazy, self._is_from_snapshot = is_lazy, is_from_snapshot
        self._settled = 0  # the slot that was made when all was here
        self._is_releasing = False  # volumes that were needed until then are to go
        self._has_former = True  # a volume that nothing uses, perhaps since a former process

    def standing(self) -> Standing | None:
        return None if self._place is None else self._place.standing()

    def serve_again(self, standing: Standing) -> BoxlinkError | None:
        """What stood here lazily and is served no more, as after a start of the machine, is served from what is here:
        the store need not answer, but where the cache was deleted. Why it cannot be: another seq may be wanted."""
        assert self._place is not None
        self._place.clean()
        if not self._place.is_served(standing):
            try:
                self._put(self._place.prepare_again(self._dataset, standing.prepared), standing.former)
            except BoxlinkError as error:
                return error
            self._figures.remounts += 1
            self._log.info("mounted again", dataset=self._name, seq=standing.prepared.seq)
        elif not standing.is_native and self._settled != standing.slot and is_hydrated(standing.prepared):
            self._put(msgspec.structs.replace(standing.prepared, volume=None, why_no_volume=""))
            self._is_releasing = standing.prepared.volume is not None
            again = self._place.standing()
            # Where the kernel does not, that is tried once.
            self._settled = 0 if again is None else again.slot
            self._log.info("mounted on the cache", dataset=self._name, seq=standing.prepared.seq)
        if self._is_releasing:
            self._is_releasing = not self._place.release(self._dataset)
        return None

    def stand(self, target: Manifest, active: Active) -> bool:
        """Let the target stand here without restoring it, if that is asked for and possible; ``why_eager`` says else
        why not."""
        self.why_eager = ""
        is_standing = self.standing() is not None
        if active.mode == "reader" and not is_standing and self._held.read() is None:
            self._log.info("to be read in place", dataset=self._name, seq=target.seq, digest=target.digest)
            return True
        is_wanted = active.mode == "lazy" or (
            active.mode is None and (self._is_lazy or self.starts_from_snapshot(active))
        )
        if not is_standing and not is_wanted:
            return False
        self.why_eager = self._why_not(is_standing=is_standing)
        if not self.why_eager:
            try:
                self._mount(target, active)
                return True
            except (Invalid, Unsupported) as error:
                if is_standing:
                    raise
                self.why_eager = error.message
        self._log.info("restored eagerly", dataset=self._name, reason=self.why_eager)
        return False

    def _why_not(self, *, is_standing: bool) -> str:
        if self._place is None:
            return "a store in this process's memory cannot be mounted"
        if self._held.read() is not None:
            return _FILES_STAY
        if not is_standing and self._place.strangers():
            return "other files are here, which a mount would hide"
        return ""

    def _mount(self, target: Manifest, active: Active) -> None:
        assert self._place is not None
        before = self._meter.mark()
        self._put(self._place.prepare(self._dataset, target, from_snapshot=self.starts_from_snapshot(active)))
        cost = cost_between(before, self._meter.mark())
        self._log.info("mounted", dataset=self._name, seq=target.seq, digest=target.digest, **cost)

    def stands_on_volume(self, active: Active) -> bool:
        standing = self.standing()
        return standing is not None and (standing.prepared.volume is not None or active.source == "snapshot")

    def is_to_swap(self, active: Active, target: Manifest) -> bool:
        """Whether a volume is asked for that is not the one that what stands here takes its bytes from."""
        standing = self.standing()
        if standing is None or not active.snapshot:
            return False
        held = "" if standing.prepared.volume is None else standing.prepared.volume.snapshot_id
        is_here = standing.prepared.seq == target.seq and is_hydrated(standing.prepared)
        return held != active.snapshot and not is_here

    def swap(self, target: Manifest, active: Active) -> None:
        assert self._place is not None
        started = self._host.clock.monotonic()
        self._has_former = True
        self._put(self._place.swap(self._dataset, target, active.snapshot))
        seconds = round(self._host.clock.monotonic() - started, 3)
        self._log.info("swapped", dataset=self._name, seq=target.seq, snapshot=active.snapshot, seconds=seconds)

    def swap_is_open(self) -> bool:
        """Whether a volume was let go for another that did not come."""
        standing = self.standing()
        return standing is not None and standing.former is not None

    def take_swap_back(self) -> None:
        """A swap that failed, or was killed and is wanted no more: the volume that was let go serves again."""
        standing = self.standing()
        if standing is not None and standing.former is not None:
            assert self._place is not None
            self._place.take_swap_back(self._dataset)
            self._log.info("a swap was taken back", dataset=self._name, snapshot=standing.former.snapshot_id)

    def let_former_go(self, active: Active | None) -> None:
        """Volumes that were made for this and that nothing uses are deleted: one that was swapped for another, when
        nobody will want it again; one that was made for a swap which did not come about."""
        standing = self.standing()
        if standing is None or not self._has_former:
            return
        assert self._place is not None
        volume = standing.prepared.volume
        if volume is not None or (active is not None and self.starts_from_snapshot(active)):
            self._has_former = not self._place.release(self._dataset, "" if volume is None else volume.volume_id)

    def starts_from_snapshot(self, active: Active) -> bool:
        return active.source == "snapshot" or self._is_from_snapshot

    def said(self, active: Active, directory: object) -> tuple[MarkerMode, str]:
        """How the seq stands here, and what is to be said of that: what stands is kept, whatever is asked for later."""
        standing = self.standing()
        if standing is not None:
            is_other = active.mode in ("eager", "reader")
            kept = f"it stays mounted, not {active.mode}: {_TO_END.format(directory)}" if is_other else ""
            return "lazy", "; ".join(filter(None, (_reason(standing.prepared, standing.why_no_volume), kept)))
        if active.mode == "reader" and self._held.read() is None:
            return "reader", "read by programs that use boxlink's own reader: no files stand here"
        if self.starts_from_snapshot(active):
            return "eager", f"restored from the store: {self.why_eager or 'only a lazy mount starts from a snapshot'}"
        why = self.why_eager or (_FILES_STAY if active.mode in ("lazy", "reader") else "")
        return "eager", f"restored eagerly: {why}" if why and active.mode != "eager" else ""

    def _put(self, prepared: Prepared, let_go: VolumeRef | None = None) -> None:
        assert self._place is not None

        def down(started: Started) -> bytes:
            at, reason = now_text(self._host.clock), _reason(prepared, started.why_no_volume)
            return encode_down(
                Down(dataset=self._name, seq=prepared.seq, digest=prepared.digest, mode="lazy", reason=reason, at=at)
            )

        self._place.put(prepared, down, let_go)


def _reason(prepared: Prepared, why_no_volume: str) -> str:
    """What synch.down says of a mount that is not all that it could be. ``why_no_volume``: why the volume that was
    prepared is not used."""
    reasons: list[str] = []
    if prepared.volume is not None and not why_no_volume:
        reasons.append(f"from snapshot {prepared.volume.snapshot_id}, seq {prepared.volume.seq}")
    elif why := why_no_volume or prepared.why_no_volume:
        reasons.append(f"from the store: {why}")
    if prepared.mode is Mode.FUSE:
        reasons.append(f"mounted as a FUSE tree: {prepared.why}")
    elif prepared.metadata.left_out:
        reasons.append(f"{prepared.metadata.left_out} entries have attributes that cannot be seen here")
    return "; ".join(reasons)
