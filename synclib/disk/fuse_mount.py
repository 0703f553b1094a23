"""Mounting a FUSE file system: by root itself, by others with the help of fusermount3 (of Debian's package fuse3)."""

from __future__ import annotations

import array
import errno
import os
import shutil
import socket
import subprocess

from synclib.disk.mounts import MNT_DETACH, MS_NODEV, MS_NOSUID, MS_RDONLY, UMOUNT_NOFOLLOW, mount, unmount

READ_BYTES_MAX = 1 << 20
_KIND = "boxlink"
_HELPER = "fusermount3"
_HELPER_S = 20.0


def mount_fuse(target: bytes, *, allow_other: bool) -> int:
    """Mount read-only on ``target``; the descriptor that requests come from. OSError when it is refused.

    ``allow_other``: others than who mounts may enter; permissions are then the kernel's to check.
    """
    if os.geteuid() == 0:
        return _mount_as_root(target, allow_other=allow_other)
    return _mount_by_helper(target)


def unmount_fuse(target: bytes, *, is_lazy: bool = False) -> None:
    """OSError when it is in use, unless ``is_lazy``: then it is gone for all who do not have it open."""
    if os.geteuid() == 0:
        unmount(target, UMOUNT_NOFOLLOW | (MNT_DETACH if is_lazy else 0))
        return
    lazily = ["-z"] if is_lazy else []
    done = subprocess.run(
        [_helper(), "-u", *lazily, "--", os.fsdecode(target)],
        capture_output=True,
        text=True,
        check=False,
        timeout=_HELPER_S,
    )
    if done.returncode:
        number = errno.EBUSY if "busy" in done.stderr else errno.EINVAL
        raise OSError(number, done.stderr.strip() or f"{_HELPER} failed", os.fsdecode(target))


def _mount_as_root(target: bytes, *, allow_other: bool) -> int:
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    others = ",allow_other,default_permissions" if allow_other else ""
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,max_read={READ_BYTES_MAX}{others}"
    try:
        mount(_KIND.encode(), target, f"fuse.{_KIND}".encode(), MS_RDONLY | MS_NOSUID | MS_NODEV, options.encode())
    except OSError:
        os.close(device)
        raise
    return device


def _mount_by_helper(target: bytes) -> int:
    """The helper mounts, and passes the descriptor through a socket (libfuse, util/fusermount.c)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            options = f"ro,nosuid,nodev,fsname={_KIND},subtype={_KIND},max_read={READ_BYTES_MAX},default_permissions"
            helper = subprocess.Popen(
                [_helper(), "-o", options, "--", os.fsdecode(target)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=(theirs.fileno(),),
            )
        ours.settimeout(_HELPER_S)
        descriptor = _received(ours)
        try:
            _, said = helper.communicate(timeout=_HELPER_S)
        except subprocess.TimeoutExpired:
            helper.kill()
            said = "it does not end"
    if descriptor < 0:
        raise OSError(errno.EPERM, said.strip() or f"{_HELPER} failed", os.fsdecode(target))
    os.set_inheritable(descriptor, False)
    return descriptor


def _received(ours: socket.socket) -> int:
    numbers = array.array("i")
    try:
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(numbers.itemsize))
    except TimeoutError:
        return -1
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(data[: numbers.itemsize])
    return numbers[0] if numbers else -1


def _helper() -> str:
    found = shutil.which(_HELPER)
    if found is None:
        raise OSError(errno.ENOENT, f"{_HELPER} is not installed (package fuse3), and only root can mount without it")
    return found
