"""Serves a blob, and perhaps an image, as files of a FUSE mount: threads take requests from /dev/fuse and answer them.

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
from dataclasses import dataclass

from synclib.core import fuse
from synclib.errors import BoxlinkError, Full

_FIRST_ID = 2
_FILE_MODE, _TOP_MODE = stat.S_IFREG | 0o400, stat.S_IFDIR | 0o500
THREADS = 64
# What the kernel says when the mount is gone or was aborted.
_ENDED = (errno.ENODEV, errno.ECONNABORTED, errno.EBADF)
_AGAIN = (errno.ENOENT, errno.EINTR, errno.EAGAIN)


@dataclass(frozen=True)
class ServedFile:
    """``size`` in bytes; ``read(position, length)`` is asked for nothing beyond it."""

    name: bytes
    size: int
    read: Callable[[int, int], bytes]


class FuseServer:
    """Answers the requests on ``device``, an open /dev/fuse, until the mount is gone.

    ``files``: what is in the mount. ``timeout_s``: after which the kernel itself gives up a request. ``on_error``: told
    what went wrong with a read, which the reader sees as EIO.
    """

    def __init__(
        self, device: int, files: list[ServedFile], timeout_s: int, on_error: Callable[[BoxlinkError], None]
    ) -> None:
        self._device, self._timeout_s, self._on_error = device, timeout_s, on_error
        self._files = dict(enumerate(files, _FIRST_ID))
        self._ids = {file.name: node for node, file in self._files.items()}

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
            try:
                self._answer(request, buffer, length)
            except OSError as error:
                # ENOENT: whoever asked was killed meanwhile.
                if error.errno in _ENDED:
                    return
                if error.errno not in _AGAIN:
                    raise
            if request.opcode == fuse.DESTROY:
                return

    def _answer(self, request: fuse.Request, buffer: bytearray, length: int) -> None:
        if request.opcode == fuse.READ:
            self._read(request, self._files.get(request.node_id), *fuse.read_range(buffer))
        else:
            os.write(self._device, self._small_answer(request, buffer, length))

    def _read(self, request: fuse.Request, file: ServedFile | None, offset: int, length: int) -> None:
        if file is None:
            os.write(self._device, fuse.error(request.unique, errno.EISDIR))
            return
        length = max(min(length, file.size - offset), 0)
        try:
            data = file.read(offset, length) if length else b""
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
        file = self._files.get(node)
        match request.opcode:
            case fuse.INIT:
                return fuse.init_answer(buffer, unique, self._timeout_s)
            case fuse.LOOKUP:
                found = self._ids.get(fuse.name_of(buffer, length)) if node == fuse.ROOT_ID else None
                if found is None:
                    return fuse.error(unique, errno.ENOENT)
                return fuse.entry_answer(unique, found, self._files[found].size, _FILE_MODE)
            case fuse.GETATTR if node == fuse.ROOT_ID:
                return fuse.attr_answer(unique, node, 0, _TOP_MODE)
            case fuse.GETATTR if file is not None:
                return fuse.attr_answer(unique, node, file.size, _FILE_MODE)
            case fuse.OPEN if file is not None:
                return fuse.open_answer(unique)
            case fuse.RELEASE | fuse.DESTROY | fuse.ACCESS:
                return fuse.answer(unique)
            case fuse.STATFS:
                return fuse.statfs_answer(unique, sum(held.size for held in self._files.values()))
            case _:
                return fuse.error(unique, errno.ENOSYS)
