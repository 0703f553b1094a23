"""Unpacking a tar.gz that is right to the last byte and may still be wrong: nothing leaves its directory.

Only files, directories and symbolic links; names below the directory, no part of which is a link; links that stay
inside; bounded in number and size. Each file is new: none is written through something that is there.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from .failure import Failure

MEMBERS_MAX = 200_000
BYTES_MAX = 64 << 30
NAME_BYTES_MAX = 4096
_PIECE_BYTES = 1 << 20
_HEADER_BYTES_MAX = 64 << 10
# Members that say something of the next one; tarfile reads them whole (tarfile.TarInfo, pax in POSIX.1-2001).
_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _Member(tarfile.TarInfo):
    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        """Before anything of it is read (tarfile's own place for a subclass)."""
        if self.type in _HEADERS and self.size > _HEADER_BYTES_MAX:
            raise Failure("the boot tar holds a header that is too long")
        found: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]
        return found


def unpack(archive: Path, directory: Path) -> None:
    """Into an empty directory. Failure names the first member that is refused."""
    total = 0
    try:
        with tarfile.open(archive, "r|gz", tarinfo=_Member) as tar:
            for number, member in enumerate(tar):
                total += member.size if member.isreg() else 0
                if number >= MEMBERS_MAX or total > BYTES_MAX:
                    raise Failure("the boot tar holds more than a release may")
                _unpack_one(tar, member, directory)
    except (tarfile.TarError, EOFError, UnicodeError, ValueError) as error:
        raise Failure(f"the boot tar cannot be read: {type(error).__name__}") from error
    except OSError as error:
        raise Failure(f"the boot tar cannot be unpacked: {error.strerror or error}", "make room") from error


def _unpack_one(tar: tarfile.TarFile, member: tarfile.TarInfo, directory: Path) -> None:
    name = _checked(member.name)
    path = os.path.join(directory, name)
    parent = os.path.dirname(path)
    if os.path.realpath(parent) != os.path.join(os.path.realpath(directory), os.path.dirname(name)).rstrip("/"):
        raise Failure(f"the boot tar would write through a link: {name!r}")
    os.makedirs(parent, exist_ok=True)
    if member.isdir():
        os.makedirs(path, exist_ok=True)
    elif member.issym():
        _check_target(name, member.linkname)
        os.symlink(member.linkname, path)
    elif member.isreg():
        _write(tar, member, path)
    else:
        raise Failure(f"the boot tar holds what is no file, directory or link: {name!r}")


def _checked(name: str) -> str:
    parts = name.split("/")
    if not name or len(os.fsencode(name)) > NAME_BYTES_MAX or "\0" in name or any(p in ("", ".", "..") for p in parts):
        raise Failure(f"the boot tar holds a name that leaves its directory: {name[:200]!r}")
    return name


def _check_target(name: str, target: str) -> None:
    """Up first, then down: so that where it leads can be told without looking at what other links there are."""
    parts = target.split("/")
    ups = next((number for number, part in enumerate(parts) if part != ".."), len(parts))
    if ups > name.count("/") or "\0" in target or any(part in ("", ".", "..") for part in parts[ups:]):
        raise Failure(f"the boot tar holds a link that leaves its directory: {name!r}")


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
    source = tar.extractfile(member)
    assert source is not None
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        left = member.size
        while left and (piece := source.read(min(left, _PIECE_BYTES))):
            file.write(piece)
            left -= len(piece)
        if left:
            raise Failure("the boot tar ends early")
        # Neither setuid nor what others could change.
        os.fchmod(descriptor, member.mode & 0o755 | 0o600)
