"""mount(2) and umount2(2), which Python does not have."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]

MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4
MNT_FORCE, MNT_DETACH, UMOUNT_NOFOLLOW = 1, 2, 8


def mount(source: bytes, target: bytes, kind: bytes, flags: int, data: bytes) -> None:
    """mount(2); OSError with the target when the kernel refuses."""
    if _libc.mount(source, target, kind, flags, data):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(target))


def unmount(target: bytes, flags: int = UMOUNT_NOFOLLOW) -> None:
    """umount2(2); OSError with the target when the kernel refuses."""
    if _libc.umount2(target, flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(target))


def mount_erofs(image: bytes, device: bytes, target: bytes) -> None:
    """Mount an image whose files' bytes are in ``device``, a file; read-only, without devices and setuid programs.

    By mount(2) itself: mount(8) would put a loop device between.
    """
    mount(image, target, b"erofs", MS_RDONLY | MS_NOSUID | MS_NODEV, b"device=" + device)
