"""mount(2), umount2(2), open_tree(2) and move_mount(2), which Python does not have."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]

_OPEN_TREE, _MOVE_MOUNT = 428, 429  # the same on every architecture
_AT_FDCWD = -100
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_BENEATH = 0x4, 0x200

# A request by way of FUSE costs some 100 us whatever its size; the kernel's own 128 KiB make eight of what is one.
READ_AHEAD_KB = 1024
_BDI = Path("/sys/class/bdi")

MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4
MNT_FORCE, MNT_DETACH, UMOUNT_NOFOLLOW = 1, 2, 8


def mount(source: bytes, target: bytes, kind: bytes, flags: int, data: bytes) -> None:
    """mount(2); OSError with the target when the kernel refuses."""
    if _libc.mount(source, target, kind, flags, data):
        raise _error(target)


def unmount(target: bytes, flags: int = UMOUNT_NOFOLLOW) -> None:
    """umount2(2); OSError with the target when the kernel refuses."""
    if _libc.umount2(target, flags):
        raise _error(target)


def mount_erofs(image: bytes, device: bytes, target: bytes) -> None:
    """Mount an image whose files' bytes are in ``device``, a file; read-only, without devices and setuid programs.

    By mount(2) itself: mount(8) would put a loop device between.
    """
    # By way of a descriptor: the options' commas are no part of any path.
    directory = os.open(os.path.dirname(device), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        option = b"device=/proc/self/fd/%d/%s" % (directory, os.path.basename(device))
        mount(image, target, b"erofs", MS_RDONLY | MS_NOSUID | MS_NODEV, option)
    finally:
        os.close(directory)


def mount_erofs_reading_ahead(image: bytes, device: bytes, target: bytes) -> None:
    """As :func:`mount_erofs`; who reads a file on has READ_AHEAD_KB of it before he asks (a file's is that of its file
    system when it is opened)."""
    before = _erofs_bdis()
    mount_erofs(image, device, target)
    for name in _erofs_bdis() - before:
        _set_read_ahead(name)


def read_ahead_in_fuse(target: bytes) -> None:
    """Of files that are opened in a FUSE mount of ours from now on, which has to be connected: what it answers to INIT
    may only lessen it."""
    number = fuse_connection(target)
    if number is not None:
        _set_read_ahead(f"0:{number}")


def _erofs_bdis() -> set[str]:
    with contextlib.suppress(OSError):
        return {name for name in os.listdir(_BDI) if name.startswith("erofs-")}
    return set()


def _set_read_ahead(bdi: str) -> None:
    """Where that may be set (Documentation/ABI/testing/sysfs-class-bdi); all works without."""
    with contextlib.suppress(OSError):
        (_BDI / bdi / "read_ahead_kb").write_text(str(READ_AHEAD_KB))


def mount_overlay(lower: bytes, upper: bytes, work: bytes, target: bytes) -> None:
    """Mount ``lower`` with what is written, which goes to ``upper``; ``work`` is an empty directory beside that."""
    for path in (lower, upper, work):
        if any(character in path for character in b",:\\"):
            raise OSError(errno.EINVAL, "overlayfs has no such names", os.fsdecode(path))
    data = b"lowerdir=%s,upperdir=%s,workdir=%s" % (lower, upper, work)
    mount(b"boxlink", target, b"overlay", MS_NOSUID | MS_NODEV, data)


def put_mount(source: bytes, target: bytes, *, replaces: bool) -> None:
    """Put what is mounted on ``source`` on ``target`` too, at once: whoever opens a path sees what was there before, or
    this. ``replaces``: in place of what is mounted there, which stays with those who have it open (Linux 6.5)."""
    tree = _libc.syscall(_OPEN_TREE, _AT_FDCWD, source, _OPEN_TREE_CLONE | os.O_CLOEXEC)
    if tree < 0:
        raise _error(source)
    try:
        flags = _MOVE_MOUNT_F_EMPTY_PATH | (_MOVE_MOUNT_BENEATH if replaces else 0)
        if _libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, target, flags) < 0:
            raise _error(target)
    finally:
        os.close(tree)
    if replaces:
        unmount(target, MNT_DETACH | UMOUNT_NOFOLLOW)


def mounts_below(directory: Path) -> list[str]:
    """The places inside a directory (a real path) on which something is mounted."""
    top = escaped(os.fsencode(directory)) + b"/"
    with open("/proc/self/mountinfo", "rb") as file:
        places = [line.split(b" ")[4] for line in file]
    return [os.fsdecode(place) for place in places if place.startswith(top)]


def mounted_on(target: bytes) -> list[tuple[bytes, bytes]]:
    """(type, options of the file system) of what is mounted on a path, the lowest first (proc_pid_mountinfo(5))."""
    wanted = escaped(target)
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            words = line.split(b" ")
            if words[4] == wanted:
                at = words.index(b"-")
                found.append((words[at + 1], words[at + 3].strip()))
    return found


def devices_on(target: bytes) -> list[bytes]:
    """The device (major:minor) of each file system that is mounted on a path, the lowest first: whatever has the same
    is the same (proc_pid_mountinfo(5))."""
    wanted = escaped(target)
    with open("/proc/self/mountinfo", "rb") as file:
        return [words[2] for words in (line.split(b" ") for line in file) if words[4] == wanted]


def fuse_connection(target: bytes) -> int | None:
    """The number of the FUSE connection behind what is on top at a path (proc_pid_mountinfo(5): the device's minor);
    None where that is no FUSE mount of ours. The mount is not touched."""
    wanted = escaped(target)
    found: int | None = None
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            words = line.split(b" ")
            if words[4] == wanted:
                is_ours = words[words.index(b"-") + 1] == b"fuse.boxlink"
                found = int(words[2].partition(b":")[2]) if is_ours else None
    return found


def escaped(path: bytes) -> bytes:
    """A path as it stands in mountinfo: blanks and the like in octal."""
    for character in b"\\ \t\n":
        path = path.replace(bytes([character]), b"\\%03o" % character)
    return path


def _error(path: bytes) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), os.fsdecode(path))
