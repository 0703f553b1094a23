"""The node's daemon: finds datasets that are asked for, keeps each at its target, sends logs up.

A scan of the markers each second is the truth; file events only wake it sooner. Each dataset has its own thread while
it has something to do, so that a long restore holds up neither the others nor the logs.
"""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler

from synclib.clock import now_text
from synclib.core import names
from synclib.core.markers import error_marker
from synclib.core.pulse import Pulse
from synclib.disk.faults import disk_error
from synclib.disk.file_events import file_events
from synclib.disk.markers import Markers
from synclib.engine.channels import ChannelWatch
from synclib.engine.event_log import Log
from synclib.engine.follow import Follower
from synclib.engine.host import Connect, Host
from synclib.engine.lazy_place import Mounter
from synclib.engine.logship import LogShipper
from synclib.engine.node_figures import NodeFigures
from synclib.engine.report import Identity, Reporter
from synclib.engine.swap_watch import SwapWatch
from synclib.errors import BoxlinkError, Interrupted, Invalid
from synclib.store.base import Store
from synclib.store.meter import Meter

_SCAN_S = 1.0
_DATASETS_AT_ONCE = 4
_LOOP = "(loop)"  # no dataset is called so


class Node:
    """One data directory's daemon."""

    def __init__(
        self,
        data: Path,
        store: Store,
        connect: Connect | None,
        host: Host,
        log: Log,
        poll_s: float,
        meter: Meter,
        mounter: Mounter | None = None,
        channels: Sequence[str] = (),
        identity: Identity | None = None,
        *,
        is_lazy: bool = False,
        is_from_snapshot: bool = False,
    ) -> None:
        self._mounter, self._is_lazy, self._is_from_snapshot = mounter, is_lazy, is_from_snapshot
        self._channels = ChannelWatch(store, host.clock, channels, poll_s) if channels else None
        self._data, self._store, self._connect, self._host = data, store, connect, host
        self._log, self._poll_s, self._meter = log, poll_s, meter
        self._is_stopping = False
        # Of all that can wake a thread only this may be used in a signal handler: the lock of an Event may be held by
        # the very code that the signal interrupts.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._followers: dict[str, Follower] = {}
        self._running: dict[str, Future[BoxlinkError | None]] = {}
        self._watched: set[str] = set()
        self._refused: set[str] = set()
        self._log_error = ""
        self._data_error = ""
        self._present: list[str] = []
        self._report_error = self._swap_error = self._swap = ""
        self._swaps = SwapWatch(data, store, host, poll_s)
        self._swap_turn = 0  # the round of its dataset that knows of the wish to swap
        self._reporter = Reporter(data, store, host, identity or Identity(), channels)
        self.shipper = LogShipper(
            data / names.LOG_DIRECTORY,
            data / names.STATE_DIRECTORY / "log.json",
            host.node,
            store,
            host.clock,
            log,
        )
        self._pulse = Pulse()
        self._round_at = host.clock.monotonic()
        self.shipper.on_sent = self._beat

    def late(self) -> list[str]:
        """What of it has not advanced within its time: ``(loop)``, or a dataset. Safe in any thread."""
        return self._pulse.late(self._host.clock.monotonic())

    def figures(self) -> NodeFigures:
        """How it does. Safe in any thread."""
        return NodeFigures(
            self._host.clock.monotonic(),
            self._round_at,
            {name: follower.figures for name, follower in list(self._followers.items())},
            self.shipper.backlog_bytes,
            self.shipper.dropped_bytes,
            self.shipper.segments,
        )

    def _beat(self) -> None:
        self._pulse.beat(_LOOP, self._host.clock.monotonic())

    def stop(self) -> None:
        """Ask it to end; safe in a signal handler."""
        self._is_stopping = True
        self._wake.put(None)

    def run_once(self) -> dict[str, BoxlinkError]:
        """One round of everything that is asked for; the errors, by dataset."""
        errors: dict[str, BoxlinkError] = {}
        for name in self._scan():
            error = self._followers[name].round()
            if error is not None:
                errors[name] = error
        self._ship(is_last=True)
        return errors

    def run(self) -> None:
        """Until :meth:`stop`; then what is at work ends at its next step, and what was logged goes up."""
        observer = file_events()
        observer.start()
        pool = ThreadPoolExecutor(_DATASETS_AT_ONCE, thread_name_prefix="dataset")
        try:
            while not self._is_stopping:
                self._round_at = self._host.clock.monotonic()
                self._beat()
                names_ = self._scan()
                self._look_for_swaps()
                self._watch(observer)
                self._collect()
                for name in names_:
                    follower = self._followers[name]
                    if name not in self._running and follower.is_due():
                        self._running[name] = pool.submit(follower.round)
                self._ship(is_last=False)
                self._beat()
                self._report()
                self._wait()
        finally:
            self._is_stopping = True
            self._pulse.end(_LOOP)  # whoever wants it to end bounds how long that may take
            observer.stop()
            observer.join()
            pool.shutdown(wait=True, cancel_futures=True)
            self._ship(is_last=True)
            with contextlib.suppress(BoxlinkError):
                self._reporter.end()

    def _wait(self) -> None:
        """Until the next scan is due or somebody wakes us, however often it was called for."""
        with contextlib.suppress(queue.Empty):
            self._wake.get(timeout=_SCAN_S)
            while True:
                self._wake.get_nowait()

    def _collect(self) -> None:
        """Take the results of rounds that ended; a bug in one ends the daemon rather than going unseen."""
        for name, future in list(self._running.items()):
            if future.done():
                del self._running[name]
                with contextlib.suppress(Interrupted):
                    future.result()

    def _scan(self) -> list[str]:
        """The datasets that have a marker, or that this node knows already; none while data/ cannot be read."""
        found: list[str] = []
        self._present = []
        try:
            with os.scandir(self._data) as listing:
                items = sorted((item for item in listing if item.is_dir()), key=lambda item: item.name)
            self._data_error = ""
        except OSError as error:
            if self._data_error != str(error):
                self._data_error = str(error)
                self._log.warning("the data directory cannot be read: waiting for it", reason=str(error))
            return []
        for item in items:
            self._present.append(item.name)
            markers = (os.path.join(item.path, name) for name in (names.ACTIVE, names.UP, names.DOWN))
            if item.name in self._followers or (any(map(os.path.lexists, markers)) and self._adopt(Path(item.path))):
                found.append(item.name)
        self._forget_gone()
        return found

    def _forget_gone(self) -> None:
        """Datasets whose directory was taken away are followed no more, and what was wrong with them is over."""
        for name in self._followers.keys() - set(self._present):
            if name not in self._running:
                del self._followers[name]
                self._log.info("its directory is gone: it is followed no more", dataset=name)
        self._refused.intersection_update(self._present)

    def _adopt(self, directory: Path) -> bool:
        try:
            self._followers[directory.name] = Follower(
                directory,
                self._store,
                self._connect,
                self._host,
                self._log,
                self._poll_s,
                lambda: self._is_stopping,
                self._meter,
                self._mounter,
                self._channels,
                self._pulse,
                is_lazy=self._is_lazy,
                is_from_snapshot=self._is_from_snapshot,
                may_go_back=lambda: self._swaps.may_go_back(directory.name),
            )
        except Invalid as error:
            if directory.name not in self._refused:
                self._refused.add(directory.name)
                self._log.warning("refused", directory=directory.name, **error.as_dict())
                # Where even that cannot be written, the log has it.
                with contextlib.suppress(OSError):
                    Markers(directory).write_error(error_marker(directory.name, error, now_text(self._host.clock)))
            return False
        return True

    def _watch(self, observer: object) -> None:
        """File events of data/ and of each directory in it, not below: only markers matter."""
        paths = [str(self._data), *(str(self._data / name) for name in self._present)]
        self._watched.intersection_update(paths)
        for path in paths:
            if path in self._watched:
                continue
            self._watched.add(path)
            try:
                observer.schedule(_Waker(self._wake), path)  # type: ignore[attr-defined]
            except OSError as error:
                self._log.warning("no file events: the scan alone will notice", path=path, reason=str(error))

    def _look_for_swaps(self) -> None:
        """Only where there is a volume to swap: each look is a request."""
        if not any(follower.stands_on_volume for follower in self._followers.values()):
            return
        before = self._swaps.wish
        try:
            self._swaps.round(self._present)
            self._swap_error = ""
        except (BoxlinkError, OSError) as error:
            told = disk_error(error) if isinstance(error, OSError) else error
            if self._swap_error != told.message:
                self._swap_error = told.message
                self._log.warning("whether a volume is to be swapped is not known", **told.as_dict())
        wish = self._swaps.wish
        if wish is not None and wish is not before and wish.dataset in self._followers:
            self._swap_turn = self._followers[wish.dataset].turns_begun + 1

    def _settled_swap(self) -> str:
        """The last wish to swap after which its dataset had its turn: what is told of that then is of this wish."""
        wish = self._swaps.wish
        follower = None if wish is None else self._followers.get(wish.dataset)
        if wish is not None and follower is not None and follower.turns_ended >= max(1, self._swap_turn):
            self._swap = wish.id
        return self._swap

    def _report(self) -> None:
        """Say how this node does; a store that does not take it hears of it later."""
        try:
            errors = {name: follower.error for name, follower in self._followers.items()}
            held = {name: follower.held_at for name, follower in self._followers.items()}
            self._reporter.round(
                errors, self._settled_swap(), {name: seq for name, seq in held.items() if seq is not None}
            )
            self._report_error = ""
        except (BoxlinkError, OSError) as error:
            told = disk_error(error) if isinstance(error, OSError) else error
            if self._report_error != told.message:
                self._report_error = told.message
                self._log.warning("the fleet cannot be told how this node does", **told.as_dict())

    def _ship(self, *, is_last: bool) -> None:
        """Send logs; while the store does not answer they wait in their files."""
        try:
            self.shipper.round(is_last=is_last)
            self._log_error = ""
        except (BoxlinkError, OSError) as error:
            told = disk_error(error) if isinstance(error, OSError) else error
            if self._log_error != told.message:
                self._log_error = told.message
                self._log.warning("logs wait: they could not be sent", **told.as_dict())


class _Waker(FileSystemEventHandler):
    """Wakes the loop when something called synch.* comes, goes or changes."""

    def __init__(self, wake: queue.SimpleQueue[None]) -> None:
        self._wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        paths = (event.src_path, getattr(event, "dest_path", ""))
        if event.is_directory or any(os.path.basename(os.fsdecode(path)) in names.MARKERS for path in paths if path):
            self._wake.put(None)
