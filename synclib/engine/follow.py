"""One dataset on a node: reads the markers and the head, and does what core/node.py decides."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from synclib.clock import now_text
from synclib.core import names
from synclib.core.manifest import Manifest
from synclib.core.markers import Active, Down, error_marker
from synclib.core.node import RELEASED, Do, Seen, decide
from synclib.core.pulse import BULK_S, Pulse
from synclib.core.trace import union
from synclib.disk.faults import disk_error
from synclib.disk.held import Held
from synclib.disk.markers import Markers
from synclib.engine.channels import ChannelWatch
from synclib.engine.event_log import Log
from synclib.engine.followed_mount import FollowedMount
from synclib.engine.followed_target import FollowedTarget
from synclib.engine.host import Connect, Host, Progress
from synclib.engine.lazy_place import LazyPlace, Mounter
from synclib.engine.maintain import maintain
from synclib.engine.node_figures import Followed
from synclib.engine.publish import PublishOptions, PublishResult, publish
from synclib.engine.restore import RestoreOptions, restore
from synclib.engine.traces import read_traces
from synclib.errors import BoxlinkError, Interrupted, Invalid, Missing, Partial
from synclib.lazy.dataset import Dataset
from synclib.store.base import Store
from synclib.store.meter import Meter

_ERROR_DELAY_S = 2.0
_ERROR_DELAY_MAX_S = 60.0
_WRITTEN_S = 0.05


class Follower:
    """One dataset's life. Its rounds must not overlap; it may be used from different threads one after the other."""

    def __init__(
        self,
        directory: Path,
        store: Store,
        connect: Connect | None,
        host: Host,
        log: Log,
        poll_s: float,
        should_stop: Callable[[], bool],
        meter: Meter,
        mounter: Mounter | None = None,
        channels: ChannelWatch | None = None,
        pulse: Pulse | None = None,
        *,
        is_lazy: bool = False,
        is_from_snapshot: bool = False,
        may_go_back: Callable[[], bool] = lambda: False,
    ) -> None:
        """``mounter``: where datasets can be mounted; ``channels``: what this node follows rather than heads;
        ``may_go_back``: whether a volume that was swapped for another may be wanted again;
        ``is_lazy``: where synch.active does not say how, they are mounted; ``is_from_snapshot``: all of them as if it
        said ``from=snapshot``; ``pulse``: told while a round advances."""
        self.name = names.check_dataset(directory.name)
        self._directory, self._store, self._connect, self._host, self._log = directory, store, connect, host, log
        self._should_stop, self._meter = should_stop, meter
        self._dataset = Dataset(store, names.dataset_root(self.name))
        self._markers = Markers(directory)
        self._markers.clean()
        self._held = Held(directory)
        self.figures = Followed()
        self._target = FollowedTarget(self._dataset, self._held, host, poll_s, channels, self.figures)
        self._mount = FollowedMount(
            self.name,
            None if mounter is None else LazyPlace(directory.parent, self.name, mounter),
            self._dataset,
            self._held,
            host,
            log,
            meter,
            self.figures,
            is_lazy=is_lazy,
            is_from_snapshot=is_from_snapshot,
        )
        self._may_go_back = may_go_back
        self.stands_on_volume = False
        self._is_checked = False
        self._asked: tuple[object, ...] = ()
        self._seen_empty: tuple[int, int] | None = None  # a synch.active that was meant to be empty
        self._failures = 0
        self._is_told = False  # what synch.error says of the last publish stands until something else is done
        self.error: BoxlinkError | None = None
        self.held_at: int | None = None  # the seq that a marker or a channel names; None: it follows the head
        self.turns_begun = self.turns_ended = 0  # rounds; what is told after one has ended is of what it began with
        self._pulse = pulse or Pulse()

    def is_due(self) -> bool:
        """Whether a round may find something to do: the head is to be polled, or the markers changed."""
        return self._host.clock.monotonic() >= self._target.due or self._asked != self._ask()

    def _ask(self) -> tuple[object, ...]:
        """What tells that somebody touched a marker."""
        found: list[object] = []
        for name in (names.ACTIVE, names.UP, names.DOWN):
            try:
                status = os.stat(self._directory / name)
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
            except OSError:
                found.append(None)
        return tuple(found)

    def round(self) -> BoxlinkError | None:
        """Do what there is to do. An error is written to synch.error and returned; a later round tries again."""
        self.turns_begun += 1
        turn = self.turns_begun
        try:
            self._round()
            self.error, self._failures, self.figures.failed_at = None, 0, None
        except Interrupted:
            raise
        except BoxlinkError as error:
            self._fail(error)
        except OSError as error:
            self._fail(disk_error(error))
        finally:
            self._pulse.end(self.name)
        if self.error is None and not self._is_told:
            # Perhaps a former process's.
            self._markers.remove(names.ERROR)
        self.turns_ended = turn
        return self.error

    def _fail(self, error: BoxlinkError) -> None:
        # A volume that was let go serves until the swap is tried again; where that fails too, the next round tries.
        with contextlib.suppress(BoxlinkError, OSError):
            self._take_swap_back()
        if self.error is None or self.error.message != error.message:
            self._log.warning("failed", **{**error.as_dict(), "dataset": self.name})
        self.error = error
        self.figures.errors[error.kind] += 1
        if self.figures.failed_at is None:
            self.figures.failed_at = self._host.clock.monotonic()
        # Where even that cannot be written, the log has it.
        with contextlib.suppress(OSError):
            self._markers.write_error(error_marker(self.name, error, now_text(self._host.clock)))
        delay = min(_ERROR_DELAY_MAX_S, _ERROR_DELAY_S * 2.0**self._failures)
        self._failures += 1
        self._target.due = self._host.clock.monotonic() + delay

    def _round(self) -> None:
        for _ in range(4):
            # What is touched from here on was not seen, so it is due.
            self._asked = self._ask()
            self._pulse.beat(self.name, self._host.clock.monotonic())
            seen, target, active = self._look()
            self._note(seen, target)
            if target is not None and active is not None:
                self.stands_on_volume = self._mount.stands_on_volume(active)
                if self._mount.is_to_swap(active, target):
                    self._pulse.beat(self.name, self._host.clock.monotonic(), BULK_S)
                    self._mount.swap(target, active)
                    continue
            self._take_swap_back()
            if not self._may_go_back():
                self._mount.let_former_go(active)
            action = decide(seen)
            if action is Do.NOTHING:
                self._correct_down(active, seen.down)
                return
            if self._should_stop():
                raise Interrupted("stopped")
            self._pulse.beat(self.name, self._host.clock.monotonic(), BULK_S)
            try:
                self._act(action, seen, target, active)
            except Missing:
                if not self._target.is_overtaken(target):
                    raise

    def _note(self, seen: Seen, target: Manifest | None) -> None:
        """For whoever watches from outside."""
        figures, now = self.figures, self._host.clock.monotonic()
        figures.seq = seen.local_seq
        figures.is_restored = bool(seen.local_seq) and seen.is_checked and not seen.is_restoring
        if self._mount.standing() is not None:
            figures.is_restored = False
        if target is None:
            figures.head_seq, figures.published_at_ns, figures.behind_since = 0, 0, None
            return
        figures.head_seq, figures.published_at_ns = target.seq, target.published_at_ns
        if (seen.local_seq, seen.local_digest) == (target.seq, target.digest) and not seen.is_restoring:
            figures.behind_since = None
        elif figures.behind_since is None:
            figures.behind_since = now

    def _look(self) -> tuple[Seen, Manifest | None, Active | None]:
        standing = self._mount.standing()
        lost = None if standing is None else self._mount.serve_again(standing)
        active = self._read_active()
        is_up = self._markers.up_identity() is not None
        state = self._held.read()
        target = None
        if active is not None and not is_up:
            active = self._target.on_channel(active)
            self.held_at = active.seq
            target = self._target.find(active.seq)
        if standing is not None:
            local = (standing.prepared.seq, standing.prepared.digest, False, True)
        elif state is not None:
            local = (state.seq, state.digest, state.restoring is not None, self._is_checked)
        else:
            local = self._read_in_place(active) or (0, "", False, self._is_checked)
        wanted = (0, "") if target is None else (target.seq, target.digest)
        if lost is not None and wanted in ((0, ""), local[:2]):
            raise lost
        return Seen(active, is_up, self._markers.down(), *local, *wanted), target, active

    def _read_active(self) -> Active | None:
        """A shell's ``echo lazy >`` empties a marker before it writes: one that is found empty is looked at again."""
        active, identity = self._markers.active(), self._markers.active_identity()
        if active == Active() and identity != self._seen_empty:
            self._host.clock.sleep(_WRITTEN_S)
            self._seen_empty, active = identity, self._markers.active()
        return active

    def _read_in_place(self, active: Active | None) -> tuple[int, str, bool, bool] | None:
        """What stands here for readers alone: what synch.down says, as long as that is asked for."""
        down = self._markers.down()
        if active is None or active.mode != "reader" or down is None or down.mode != "reader":
            return None
        return down.seq, down.digest, False, True

    def _take_swap_back(self) -> None:
        if self._mount.swap_is_open():
            try:
                self._mount.take_swap_back()
            finally:
                self._correct_down(self._markers.active(), self._markers.down())

    def _correct_down(self, active: Active | None, down: Down | None) -> None:
        """What synch.down says of how the seq stands here, where that, or what is asked for, is not so any more."""
        if active is None or down is None or down.mode == "publish" or down.reason == RELEASED:
            return
        mode, reason = self._mount.said(active, self._directory)
        if (down.mode, down.reason) != (mode, reason):
            changed = {"mode": mode, "reason": reason, "at": now_text(self._host.clock)}
            self._markers.write_down(down.model_copy(update=changed))

    def _act(self, action: Do, seen: Seen, target: Manifest | None, active: Active | None) -> None:
        self._is_told = False
        if action is Do.WITHDRAW:
            self._markers.remove(names.DOWN)
        elif action is Do.PUBLISH:
            self._publish(is_followed=active is not None)
        elif action is Do.RELEASE:
            assert seen.down is not None
            self._markers.write_down(
                seen.down.model_copy(update={"reason": RELEASED, "at": now_text(self._host.clock)})
            )
            self._log.info("released", dataset=self.name, seq=seen.local_seq)
        else:
            assert target is not None
            assert active is not None
            if action is Do.RESTORE and not self._mount.stand(target, active):
                self._restore(target, seen.is_checked)
            self._answer(target.seq, target.digest, active)

    def _restore(self, target: Manifest, is_checked: bool) -> None:
        clock = self._host.clock
        started = clock.monotonic()
        options = RestoreOptions(
            is_full=not is_checked, is_durable=True, before_change=self._withdraw, first=self._needed_first()
        )
        done = restore(self._dataset, target, self._connect, self._directory, self._host, options, self._stoppable())
        self._meter.add(done.meter)
        if done.problems:
            path, reason = done.problems[0]
            raise Partial(
                f"{len(done.problems)} paths could not be restored, the first: {os.fsdecode(path)}: {reason}",
                hint="correct it here; the node tries again",
                path=os.fsdecode(path),
            )
        self._is_checked = True
        self._log.info(
            "restored",
            dataset=self.name,
            seq=target.seq,
            digest=target.digest,
            fetched=done.fetched_files,
            deleted=done.deleted,
            seconds=round(clock.monotonic() - started, 3),
        )

    def _needed_first(self) -> tuple[bytes, ...]:
        """Where it should have been mounted: what earlier start-ups read, in the order of their need."""
        if not self._mount.why_eager or self._held.read() is not None:
            return ()
        try:
            touches = union(read_traces(self._dataset))
        except BoxlinkError:  # it is advice
            return ()
        return tuple(dict.fromkeys(touch.path for touch in touches))

    def _withdraw(self) -> None:
        """Files are about to change: what synch.down says holds no longer (I1)."""
        self._markers.remove(names.DOWN)

    def _stoppable(self) -> Progress:
        def progress(what: str, done: int, total: int) -> None:
            if self._should_stop():
                raise Interrupted("stopped while it was at work", hint="start it again: it continues")
            self._pulse.beat(self.name, self._host.clock.monotonic(), BULK_S)

        return progress

    def _answer(self, seq: int, digest: str, active: Active) -> None:
        mode, reason = self._mount.said(active, self._directory)
        found = self._markers.down()
        if mode == "lazy" and found is not None and (found.seq, found.digest, found.mode) == (seq, digest, mode):
            if found.reason != reason:
                self._markers.write_down(found.model_copy(update={"reason": reason}))
            return
        at = now_text(self._host.clock)
        self._markers.write_down(Down(dataset=self.name, seq=seq, digest=digest, mode=mode, reason=reason, at=at))

    def _publish(self, *, is_followed: bool) -> None:
        """Publish, and answer if the directory then holds every byte of the seq (I1).

        It may not: others' changes are in the seq, or files that could not be read kept their old entries. A dataset
        that is followed is brought to the seq next; any other is not written into.
        """
        identity = self._markers.up_identity()
        directory = os.fsencode(os.path.abspath(self._directory))
        # What is published is no longer the seq that a restore brought here, which may be asked for by name.
        self._is_checked = False
        done = publish(self._dataset, self._connect, directory, self._host, PublishOptions(), self._stoppable())
        self._meter.add(done.meter)
        if done.is_new and done.head is not None:
            note = maintain(self._dataset, self._host, self._stoppable(), done.head)
            if note:
                self._log.warning("not tidied", dataset=self.name, why=note)
        self._log.info("published", dataset=self.name, seq=done.seq, digest=done.digest, skipped=len(done.skipped))
        self._target.forget_head()
        if not done.seq:
            raise Invalid("there is nothing in it to publish", hint="put files into it", path=str(self._directory))
        if done.is_whole:
            self._answer_publish(done)
        else:
            self._withdraw()
        if identity == self._markers.up_identity():
            self._markers.remove(names.UP)
        self._tell(done, is_followed)

    def _answer_publish(self, done: PublishResult) -> None:
        reason = f"{len(done.skipped)} paths were skipped" if done.skipped else ""
        at = now_text(self._host.clock)
        down = Down(dataset=self.name, seq=done.seq, digest=done.digest, mode="publish", reason=reason, at=at)
        self._markers.write_down(down)

    def _tell(self, done: PublishResult, is_followed: bool) -> None:
        """Partial where the directory and the seq differ, and nothing will change that by itself."""
        if done.skipped:
            self._is_told = True
            path, why = done.skipped[0]
            raise Partial(
                f"{len(done.skipped)} paths were skipped, the first: {os.fsdecode(path)}: {why}", path=os.fsdecode(path)
            )
        if not done.is_whole and not is_followed:
            self._is_told = True
            raise Partial(
                f"it is published as seq {done.seq}, which has others' changes too that are not here",
                hint=f"touch {self._directory / names.ACTIVE} to bring them",
            )
