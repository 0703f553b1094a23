"""The markers of a dataset's directory: asks for the dataset, and sees when a new seq stands there.

Events only wake the loop; what is read from the directory is the truth.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from structlog.typing import FilteringBoundLogger
from watchdog.events import FileSystemEvent, FileSystemEventHandler

from synclib.clock import Clock
from synclib.core.markers import Down, parse_down
from synclib.core.names import ACTIVE, DOWN, ERROR
from synclib.disk.faults import disk_errors
from synclib.disk.file_events import file_events
from synclib.disk.markers import read_marker
from synclib.errors import BoxlinkError, Invalid

POLL_S = 1.0
_RETRY_S_MAX = 30.0

_Signature = tuple[int, int, int]  # inode, mtime in ns, size


def ask(directory: Path) -> bool:
    """Touch ``synch.active`` where it is absent; True when it was. One that is there keeps its text."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        os.close(os.open(directory / ACTIVE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    except FileExistsError:
        return False
    except OSError as error:
        raise Invalid(
            f"synch.active cannot be made: {error.strerror}", path=str(directory), hint="check --data and its rights"
        ) from error
    return True


class Follower:
    """Calls ``on_down`` with each new ``synch.down``, again and again where that fails with an error of the world."""

    def __init__(
        self, directory: Path, on_down: Callable[[Down], None], clock: Clock, log: FilteringBoundLogger
    ) -> None:
        self._directory = directory
        self._on_down = on_down
        self._clock = clock
        self._log = log
        self._seen: _Signature | None = None
        self._seen_error: _Signature | None = None
        self._failures = 0
        self._next_try = 0.0

    def step(self) -> None:
        """Look once at the markers, and act where they changed."""
        self._report_error()
        signature = _signature(self._directory / DOWN)
        if signature is None or signature == self._seen or self._clock.monotonic() < self._next_try:
            return
        try:
            with disk_errors():
                data = read_marker(self._directory / DOWN)
            if data is None:
                return
            self._on_down(parse_down(data))
        except BoxlinkError as error:
            # The wall before stays served; the same marker is tried again, for it is a wish that still stands.
            self._failures += 1
            self._next_try = self._clock.monotonic() + min(_RETRY_S_MAX, 0.5 * 2**self._failures)
            self._log.warning("a wall did not load", tries=self._failures, **error.as_dict())
            return
        self._failures, self._next_try, self._seen = 0, 0.0, signature

    def _report_error(self) -> None:
        signature = _signature(self._directory / ERROR)
        if signature is not None and signature != self._seen_error:
            try:
                with disk_errors():
                    text = (read_marker(self._directory / ERROR) or b"").decode(errors="replace")
            except BoxlinkError as error:
                text = error.message
            self._log.warning("synch.error says why the dataset is not here", text=text)
        self._seen_error = signature


@contextlib.contextmanager
def wake_on_change(directory: Path, wake: threading.Event, log: FilteringBoundLogger) -> Iterator[None]:
    """Sets ``wake`` when a marker changes; where the system has no events to give, polling alone must do."""
    observer = file_events()
    try:
        observer.schedule(_Waker(wake), str(directory))
        observer.start()
    except OSError as error:
        log.info("no file events: polling only", reason=str(error))
        yield
        return
    try:
        yield
    finally:
        observer.stop()
        observer.join(timeout=5)


class _Waker(FileSystemEventHandler):
    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        names = {os.path.basename(os.fsdecode(path)) for path in (event.src_path, event.dest_path)}
        # Opening and reading are events too: only changes count, or each look would wake the next.
        if event.event_type in ("created", "modified", "moved", "deleted") and names & {DOWN, ERROR}:
            self._wake.set()


def _signature(path: Path) -> _Signature | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
