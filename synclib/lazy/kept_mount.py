"""The mounts that a keeper makes and takes away: EROFS over a FUSE blob, or a FUSE tree alone.

Both have one FUSE connection. Nothing here touches what is in a mount: that may wait for a worker which is not there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from typing import Protocol

from synclib.disk.fuse_mount import mount_fuse, unmount_fuse
from synclib.disk.mounts import (
    MNT_DETACH,
    UMOUNT_NOFOLLOW,
    devices_on,
    fuse_connection,
    mount_erofs_reading_ahead,
    mounted_on,
    put_mount,
    read_ahead_in_fuse,
    unmount,
)


class KeptMount(Protocol):
    """What a keeper keeps. OSError where the kernel refuses; ``hide`` and ``disconnect`` never fail."""

    def connect(self) -> int:
        """Make the connection; its descriptor."""

    def go_on(self) -> None:
        """Take over what another one has connected."""

    def show(self) -> None:
        """Let the seq be seen: a worker answers."""

    def is_shown(self) -> bool:
        """Whether it is mounted where it is read."""

    def is_used(self, device: int) -> bool:
        """Whether what is not shown any more is still in use."""

    def hide(self) -> None:
        """No path leads to it any more."""

    def disconnect(self, *, is_left: bool) -> None:
        """Whoever still waits for bytes gets an error. ``is_left``: what is shown stays, and is an error, too."""


class ErofsMount:
    """The blob, and perhaps the image, in ``blob_directory``; the seq, on both, at ``target``."""

    def __init__(self, blob_directory: bytes, image: bytes, target: bytes) -> None:
        self._blob_directory, self._image, self._target = blob_directory, image, target

    def connect(self) -> int:
        return mount_fuse(self._blob_directory, allow_other=False)

    def go_on(self) -> None:
        pass

    def show(self) -> None:
        blob = self._blob_directory + b"/blob"
        os.stat(blob)  # from then on it is connected
        read_ahead_in_fuse(self._blob_directory)
        mount_erofs_reading_ahead(self._image, blob, self._target)

    def is_shown(self) -> bool:
        return bool(mounted_on(self._target))

    def is_used(self, device: int) -> bool:
        """Whoever uses the seq has the blob open; where nobody has, it is unmounted."""
        try:
            unmount(self._blob_directory)
        except OSError as error:
            return error.errno == errno.EBUSY
        return False

    def hide(self) -> None:
        with contextlib.suppress(OSError):
            unmount(self._target, MNT_DETACH | UMOUNT_NOFOLLOW)

    def disconnect(self, *, is_left: bool) -> None:
        _abort(fuse_connection(self._blob_directory))
        with contextlib.suppress(OSError):
            unmount_fuse(self._blob_directory, is_lazy=True)


class TreeMount:
    """The seq itself, at ``target``."""

    def __init__(self, target: bytes) -> None:
        self._target = target
        self._number: int | None = None  # of the connection

    def connect(self) -> int:
        device = mount_fuse(self._target, allow_other=os.geteuid() == 0)
        self.go_on()
        return device

    def go_on(self) -> None:
        self._number = fuse_connection(self._target)

    def show(self) -> None:
        os.stat(self._target)  # from then on it is connected
        read_ahead_in_fuse(self._target)

    def is_shown(self) -> bool:
        return self._number is not None and fuse_connection(self._target) == self._number

    def is_used(self, device: int) -> bool:
        """The kernel ends the connection when nobody has it open (fs/fuse/dev.c, fuse_dev_poll)."""
        watch = select.poll()
        watch.register(device, 0)
        return not watch.poll(0)

    def hide(self) -> None:
        if self.is_shown():
            with contextlib.suppress(OSError):
                unmount_fuse(self._target, is_lazy=True)

    def disconnect(self, *, is_left: bool) -> None:
        if not is_left:
            self.hide()
        _abort(self._number)


class _Other:
    """Another one, as it is."""

    def __init__(self, kept: KeptMount) -> None:
        self._kept = kept

    def connect(self) -> int:
        return self._kept.connect()

    def go_on(self) -> None:
        self._kept.go_on()

    def show(self) -> None:
        self._kept.show()

    def is_shown(self) -> bool:
        return self._kept.is_shown()

    def is_used(self, device: int) -> bool:
        return self._kept.is_used(device)

    def hide(self) -> None:
        self._kept.hide()

    def disconnect(self, *, is_left: bool) -> None:
        self._kept.disconnect(is_left=is_left)


class PutMount(_Other):
    """Another one, made at ``made_at``, is put in place of what is mounted at ``place``, and shown there. For root."""

    def __init__(self, kept: KeptMount, made_at: bytes, place: bytes) -> None:
        super().__init__(kept)
        self._made_at, self._place = made_at, place

    def show(self) -> None:
        super().show()
        try:
            put_mount(self._made_at, self._place, replaces=bool(mounted_on(self._place)))
        except OSError:
            super().hide()
            raise

    def is_shown(self) -> bool:
        return super().is_shown() and self._device() in devices_on(self._place)

    def is_used(self, device: int) -> bool:
        super().hide()  # it was mounted there, too, to be told by
        return super().is_used(device)

    def hide(self) -> None:
        if self._device() in devices_on(self._place)[-1:]:
            with contextlib.suppress(OSError):
                unmount(self._place, MNT_DETACH | UMOUNT_NOFOLLOW)
        super().hide()

    def _device(self) -> bytes:
        """Of what is mounted where it was made; empty where nothing is."""
        return b"".join(devices_on(self._made_at)[-1:])


class ReplaceableMount(_Other):
    """Another one, which is not shown any more from when the file ``replaced`` is there: what is mounted at the same
    place then is another seq's."""

    def __init__(self, kept: KeptMount, replaced: str) -> None:
        super().__init__(kept)
        self._replaced = replaced

    def is_shown(self) -> bool:
        return super().is_shown() and not os.path.exists(self._replaced)

    def hide(self) -> None:
        if not os.path.exists(self._replaced):
            super().hide()

    def disconnect(self, *, is_left: bool) -> None:
        super().disconnect(is_left=is_left or os.path.exists(self._replaced))


def _abort(number: int | None) -> None:
    """End a connection, whoever uses it (fs/fuse/control.c)."""
    with contextlib.suppress(OSError):
        if number is not None:
            with open(f"/sys/fs/fuse/connections/{number}/abort", "wb") as file:
                file.write(b"1")
