"""Serves a FUSE mount: threads take requests from /dev/fuse and answer them.

The work of a thread that serves is one read(2), a lookup and one writev(2): it never waits for the store. A request for
what is not here it hands to one that does, and takes the next; so what is here is read at once, however many wait. Who
waits is answered within a deadline, whatever it is that does not come: bytes, where they are, or a name.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from synclib.clock import Clock, SystemClock
from synclib.core import fuse
from synclib.errors import BoxlinkError, Full, Unavailable
from synclib.lazy.not_here import NotHereError, never_wait
from synclib.lazy.owed import Owed, OwedAnswers, SlowErrors

_FIRST_ID = 2
_FILE_MODE, _TOP_MODE = stat.S_IFREG | 0o400, stat.S_IFDIR | 0o500
THREADS = 64
# Those that wait, at most: they come when they are needed. Who comes when all of them wait is next when one is free, in
# the order of coming, and has no longer deadline for it.
WAITERS_MAX = 256
DEADLINE_S = 60.0
_LOOK_S = 1.0  # for whose deadline is over
# What the kernel says when the mount is gone or was aborted.
_ENDED = (errno.ENODEV, errno.ECONNABORTED, errno.EBADF)
_AGAIN = (errno.ENOENT, errno.EINTR, errno.EAGAIN)


Answer = Sequence[bytes | memoryview]  # what is written at once


class Handler(Protocol):
    """What is in a mount. Safe between threads."""

    def answer(self, request: fuse.Request, buffer: bytearray | bytes, length: int) -> Answer:
        """The whole answer; any BoxlinkError says that it cannot be had."""


class FuseServer:
    """Answers the requests on ``device``, an open /dev/fuse, until the mount is gone.

    ``timeout_s``: after which the kernel itself gives up a request. ``on_error``: told what went wrong, which the
    reader sees as EIO.
    """

    def __init__(
        self,
        device: int,
        handler: Handler,
        timeout_s: int,
        on_error: Callable[[BoxlinkError], None],
        clock: Clock | None = None,
    ) -> None:
        self._device, self._handler, self._timeout_s, self._on_error = device, handler, timeout_s, on_error
        self._clock = clock or SystemClock()
        self._busy = 0  # requests that were taken and are not answered
        self._taken = self._seen_taken = 0  # ever; when they were looked at last
        # What a server before this one left: those of its requests that were taken and are not answered; whether all
        # were taken, which the kernel gives out first.
        self._is_catching_up = self._has_all_left = False
        self._left: set[int] = set()
        self._is_retiring = self._is_over = False
        self._turn = threading.Condition()
        self._owed, self._slow_errors = OwedAnswers(), SlowErrors()
        self._waiters = ThreadPoolExecutor(WAITERS_MAX, thread_name_prefix="wait")
        self._has_ended = threading.Event()

    def take_over(self) -> None:
        """Ask for what a server before this one took and did not answer."""
        self._is_catching_up = True
        os.write(self._device, fuse.resend_notice())

    def is_taking(self) -> bool:
        """Whether what the kernel asks is taken, as far as that can be seen since this was called last; by one
        thread."""
        seen, self._seen_taken = self._seen_taken, self._taken
        return self._seen_taken != seen or not self._is_asked()

    def has_caught_up(self) -> bool:
        """Whether all is answered that a server before this one left."""
        if self._is_catching_up and (self._has_all_left or not self._is_asked()) and not self._left:
            self._is_catching_up = False
        return not self._is_catching_up

    def _is_asked(self) -> bool:
        """Whether there is a request that nobody has taken."""
        watch = select.poll()
        watch.register(self._device, select.POLLIN)
        return bool(watch.poll(0))

    def serve(self) -> None:
        """Returns when the mount is gone."""
        threads = [threading.Thread(target=self._serve_one, daemon=True) for _ in range(THREADS)]
        late = threading.Thread(target=self._give_up_late, name="deadline", daemon=True)
        for thread in (*threads, late):
            thread.start()
        for thread in threads:
            thread.join()
        with self._turn:
            # Whoever waits is still owed an answer, of what is closed when this returns.
            self._turn.wait_for(lambda: not self._is_retiring or self._busy == 0 or self._is_over)
        self._has_ended.set()
        late.join()
        self._waiters.shutdown(wait=False, cancel_futures=True)

    def retire(self, seconds: float) -> None:
        """Take no more requests, as far as that can be, and wait until those that were taken are answered. What is
        taken from then on, or not answered in time, is for the next server to ask for."""
        with self._turn:
            self._is_retiring = True
            self._turn.wait_for(lambda: self._busy == 0, seconds)
            self._is_over = True
            self._turn.notify_all()

    def _begin(self) -> bool:
        with self._turn:
            self._busy += 1
            self._taken += 1
            return not self._is_over

    def _note_left(self, request: fuse.Request) -> None:
        with self._turn:
            if request.is_resent:
                self._left.add(request.unique)
            else:
                self._has_all_left = True

    def _end(self, unique: int) -> None:
        with self._turn:
            self._busy -= 1
            if self._left:
                self._left.discard(unique)
            if self._is_retiring:
                self._turn.notify_all()

    # The threads that serve.

    def _serve_one(self) -> None:
        never_wait()
        buffer = bytearray(fuse.REQUEST_BYTES_MAX)
        while True:
            try:
                length = os.readv(self._device, [buffer])
            except OSError as error:
                if error.errno in _AGAIN:
                    continue
                if error.errno in _ENDED:
                    return
                raise
            request = fuse.parse_request(buffer, length)
            if request.opcode in fuse.SILENT:
                continue
            if not self._begin():
                return
            if self._is_catching_up:
                self._note_left(request)
            try:
                self._send(self._answer(request, buffer, length))
            except NotHereError:
                self._hand_over(Owed(request, bytes(memoryview(buffer)[:length]), self._clock.monotonic()))
            except OSError as error:
                self._end(request.unique)
                if error.errno in _ENDED:
                    return
                raise
            else:
                self._end(request.unique)
            if request.opcode == fuse.DESTROY or self._is_retiring:
                return

    def _answer(
        self, request: fuse.Request, buffer: bytearray | bytes, length: int, owed: Owed | None = None
    ) -> Answer:
        match request.opcode:
            case fuse.INIT:
                return [fuse.init_answer(buffer, request.unique, self._timeout_s)]
            case fuse.RELEASE | fuse.RELEASEDIR | fuse.DESTROY | fuse.ACCESS:
                return [fuse.answer(request.unique)]
        try:
            return self._handler.answer(request, buffer, length)
        except NotHereError:
            raise
        except BoxlinkError as error:
            self._on_error(error)
            if owed is not None and error.is_retryable:
                self._slow_errors.add(owed, self._clock.monotonic())
            return [fuse.error(request.unique, errno.ENOSPC if isinstance(error, Full) else errno.EIO)]
        except Exception:  # a bug of ours: whoever reads is answered all the same, and the next one too
            traceback.print_exc()
            return [fuse.error(request.unique, errno.EIO)]

    def _send(self, answer: Answer) -> None:
        try:
            os.writev(self._device, answer)
        except OSError as error:
            # ENOENT: whoever asked was killed meanwhile.
            if error.errno not in _AGAIN:
                raise

    # Those that wait. A request that was handed over is busy until it is answered, by whomever.

    def _hand_over(self, owed: Owed) -> None:
        if self._owed.add(owed):
            self._end(owed.request.unique)  # it was asked for again: one answer is owed, to the later
        if number := self._slow_errors.number(owed):
            self._settle(owed, [fuse.error(owed.request.unique, number)])
        else:
            self._waiters.submit(self._wait_for, owed)

    def _wait_for(self, owed: Owed) -> None:
        if self._owed.is_owed(owed):
            self._settle(owed, self._answer(owed.request, owed.data, len(owed.data), owed))

    def _give_up_late(self) -> None:
        """Whoever has waited for long enough gets an error, whatever is still waited for."""
        while not self._has_ended.wait(_LOOK_S):
            now_s = self._clock.monotonic()
            for owed in self._owed.take_late(now_s - DEADLINE_S):
                self._on_error(Unavailable("the store did not answer in time"))
                self._slow_errors.add(owed, now_s)
                self._send_last(owed, [fuse.error(owed.request.unique, errno.EIO)])

    def _settle(self, owed: Owed, answer: Answer) -> None:
        """Answer it, if nobody has."""
        if self._owed.take(owed):
            self._send_last(owed, answer)

    def _send_last(self, owed: Owed, answer: Answer) -> None:
        try:
            self._send(answer)
        except OSError as error:
            if error.errno not in _ENDED:
                raise
        finally:
            self._end(owed.request.unique)


@dataclass(frozen=True)
class ServedFile:
    """``size`` in bytes; ``read(position, length)`` is asked for nothing beyond it."""

    name: bytes
    size: int
    read: Callable[[int, int], bytes]

    @property
    def attributes(self) -> fuse.Attributes:
        return fuse.Attributes(self.size, _FILE_MODE)


class ServedFiles:
    """A mount of a few files: the blob, and perhaps an image."""

    def __init__(self, files: list[ServedFile]) -> None:
        self._files = dict(enumerate(files, _FIRST_ID))
        self._ids = {file.name: node for node, file in self._files.items()}

    def answer(self, request: fuse.Request, buffer: bytearray | bytes, length: int) -> Answer:
        file = self._files.get(request.node_id)
        if request.opcode == fuse.READ and file is not None:
            offset, wanted = fuse.read_range(buffer)
            wanted = max(min(wanted, file.size - offset), 0)
            data = file.read(offset, wanted) if wanted else b""
            return [fuse.data_header(request.unique, len(data)), data]
        return [self._small(request, file, buffer, length)]

    def _small(self, request: fuse.Request, file: ServedFile | None, buffer: bytearray | bytes, length: int) -> bytes:
        unique, node = request.unique, request.node_id
        match request.opcode:
            case fuse.LOOKUP:
                found = self._ids.get(fuse.name_of(buffer, length)) if node == fuse.ROOT_ID else None
                if found is None:
                    return fuse.error(unique, errno.ENOENT)
                return fuse.entry_answer(unique, found, self._files[found].attributes)
            case fuse.GETATTR if node == fuse.ROOT_ID:
                return fuse.attr_answer(unique, node, fuse.Attributes(0, _TOP_MODE))
            case fuse.GETATTR if file is not None:
                return fuse.attr_answer(unique, node, file.attributes)
            case fuse.OPEN if file is not None:
                return fuse.open_answer(unique)
            case fuse.STATFS:
                return fuse.statfs_answer(unique, sum(held.size for held in self._files.values()))
            case _:
                return fuse.error(unique, errno.ENOSYS)
