"""The word that a seq is wholly in the cache: then it is mounted straight on the cache's file, and nothing runs.

It is written when every extent was found right and the file is durable, and says what the file's inode was then.
Whoever writes to the file afterwards, be it for another seq, makes the word void: the next mount looks at every extent
again (docs/decisions/0008-native-mounts.md).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from synclib.core.frame import DECODE_ERRORS
from synclib.disk.atomic import write_atomic

SUFFIX = ".hydrated"


class Stamp(msgspec.Struct, frozen=True):
    """What changes when a file is written to, replaced, cut or punched (inode(7))."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def stamp_of(status: os.stat_result) -> Stamp:
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class _Word(msgspec.Struct, frozen=True):
    digest: str
    stamp: Stamp


def write_word(image: Path, digest: str, stamp: Stamp) -> None:
    """Say that the seq of an image is whole in the cache of this stamp. The image is made durable first: nobody looks
    at it again before it is mounted."""
    with open(image, "rb") as file:
        os.fsync(file.fileno())
    write_atomic(image.with_suffix(SUFFIX), msgspec.json.encode(_Word(digest, stamp)))


def is_hydrated(image: Path, digest: str, blob: Path) -> bool:
    """Whether the seq of an image is whole in the file ``blob``, and nobody has touched that since it was said."""
    try:
        word = msgspec.json.decode(image.with_suffix(SUFFIX).read_bytes(), type=_Word)
        return word.digest == digest and word.stamp == stamp_of(os.stat(blob))
    except (OSError, *DECODE_ERRORS):
        return False


@contextlib.contextmanager
def native_lock(cache: Path) -> Iterator[None]:
    """For who mounts on a cache's file or takes bytes out of it, with what he looks at before: the one or the other."""
    lock = os.open(cache / "native.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def note_native(cache: Path) -> None:
    """Say, under the lock, that a seq is about to be mounted on the cache's file."""
    write_atomic(cache / "native", _boot_id())


def was_native(cache: Path) -> bool:
    """Whether something may be mounted on the cache's file: then no byte may be taken out of it. A mount lives on after
    it was unmounted, in files that are open and in other namespaces, so this holds until the machine starts anew."""
    try:
        return (cache / "native").read_bytes() == _boot_id()
    except FileNotFoundError:
        return False


def _boot_id() -> bytes:
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
