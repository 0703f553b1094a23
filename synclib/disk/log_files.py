"""The files of a log directory, paired with what was sent of each."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from synclib.core import names
from synclib.core.logstream import COPY_ROUNDS_MAX, SAMPLE_BYTES, LogFile, LogStream, stream_of
from synclib.errors import Invalid

_LISTINGS_MAX = 10
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass
class Present:
    """A file that stands there. ``mtime_ns`` and ``size`` are of when it was listed."""

    path: Path
    age: int
    device: int
    inode: int
    size: int
    mtime_ns: int

    def open(self) -> int | None:
        """A descriptor, if the same file still stands under this name."""
        try:
            descriptor = os.open(self.path, _OPEN)
        except OSError:
            return None
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) == (self.device, self.inode):
            return descriptor
        os.close(descriptor)
        return None


def list_streams(directory: Path, refuse: Callable[[str], None]) -> dict[str, list[Present]] | None:
    """The files of each stream, oldest first. None while names change faster than they can be listed.

    ``refuse`` hears of names that can be no stream's.
    """
    before = _listed(directory)
    for _ in range(_LISTINGS_MAX):
        found = _listed(directory)
        if [(file.path, file.inode) for file in before] == [(file.path, file.inode) for file in found]:
            return _by_stream(found, refuse)
        before = found
    return None


def _listed(directory: Path) -> list[Present]:
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as listing:
        for item in listing:
            if item.name.startswith(".") or item.name.startswith("synch."):
                continue
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(item.path)
                if stat.S_ISREG(status.st_mode):
                    age = stream_of(item.name)[1]
                    identity = status.st_dev, status.st_ino
                    found.append(Present(Path(item.path), age, *identity, status.st_size, status.st_mtime_ns))
    return sorted(found, key=lambda file: file.path)


def _by_stream(listed: list[Present], refuse: Callable[[str], None]) -> dict[str, list[Present]]:
    found: dict[str, list[Present]] = {}
    for file in sorted(listed, key=lambda file: -file.age):
        name = stream_of(file.path.name)[0]
        try:
            names.check_node(name)
        except Invalid:
            refuse(file.path.name)
            continue
        found.setdefault(name, []).append(file)
    return found


class Matcher:
    """Pairs the files that stand there with the records of what was sent."""

    def __init__(self) -> None:
        self._copies: dict[tuple[int, int], int] = {}  # rounds that what looks like a copy has waited

    def match(self, stream: LogStream, present: list[Present]) -> list[tuple[Present, LogFile]]:
        """Each file with its record, oldest first; records of files that are gone are dropped.

        Nothing while one looks like a copy of another that may be truncated in a moment.
        """
        sent = [record for record in stream.files if record.sent]
        paired: dict[int, LogFile] = {}
        for index, file in enumerate(present):
            record = _find(file, [record for record in sent if _is_inode(record, file)])
            if record is not None:
                paired[index] = record
        for index, file in enumerate(present):
            if index in paired:
                continue
            known = list(paired.values())
            moved = _find(file, [record for record in sent if not any(record is other for other in known)])
            if moved is not None:
                moved.device, moved.inode = file.device, file.inode
                paired[index] = moved
            elif self._may_be_copy(file, known):
                return []
        pairs = [(file, paired.get(index) or LogFile(file.device, file.inode)) for index, file in enumerate(present)]
        stream.files = [record for _, record in pairs]
        return pairs

    def _may_be_copy(self, file: Present, known: list[LogFile]) -> bool:
        original = _find(file, known) if file.age else None
        identity = (file.device, file.inode)
        rounds = self._copies.pop(identity, 0) + 1
        if original is None or rounds > COPY_ROUNDS_MAX:
            return False
        self._copies[identity] = rounds
        return True


def _is_inode(record: LogFile, file: Present) -> bool:
    return (record.device, record.inode) == (file.device, file.inode)


def _find(file: Present, records: list[LogFile]) -> LogFile | None:
    """The first record whose samples the file holds at their places; None also when it cannot be read."""
    for record in records:
        if file.size < record.sent:
            continue
        descriptor = file.open()
        if descriptor is None:
            return None
        try:
            start = record.sent - len(record.suffix)
            if (
                os.pread(descriptor, len(record.prefix), 0) == record.prefix
                and os.pread(descriptor, len(record.suffix), start) == record.suffix
            ):
                return record
        finally:
            os.close(descriptor)
    return None


def note_sent(record: LogFile, descriptor: int, sent: int) -> None:
    """Raise what was sent of a file, and take its samples."""
    record.sent = sent
    record.prefix = os.pread(descriptor, min(SAMPLE_BYTES, sent), 0)
    start = max(0, sent - SAMPLE_BYTES)
    record.suffix = os.pread(descriptor, sent - start, start)
