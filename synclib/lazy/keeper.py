"""The keeper of a lazy mount: a small process that holds /dev/fuse open and has a worker answer it.

A worker may die at any moment: what it had taken and not answered is asked for again by the next one, and no reader
sees more than a pause. While the keeper lives the mount lives; where no worker comes to life the connection is aborted,
so that readers get an error rather than wait for ever. It imports next to nothing, for what it cannot do cannot fail.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable

from synclib.disk.mounts import (
    MNT_DETACH,
    MS_NODEV,
    MS_NOSUID,
    MS_RDONLY,
    UMOUNT_NOFOLLOW,
    mount,
    mount_erofs,
    mounted_on,
    unmount,
)

# How long readers may wait for a worker that does not come to life.
DEADLINE_S = 30.0
_BACKOFF_S = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
_STOP_S = 5.0
_LOOK_FIRST_MS, _LOOK_MS = 10, 1000
_READ_BYTES_MAX = 1 << 20


class Keeper:
    """One mount: the blob at ``blob_directory``, the seq at ``target``.

    ``spawn(device, ready, is_successor)`` starts a worker that inherits both descriptors, writes a byte to ``ready``
    when it answers, and ends when the mount is gone.
    """

    def __init__(
        self,
        blob_directory: bytes,
        image: bytes,
        target: bytes,
        spawn: Callable[[int, int, bool], subprocess.Popen[bytes]],
    ) -> None:
        self._blob_directory, self._image, self._target, self._spawn = blob_directory, image, target, spawn
        self._device = -1
        self._worker: subprocess.Popen[bytes] | None = None
        self._is_told_to_end = False
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.restarts = 0

    def run(self, on_mounted: Callable[[], None]) -> None:
        """Mount, and keep while it is used; then take everything away again. SIGTERM ends it at once.

        What is unmounted may still be used: by files that are open after a lazy unmount, in another mount namespace, as
        a layer of an overlay. All of those have the blob open.
        """
        signal.set_wakeup_fd(self._wake_write)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._mount_blob()
        try:
            self._start_worker(is_successor=False)
            mount_erofs(self._image, self._blob_directory + b"/blob", self._target)
            try:
                on_mounted()
                self._keep(self._is_mounted)
                self._keep(self._is_used)
            finally:
                with contextlib.suppress(OSError):
                    unmount(self._target, MNT_DETACH | UMOUNT_NOFOLLOW)
        finally:
            self._end()

    def _told(self, *_: object) -> None:
        self._is_told_to_end = True

    def _mount_blob(self) -> None:
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,max_read={_READ_BYTES_MAX}"
        mount(b"boxlink", self._blob_directory, b"fuse.boxlink", MS_RDONLY | MS_NOSUID | MS_NODEV, options.encode())

    def _start_worker(self, *, is_successor: bool) -> None:
        """A worker that answers; TimeoutError when none does within the deadline."""
        deadline = time.monotonic() + DEADLINE_S
        for attempt in range(1 << 30):
            time.sleep(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])
            ready, told = os.pipe2(os.O_CLOEXEC)
            try:
                self._worker = self._spawn(self._device, told, is_successor or attempt > 0)
            finally:
                os.close(told)
            try:
                left_s = deadline - time.monotonic()
                if left_s > 0 and select.select([ready], [], [], left_s)[0] and os.read(ready, 1):
                    return
            finally:
                os.close(ready)
            self._stop_worker()
            if self._is_told_to_end or time.monotonic() > deadline:
                raise TimeoutError("no worker came to life")

    def _keep(self, is_wanted: Callable[[], bool]) -> None:
        """Replace workers that die, until it is not wanted any more."""
        with open("/proc/self/mountinfo", "rb") as mounts:
            watch = select.poll()
            watch.register(mounts.fileno(), select.POLLERR | select.POLLPRI)
            watch.register(self._wake_read, select.POLLIN)
            look_ms = _LOOK_FIRST_MS
            while not self._is_told_to_end and is_wanted():
                if self._worker is not None and self._worker.poll() is not None:
                    self.restarts += 1
                    self._start_worker(is_successor=True)
                    continue
                # That a file was closed nobody tells: it is looked for soon, then less and less often.
                watch.poll(look_ms)
                look_ms = min(2 * look_ms, _LOOK_MS)
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)

    def _is_mounted(self) -> bool:
        return bool(mounted_on(self._target))

    def _is_used(self) -> bool:
        """Whether the blob is open; where it is not, it is unmounted."""
        try:
            unmount(self._blob_directory)
        except OSError as error:
            return error.errno == errno.EBUSY
        return False

    def _end(self) -> None:
        """The blob's mount goes, then its worker, which sees that it went; one that does not is killed."""
        self._abort()
        with contextlib.suppress(OSError):
            unmount(self._blob_directory, MNT_DETACH | UMOUNT_NOFOLLOW)
        os.close(self._device)
        if self._worker is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._worker.wait(_STOP_S)
        self._stop_worker()

    def _abort(self) -> None:
        """Whoever still waits for bytes gets an error (fs/fuse/control.c)."""
        with contextlib.suppress(OSError):
            number = os.minor(os.lstat(self._blob_directory).st_dev)
            with open(f"/sys/fs/fuse/connections/{number}/abort", "wb") as file:
                file.write(b"1")

    def _stop_worker(self) -> None:
        if self._worker is not None and self._worker.poll() is None:
            self._worker.kill()
            self._worker.wait()
