"""Where the local driver keeps its images: a directory whose files can be cloned at once, or, where that cannot be had,
one whose files are copied.

A pool on a file system with reflinks (xfs, btrfs) is used as it is. On another one root makes an xfs file system in a
loop image and mounts it inside the pool; it stays mounted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from synclib.disk.atomic import TEMPORARY
from synclib.disk.faults import disk_error, disk_errors
from synclib.disk.mounts import mounted_on
from synclib.errors import Invalid, Unavailable

_FICLONE = 0x40049409  # linux/fs.h
_COMMAND_S = 120.0
_IMAGE_BYTES_MIN = 1 << 30
_IMAGE = "xfs.img"  # of the pool's own file system, where it needs one
_COPY_BYTES = 4 << 20
_MILLISECONDS = re.compile(r"[0-9]{1,6}")
_NO_REFLINK = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL)


class Pool:
    """It is made when something is first made in it: whoever only looks finds nothing, and leaves nothing.

    ``files``: where images are. ``why_copies``: why they are copied whole; empty where they are cloned."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._opened: tuple[Path, str] | None = None
        self._open_if_made()

    @property
    def files(self) -> Path:
        self._open_if_made()
        return self.directory if self._opened is None else self._opened[0]

    @property
    def why_copies(self) -> str:
        self._open_if_made()
        return "" if self._opened is None else self._opened[1]

    def _open_if_made(self) -> None:
        if self._opened is None and ((self.directory / _IMAGE).exists() or (self.directory / "snapshots").is_dir()):
            with self.locked():
                pass

    def first_touch_s(self) -> float:
        """How long the first read of each block of a volume of a snapshot takes: the milliseconds in the file
        ``first_touch_ms``, where somebody has put one; what EBS takes is some 35."""
        try:
            text = (self.directory / "first_touch_ms").read_text()
        except FileNotFoundError:
            return 0.0
        except OSError as error:
            raise disk_error(error) from error
        if not _MILLISECONDS.fullmatch(text.strip()):
            raise Invalid(
                "first_touch_ms holds no number of milliseconds",
                hint="write 35 into it, or remove it",
                path=str(self.directory),
            )
        return int(text) / 1000

    @property
    def is_lazy(self) -> bool:
        return not self.why_copies

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One at a time, of all processes, makes, changes or removes."""
        with disk_errors():
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._opened is None:
                self._opened = self._made()
            yield
        finally:
            os.close(lock)

    def _made(self) -> tuple[Path, str]:
        with disk_errors():
            files, why_copies = _opened(self.directory)
            for part in ("volumes", "snapshots"):
                (files / part).mkdir(exist_ok=True)
                _clean(files / part)
        return files, why_copies

    def make(self, path: Path, size_bytes: int, source: Path | None) -> None:
        """An image of that size: empty, or with what ``source`` holds. It is there whole or not at all."""
        with disk_errors(), tempfile.NamedTemporaryFile(dir=path.parent, suffix=TEMPORARY, delete=False) as file:
            try:
                if source is not None:
                    with source.open("rb") as held:
                        if self.is_lazy:
                            fcntl.ioctl(file.fileno(), _FICLONE, held.fileno())
                        else:
                            _copy(held.fileno(), file.fileno())
                if os.fstat(file.fileno()).st_size < size_bytes:
                    os.ftruncate(file.fileno(), size_bytes)
                os.fsync(file.fileno())
                os.rename(file.name, path)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(file.name)
                raise


def _clean(directory: Path) -> None:
    """What somebody left who was killed at making or removing something; with the lock."""
    known = {path.stem for path in directory.glob("*.json")}
    for path in directory.iterdir():
        if path.suffix == TEMPORARY or (path.suffix in (".img", ".put") and path.stem not in known):
            path.unlink(missing_ok=True)


def _opened(directory: Path) -> tuple[Path, str]:
    """(where images are, why they are copied)."""
    mount = directory / "xfs"
    if mounted_on(os.fsencode(os.path.realpath(mount))):
        return mount, ""
    if _can_clone(directory):
        return directory, ""
    image = directory / _IMAGE
    why = _why_no_xfs()
    if why:
        if image.exists():  # what is in it is not to be begun anew beside it
            raise Unavailable(
                f"the pool's file system is not mounted: {why}",
                hint="begin another with --pool, or have that",
                path=str(image),
            )
        return directory, why
    if not image.exists():
        if any(directory.glob("*/*.json")):  # nor are those that were copied to be lost sight of
            return directory, "it was begun where no file system could be made for it"
        _make_xfs(image)
    mount.mkdir(exist_ok=True)
    run("mount", "-t", "xfs", "-o", "loop,nosuid,nodev,noatime", str(image), str(mount))
    return mount, ""


def _why_no_xfs() -> str:
    if os.geteuid() != 0:
        return "only root can mount an xfs file system"
    lacking = [name for name in ("mkfs.xfs", "losetup", "mount") if shutil.which(name) is None]
    return f"{lacking[0]} is not installed (xfsprogs, util-linux)" if lacking else ""


def _make_xfs(image: Path) -> None:
    """A sparse image of nine tenths of what is free."""
    found = os.statvfs(image.parent)
    size = max(_IMAGE_BYTES_MIN, found.f_bavail * found.f_frsize // 10 * 9)
    temporary = image.with_suffix(TEMPORARY)
    with temporary.open("wb") as file:
        file.truncate(size)
    run("mkfs.xfs", "-q", "-f", "-K", "-m", "reflink=1", str(temporary))
    temporary.rename(image)


def _can_clone(directory: Path) -> bool:
    with tempfile.TemporaryFile(dir=directory) as source, tempfile.TemporaryFile(dir=directory) as target:
        source.write(b"boxlink")
        source.flush()
        try:
            fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
        except OSError as error:
            if error.errno in _NO_REFLINK:
                return False
            raise
        return True


def _copy(source: int, target: int) -> None:
    """What is data, in its place; holes stay holes."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    for start, stop in data_ranges(source, size):
        for at in range(start, stop, _COPY_BYTES):
            os.pwrite(target, os.pread(source, min(_COPY_BYTES, stop - at), at), at)


def data_ranges(file: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file has data (lseek(2))."""
    stop = 0
    while stop < size:
        try:
            start = os.lseek(file, stop, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # none until the end
                return
            raise
        stop = os.lseek(file, start, os.SEEK_HOLE)
        yield start, stop


def run(*words: str) -> str:
    """A command of the system; what it says. Unavailable where it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_COMMAND_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{words[0]} did not run: {error}") from error
    if done.returncode:
        raise Unavailable(f"{words[0]} failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


def loop_devices(image: Path) -> list[Path]:
    """The loop devices that have an image (Documentation/ABI/testing/sysfs-block-loop)."""
    wanted, found = os.path.realpath(image), []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it went meanwhile
            if path.read_text().rstrip("\n") == wanted:
                found.append(Path("/dev") / path.parent.parent.name)
    return sorted(found)
