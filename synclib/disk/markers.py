"""The marker files of a dataset's directory: read bounded, written whole."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from synclib.core import names
from synclib.core.markers import MARKER_BYTES_MAX, Active, Down, Error, parse_active, parse_down
from synclib.disk.atomic import TEMPORARY, write_atomic
from synclib.errors import Corrupt, Invalid


def encode_down(down: Down) -> bytes:
    """The text of a synch.down."""
    return down.model_dump_json().encode() + b"\n"


def read_marker(path: Path) -> bytes | None:
    """A marker's bytes; None where there is none. Invalid where it is too large, or no plain file: who may put a marker
    may perhaps not read what a link leads to, and what is wrong with a marker is said to everybody."""
    hint = "remove it, or put a plain file there"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Invalid(f"{path.name} is a symlink, which is not followed", hint=hint, path=str(path)) from error
        if error.errno == errno.ENXIO:
            raise Invalid(f"{path.name} is no plain file", hint=hint, path=str(path)) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Invalid(f"{path.name} is no plain file", hint=hint, path=str(path))
        data = os.read(descriptor, MARKER_BYTES_MAX + 1)
    finally:
        os.close(descriptor)
    if len(data) > MARKER_BYTES_MAX:
        raise Invalid(f"{path.name} is larger than {MARKER_BYTES_MAX} bytes", hint=hint, path=str(path))
    return data


class Markers:
    """The markers in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def _read(self, name: str) -> bytes | None:
        return read_marker(self.directory / name)

    def active(self) -> Active | None:
        """What is asked for; None when nothing is. Invalid when the text is not understood."""
        data = self._read(names.ACTIVE)
        try:
            return None if data is None else parse_active(data.decode())
        except UnicodeDecodeError as error:
            raise Invalid("synch.active is not UTF-8", path=str(self.directory / names.ACTIVE)) from error

    def down(self) -> Down | None:
        """What was answered; None when nothing was, or nothing that can be read."""
        try:
            data = self._read(names.DOWN)
            return None if data is None else parse_down(data)
        except (Corrupt, Invalid):
            return None

    def active_identity(self) -> tuple[int, int] | None:
        """What tells one synch.active from another put there later; None when there is none."""
        return self._identity(names.ACTIVE)

    def up_identity(self) -> tuple[int, int] | None:
        """The same for synch.up."""
        return self._identity(names.UP)

    def _identity(self, name: str) -> tuple[int, int] | None:
        try:
            status = os.stat(self.directory / name)
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns

    def write_down(self, down: Down) -> None:
        write_atomic(self.directory / names.DOWN, encode_down(down))
        self.remove(names.ERROR)

    def write_error(self, error: Error) -> None:
        """Say why not; the same words are not written twice, so that watchers are not woken for nothing."""
        with contextlib.suppress(ValueError, Invalid):
            old = Error.model_validate_json(self._read(names.ERROR) or b"")
            if (old.kind, old.message) == (error.kind, error.message):
                return
        write_atomic(self.directory / names.ERROR, error.model_dump_json().encode() + b"\n")

    def clean(self) -> None:
        """Remove what killed writers of these markers left."""
        for name in (names.DOWN, names.ERROR):
            for path in self.directory.glob(f"{name}.*{TEMPORARY}"):
                self.remove(path.name)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.directory / name)
