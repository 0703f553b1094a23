"""Serves one blob as one file of a FUSE mount: threads that take requests from /dev/fuse and answer them.

Many readers wait at once, each for its own bytes, so there is a thread for each; the work of a thread is one read(2), a
lookup and one writev(2) where the bytes are here.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import traceback
from collections.abc import Callable

from synclib.core import fuse
from synclib.errors import BoxlinkError, Full
from synclib.lazy.blob import Blob

BLOB_NAME = b"blob"
_BLOB_ID = 2
_FILE_MODE, _TOP_MODE = stat.S_IFREG | 0o400, stat.S_IFDIR | 0o500
THREADS = 64
# What the kernel says when the mount is gone or was aborted.
_ENDED = (errno.ENODEV, errno.ECONNABORTED, errno.EBADF)
_AGAIN = (errno.ENOENT, errno.EINTR, errno.EAGAIN)


class FuseServer:
    """Answers the requests on ``device``, an open /dev/fuse, until the mount is gone.

    ``size``: of the blob. ``timeout_s``: after which the kernel itself gives up a request. ``on_error``: told what went
    wrong with a read, which the reader sees as EIO.
    """

    def __init__(
        self, device: int, blob: Blob, size: int, timeout_s: int, on_error: Callable[[BoxlinkError], None]
    ) -> None:
        self._device, self._blob, self._size, self._timeout_s = device, blob, size, timeout_s
        self._on_error = on_error
        self._busy = 0  # requests that were taken and are not answered
        self._is_retiring = self._is_over = False
        self._turn = threading.Condition()

    def take_over(self) -> None:
        """Ask for what a server before this one took and did not answer."""
        os.write(self._device, fuse.resend_notice())

    def serve(self) -> None:
        """Returns when the mount is gone."""
        threads = [threading.Thread(target=self._serve_one, daemon=True) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def retire(self, seconds: float) -> None:
        """Take no more requests, as far as that can be, and wait until those that were taken are answered. What is
        taken from then on, or not answered in time, is for the next server to ask for."""
        with self._turn:
            self._is_retiring = True
            self._turn.wait_for(lambda: self._busy == 0, seconds)
            self._is_over = True

    def _begin(self) -> bool:
        with self._turn:
            self._busy += 1
            return not self._is_over

    def _end(self) -> None:
        with self._turn:
            self._busy -= 1
            if self._is_retiring:
                self._turn.notify_all()

    def _serve_one(self) -> None:
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
            try:
                self._answer(request, buffer, length)
            except OSError as error:
                # ENOENT: whoever asked was killed meanwhile.
                if error.errno in _ENDED:
                    return
                if error.errno not in _AGAIN:
                    raise
            finally:
                self._end()
            if request.opcode == fuse.DESTROY or self._is_retiring:
                return

    def _answer(self, request: fuse.Request, buffer: bytearray, length: int) -> None:
        if request.opcode == fuse.READ:
            self._read(request, *fuse.read_range(buffer))
        else:
            os.write(self._device, self._small_answer(request, buffer, length))

    def _read(self, request: fuse.Request, offset: int, length: int) -> None:
        length = max(min(length, self._size - offset), 0)
        try:
            data = self._blob.read(offset, length) if length else b""
        except BoxlinkError as error:
            self._on_error(error)
            number = errno.ENOSPC if isinstance(error, Full) else errno.EIO
            os.write(self._device, fuse.error(request.unique, number))
        except Exception:  # a bug of ours: whoever reads is answered all the same, and the next one too
            traceback.print_exc()
            os.write(self._device, fuse.error(request.unique, errno.EIO))
        else:
            os.writev(self._device, [fuse.data_header(request.unique, len(data)), data])

    def _small_answer(self, request: fuse.Request, buffer: bytearray, length: int) -> bytes:
        unique, node = request.unique, request.node_id
        match request.opcode:
            case fuse.INIT:
                return fuse.init_answer(buffer, unique, self._timeout_s)
            case fuse.LOOKUP if node == fuse.ROOT_ID and fuse.name_of(buffer, length) == BLOB_NAME:
                return fuse.entry_answer(unique, _BLOB_ID, self._size, _FILE_MODE)
            case fuse.LOOKUP:
                return fuse.error(unique, errno.ENOENT)
            case fuse.GETATTR if node == fuse.ROOT_ID:
                return fuse.attr_answer(unique, node, 0, _TOP_MODE)
            case fuse.GETATTR:
                return fuse.attr_answer(unique, node, self._size, _FILE_MODE)
            case fuse.OPEN if node == _BLOB_ID:
                return fuse.open_answer(unique)
            case fuse.RELEASE | fuse.DESTROY | fuse.ACCESS:
                return fuse.answer(unique)
            case fuse.STATFS:
                return fuse.statfs_answer(unique, self._size)
            case _:
                return fuse.error(unique, errno.ENOSYS)
