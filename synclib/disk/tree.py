"""A dataset's directory on disk, written so that no name leads outside it (I9) and no file is ever torn.

Every directory is opened component by component without following symlinks; every file is written without a name (or,
where the file system cannot do that, under one in ``.boxlink/tmp``), given its mode and time, and only then its name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable

from blake3 import blake3

from synclib.core.entry import Entry, Kind, content_id
from synclib.core.names import STATE_DIRECTORY
from synclib.core.zeros import is_zeros
from synclib.disk.extras import has_extras, owner_of, set_xattrs
from synclib.disk.faults import full_disk_is_an_error, raise_if_full
from synclib.errors import Corrupt, Invalid

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_UNNAMED = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
# A file system that has no such names says one of the last three, also of what is to be looked up.
_NOWHERE = (errno.ENOENT, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
_DIRECTORIES_KEPT = 64
# Temporary files that the next restore may use: of large files, and those that a change moves.
PART, SEED = b"part-", b"seed-"
_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
# A smaller file is copied as fast.
_CLONE_BYTES_MIN = 128 << 10
TEMPORARY = os.path.join(STATE_DIRECTORY, "tmp").encode()


class InTheWay(Exception):
    """Something that is not ours stands where an entry belongs."""


class Tree:
    """One process's hold on a dataset's directory. Not safe between threads."""

    def __init__(self, top: bytes) -> None:
        self.top = top
        self._root = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open: OrderedDict[bytes, int] = OrderedDict()
        # Most entries lie in the directory of the one before them.
        self._latest_path = b""
        self._latest: int | None = None
        self._absent: bytes | None = None
        self._count = 0
        self._has_clones = True
        self.is_root = os.geteuid() == 0
        self.problems: list[tuple[bytes, str]] = []  # (path, reason) of what was made, but for what is said of it
        # Names in /proc lead from a descriptor to a name; without it files are written under names.
        self._has_unnamed = os.path.isdir("/proc/self/fd")

    def close(self) -> None:
        self.forget()
        os.close(self._root)

    def forget(self) -> None:
        """Close the directories that are kept open."""
        self._latest = None
        while self._open:
            os.close(self._open.popitem()[1])

    def directory(self, path: bytes) -> int:
        """A descriptor of a directory below the top; Corrupt where a component is no directory."""
        if path == self._latest_path and self._latest is not None:
            return self._latest
        self._latest = None
        self._latest_path, self._latest = path, self._find(path)
        return self._latest

    def _find(self, path: bytes) -> int:
        kept, rest = path, list[bytes]()
        while kept and kept not in self._open:
            kept, _, name = kept.rpartition(b"/")
            rest.append(name)
        descriptor = self._root
        if kept:
            self._open.move_to_end(kept)
            descriptor = self._open[kept]
        for name in reversed(rest):
            kept = kept + b"/" + name if kept else name
            try:
                descriptor = os.open(name, _OPEN_DIRECTORY, dir_fd=descriptor)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise Corrupt(
                        "a path leads through something that is no directory", path=os.fsdecode(path)
                    ) from error
                raise
            self._open[kept] = descriptor
            if len(self._open) > _DIRECTORIES_KEPT:
                os.close(self._open.popitem(last=False)[1])
        return descriptor

    def lstat(self, entry: Entry) -> os.stat_result | None:
        """What stands at an entry's path; None when nothing does."""
        if entry.directory == self._absent:
            return None
        try:
            parent = self.directory(entry.directory)
        except (OSError, Corrupt) as error:
            if not _is_nowhere(error):
                raise
            # No parent, or one that is no directory (yet): whatever is there, it is not this path. The next entries
            # are mostly of the same directory.
            self._absent = entry.directory
            return None
        try:
            return os.stat(entry.name, dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            if not _is_nowhere(error):
                raise
            return None

    def readlink(self, entry: Entry) -> bytes:
        return os.readlink(entry.name, dir_fd=self.directory(entry.directory))

    def open_file(self, entry: Entry) -> int:
        """A descriptor to read what stands at a file's path; OSError when that is no file."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(entry.name, flags, dir_fd=self.directory(entry.directory))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is no file", entry.name)
        return descriptor

    def make_directory(self, entry: Entry) -> None:
        """A directory with at least the owner's rights, so that it can be filled; its mode comes last."""
        self._absent = None
        parent = self.directory(entry.directory)
        for _ in range(2):
            try:
                os.mkdir(entry.name, 0o700, dir_fd=parent)
                break
            except FileExistsError:
                found = os.stat(entry.name, dir_fd=parent, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    return
                os.unlink(entry.name, dir_fd=parent)
        self.set_mode(Entry(entry.directory, entry.name, Kind.DIRECTORY, entry.mode | 0o700))

    def open_up(self, path: bytes) -> int | None:
        """Let the owner write into a directory, if it can be had; returns the mode it had where that was changed."""
        if not path:
            return None
        try:
            descriptor = self.directory(path)
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            if mode & 0o300 == 0o300:
                return None
            os.fchmod(descriptor, mode | 0o700)
        except (OSError, Corrupt) as error:
            if not isinstance(error, PermissionError) and not _is_nowhere(error):
                raise
            # What is to be written there will say why it cannot.
            return None
        return mode

    def label(self, descriptor: int, entry: Entry) -> None:
        """Give an open file or directory its owner, mode and attributes, a file its time.

        In this order: a change of owner takes setuid bits and file capabilities away. An attribute that cannot be set
        is a problem, and no reason to do without the file.
        """
        if entry.extra:
            owner = owner_of(entry)
            if owner is not None and self.is_root:
                self._try(entry, lambda: os.fchown(descriptor, *owner))
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != entry.mode:
            os.fchmod(descriptor, entry.mode)
        if entry.extra and (problem := set_xattrs(descriptor, entry, self.is_root)):
            self.problems.append((entry.path, problem))
        if entry.kind == Kind.FILE:
            os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))

    def _try(self, entry: Entry, change: Callable[[], None]) -> None:
        try:
            change()
        except OSError as error:
            self.problems.append((entry.path, error.strerror or str(error)))

    def has_extras(self, entry: Entry, found: os.stat_result) -> bool:
        """Whether what stands at an entry's path has its owner and attributes, as far as they can be set here."""
        if not entry.extra:
            return True
        return has_extras(self._proc_path(entry.name, self.directory(entry.directory)), entry, found, self.is_root)

    @staticmethod
    def _proc_path(name: bytes, directory: int) -> bytes:
        """A path that leads through a directory's descriptor, for calls that take no descriptor (proc(5))."""
        return b"/proc/self/fd/%d/%s" % (directory, name)

    def set_mode(self, entry: Entry) -> None:
        """What is said of a directory. Symlinks are refused, not followed."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(entry.name, flags, dir_fd=self.directory(entry.directory))
        try:
            self.label(descriptor, entry)
        finally:
            os.close(descriptor)

    def make_symlink(self, entry: Entry) -> None:
        temporary = self._free_name()
        os.symlink(entry.target, temporary, dir_fd=self._temporary())
        if entry.extra:
            owner, place = owner_of(entry), self._temporary()
            if owner is not None and self.is_root:
                self._try(entry, lambda: os.chown(temporary, *owner, dir_fd=place, follow_symlinks=False))
            if problem := set_xattrs(self._proc_path(temporary, place), entry, self.is_root):
                self.problems.append((entry.path, problem))
        os.utime(temporary, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=self._temporary(), follow_symlinks=False)
        self._place(temporary, entry)

    def write_file(self, entry: Entry, pieces: Iterable[bytes | memoryview]) -> None:
        """A file whole: its bytes, what else is said of it, then its name."""
        parent = self.directory(entry.directory)
        try:
            descriptor, temporary = self._create(entry, parent)
            try:
                _write_pieces(descriptor, pieces)
                self.label(descriptor, entry)
                if temporary:
                    self._place(temporary, entry)
                else:
                    self._link(descriptor, entry, parent)
            except BaseException:
                if temporary:
                    self.discard(temporary)
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            raise_if_full(error)
            raise

    def _create(self, entry: Entry, parent: int) -> tuple[int, bytes]:
        """(descriptor, temporary name) of a new file for an entry.

        If it can be a file that has no name yet, beside where it will be: a killed restore leaves nothing of it
        (open(2), O_TMPFILE).
        """
        if self._has_unnamed:
            try:
                return os.open(b".", _UNNAMED, entry.mode & 0o777, dir_fd=parent), b""
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                    raise
                self._has_unnamed = False
        temporary, descriptor = self.create_temporary()
        return descriptor, temporary

    def _link(self, descriptor: int, entry: Entry, parent: int) -> None:
        """Give a file without a name its name; what stands there is replaced."""
        source = b"/proc/self/fd/%d" % descriptor
        try:
            os.link(source, entry.name, dst_dir_fd=parent, follow_symlinks=True)
        except FileExistsError:
            temporary = self._free_name()
            os.link(source, temporary, dst_dir_fd=self._temporary(), follow_symlinks=True)
            self._place(temporary, entry)

    def create_temporary(self) -> tuple[bytes, int]:
        """(name, descriptor) of a new file that :meth:`finish_file` can place."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            temporary = self._temporary_name()
            with full_disk_is_an_error(), contextlib.suppress(FileExistsError):
                return temporary, os.open(temporary, flags, 0o600, dir_fd=self._temporary())

    def open_temporary(self, temporary: bytes) -> int:
        return os.open(temporary, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._temporary())

    def finish_file(self, temporary: bytes, descriptor: int, entry: Entry) -> None:
        """Give a temporary file what is said of it, and rename it to its place."""
        self.label(descriptor, entry)
        self._place(temporary, entry)

    def discard(self, temporary: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=self._temporary())

    def _place(self, temporary: bytes, entry: Entry) -> None:
        source, target = self._temporary(), self.directory(entry.directory)
        try:
            os.rename(temporary, entry.name, src_dir_fd=source, dst_dir_fd=target)
        except IsADirectoryError:
            self._clear_directory(entry, target)
            os.rename(temporary, entry.name, src_dir_fd=source, dst_dir_fd=target)

    def _clear_directory(self, entry: Entry, parent: int) -> None:
        self._drop_open(entry.path)
        try:
            os.rmdir(entry.name, dir_fd=parent)
        except OSError as error:
            raise InTheWay("a directory with other files is in the way") from error

    def _drop_open(self, path: bytes) -> None:
        self._latest = None
        for kept in [kept for kept in self._open if kept == path or kept.startswith(path + b"/")]:
            os.close(self._open.pop(kept))

    def remove(self, entry: Entry) -> bool:
        """Remove what stands at an entry's path: a directory only if it is empty. False when it stays."""
        try:
            parent = self.directory(entry.directory)
            if entry.kind == Kind.DIRECTORY:
                self._drop_open(entry.path)
                os.rmdir(entry.name, dir_fd=parent)
            else:
                os.unlink(entry.name, dir_fd=parent)
        except (FileNotFoundError, Corrupt):
            return True
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
                return False
            raise
        return True

    def link_file(self, directory: bytes, name: bytes, entry: Entry) -> None:
        """Make an entry's path a further name of the file at another; InTheWay unless that is as the entry says."""
        source = self.directory(directory)
        found = os.stat(name, dir_fd=source, follow_symlinks=False)
        if (stat.S_IFMT(found.st_mode), found.st_size, found.st_mtime_ns) != (
            stat.S_IFREG,
            entry.size,
            entry.mtime_ns,
        ):
            raise InTheWay("the file that it is a link of is not there")
        temporary = self._free_name()
        os.link(name, temporary, src_dir_fd=source, dst_dir_fd=self._temporary(), follow_symlinks=False)
        self._place(temporary, entry)
        # Two names of one file are not renamed over each other (rename(2)).
        self.discard(temporary)

    def open_part(self, name: bytes) -> int:
        """A descriptor of the temporary file of a name that :func:`part_name` gave: of a killed restore, or new."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            with full_disk_is_an_error():
                descriptor = os.open(name, flags, 0o600, dir_fd=self._temporary())
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            self.discard(name)
            return self.open_part(name)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            self.discard(name)
            return self.open_part(name)
        return descriptor

    def link_seed(self, former: Entry) -> None:
        """Give the file at a path a second name, after its content, among the temporary files. OSError where that
        cannot be."""
        source, target = self.directory(former.directory), self._temporary()
        name = SEED + content_id(former).hex().encode()
        with contextlib.suppress(FileExistsError):
            os.link(former.name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)

    def has_seeds(self) -> bool:
        """Whether there is any file that :meth:`link_seed` named."""
        with os.scandir(self._temporary()) as listing:
            return any(os.fsencode(item.name).startswith(SEED) for item in listing)

    def open_seed(self, content: bytes) -> tuple[int, bytes] | None:
        """(descriptor, name) of the temporary file that :meth:`link_seed` named after this content, if there is one."""
        name = SEED + content.hex().encode()
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            return os.open(name, flags, dir_fd=self._temporary()), name
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise
            return None

    def clone_file(self, entry: Entry, source: int, is_right: Callable[[int], bool]) -> bool:
        """Make a file that shares the blocks of an open one (ioctl_ficlone(2)); False where that cannot be, or it is
        not right."""
        if not self._has_clones or entry.size < _CLONE_BYTES_MIN:
            return False
        temporary, descriptor = self.create_temporary()
        try:
            fcntl.ioctl(descriptor, _FICLONE, source)
            if not is_right(descriptor):
                self.discard(temporary)
                return False
            self.finish_file(temporary, descriptor, entry)
        except OSError as error:
            self.discard(temporary)
            if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS):
                raise
            self._has_clones = False
            return False
        finally:
            os.close(descriptor)
        return True

    def prepare(self) -> None:
        """Make the place for temporary files, and empty it of what is of no use to any restore."""
        for name in (STATE_DIRECTORY.encode(), TEMPORARY):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=self._root)
        self.sweep(kept=(PART, SEED))

    def sweep(self, kept: tuple[bytes, ...] = ()) -> None:
        """Remove temporary files, but those whose name begins with one of ``kept``."""
        with os.scandir(self._temporary()) as listing:
            for item in listing:
                if not os.fsencode(item.name).startswith(kept):
                    os.unlink(item.name, dir_fd=self._temporary())

    def _free_name(self) -> bytes:
        """A name that no temporary file has."""
        while True:
            temporary = self._temporary_name()
            try:
                os.stat(temporary, dir_fd=self._temporary(), follow_symlinks=False)
            except FileNotFoundError:
                return temporary

    def _temporary(self) -> int:
        return self.directory(TEMPORARY)

    def _temporary_name(self) -> bytes:
        self._count += 1
        return b"%d-%d" % (os.getpid(), self._count)


def _write_pieces(descriptor: int, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a new file's bytes one after the other; zeros are left a hole."""
    is_hole = False
    for piece in pieces:
        is_hole = is_zeros(piece)
        if is_hole:
            os.lseek(descriptor, len(piece), os.SEEK_CUR)
        elif os.write(descriptor, piece) != len(piece):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if is_hole:
        os.ftruncate(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR))


def part_name(entry: Entry) -> bytes:
    """The temporary file of a large file: the same in every restore that wants these bytes at this path."""
    return PART + blake3(content_id(entry) + entry.path).hexdigest(20).encode()


def write_all(descriptor: int, data: bytes | memoryview, offset: int | None = None) -> None:
    """Write all of ``data``, at ``offset`` or at the file's position; Full when the disk is."""
    view = memoryview(data)
    with full_disk_is_an_error():
        while view:
            written = os.write(descriptor, view) if offset is None else os.pwrite(descriptor, view, offset)
            view = view[written:]
            offset = None if offset is None else offset + written


def open_tree(top: bytes) -> Tree:
    """Hold on an existing directory; Invalid when it is none."""
    try:
        return Tree(top)
    except OSError as error:
        raise Invalid(f"{os.fsdecode(top)} cannot be used: {error.strerror}", path=os.fsdecode(top)) from error


def _is_nowhere(error: OSError | Corrupt) -> bool:
    """Whether a path is not there, or cannot be: for its name, or since something above it is no directory."""
    return isinstance(error, Corrupt) or error.errno in _NOWHERE
