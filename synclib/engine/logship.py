"""Log shipping: what grows in data/log goes up as immutable segments, each byte exactly once.

A segment's key names the place of its first byte in its stream, and it is written with create-if-absent. When a killed
shipper had written one and not noted it, its successor meets a Conflict, reads the segment, and goes on behind it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from synclib.clock import Clock
from synclib.core import names, zstd
from synclib.core.logstream import (
    BACKLOG_BYTES_MAX,
    PREFIX_BYTES,
    SEGMENT_BYTES_MAX,
    LogFile,
    LogStream,
    is_due,
    stream_of,
)
from synclib.disk.atomic import write_atomic
from synclib.engine.follow import Log
from synclib.errors import Ambiguous, BoxlinkError, Conflict, Corrupt, Invalid
from synclib.store.base import Store

_STORED_BYTES_MAX = SEGMENT_BYTES_MAX + (64 << 10)


class LogShipper:
    """Ships one node's data/log. Not safe between threads; one a directory."""

    def __init__(self, directory: Path, state: Path, node: str, store: Store, clock: Clock, log: Log) -> None:
        self._directory, self._state, self._node = directory, state, node
        self._store, self._clock, self._log = store, clock, log
        self._waiting: dict[str, float] = {}
        self._refused: set[str] = set()
        self._streams = self._load()

    def _load(self) -> dict[str, LogStream]:
        try:
            return msgspec.json.decode(self._state.read_bytes(), type=dict[str, LogStream])
        except (FileNotFoundError, msgspec.MsgspecError):
            return {}

    def _save(self) -> None:
        self._state.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self._state, msgspec.json.encode(self._streams))

    @property
    def dropped_bytes(self) -> int:
        return sum(stream.dropped_bytes for stream in self._streams.values())

    def round(self, *, is_last: bool = False) -> int:
        """Send what is due (with ``is_last``: all there is); the number of segments sent.

        Raises what the store raises: what was not sent is sent later.
        """
        sent = 0
        for name, paths in self._listed().items():
            for path, file, is_complete in self._match(name, paths):
                sent += self._send_file(name, path, file, is_complete or is_last)
        return sent

    def _listed(self) -> dict[str, list[Path]]:
        """The files of each stream, oldest first."""
        found: dict[str, list[tuple[int, Path]]] = {}
        try:
            listing = list(os.scandir(self._directory))
        except FileNotFoundError:
            return {}
        for item in listing:
            if item.name.startswith(".") or not item.is_file(follow_symlinks=False):
                continue
            stream, age = stream_of(item.name)
            try:
                names.check_node(stream)
            except Invalid:
                if item.name not in self._refused:
                    self._refused.add(item.name)
                    self._log.warning("log file not shipped: its name has other characters", file=item.name)
                continue
            found.setdefault(stream, []).append((age, Path(item.path)))
        return {stream: [path for _, path in sorted(aged, reverse=True)] for stream, aged in sorted(found.items())}

    def _match(self, name: str, paths: list[Path]) -> Iterator[tuple[Path, LogFile, bool]]:
        """Pair files with what was sent of them; new ones are appended to the stream, vanished ones forgotten."""
        stream = self._streams.setdefault(name, LogStream())
        present: list[tuple[Path, LogFile]] = []
        sizes: dict[int, int] = {}
        place = stream.stop
        for path in paths:
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            if not stat.S_ISREG(status.st_mode):
                continue
            file = _known(stream, path, status)
            if file is None:
                file = LogFile(status.st_dev, status.st_ino, b"", place)
            present.append((path, file))
            sizes[id(file)] = status.st_size
            place = file.start + max(file.sent, status.st_size)
        if present:
            # Files that are gone were sent as far as they could be; the stream goes on behind what was sent.
            stream.stop = max(stream.stop, present[0][1].start)
        stream.files = [file for _, file in present]
        self._drop_backlog(name, stream, present, sizes)
        for index, (path, file) in enumerate(present):
            yield path, file, index < len(present) - 1

    def _drop_backlog(
        self, name: str, stream: LogStream, present: list[tuple[Path, LogFile]], sizes: dict[int, int]
    ) -> None:
        backlog = sum(max(0, sizes[id(file)] - file.sent) for _, file in present)
        for _, file in present:
            if backlog <= BACKLOG_BYTES_MAX:
                return
            drop = min(backlog - BACKLOG_BYTES_MAX, sizes[id(file)] - file.sent)
            if drop > 0:
                file.sent += drop
                backlog -= drop
                stream.dropped_bytes += drop
                self._log.warning("log backlog too large, oldest bytes dropped", stream=name, dropped=drop)

    def _send_file(self, name: str, path: Path, file: LogFile, is_complete: bool) -> int:
        sent = 0
        now = self._clock.monotonic()
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        try:
            if os.fstat(descriptor).st_ino != file.inode:
                return 0
            while True:
                data = os.pread(descriptor, SEGMENT_BYTES_MAX, file.sent)
                since = self._waiting.setdefault(name, now) if data else now
                is_first = file.start + file.sent == 0
                if not is_due(len(data), now - since, is_first=is_first, is_complete=is_complete):
                    return sent
                self._send(name, file, data)
                self._waiting.pop(name, None)
                sent += 1
        finally:
            os.close(descriptor)

    def _send(self, name: str, file: LogFile, data: bytes) -> None:
        """One segment; notes how far the stream is sent now."""
        key = names.log_key(self._node, name, file.start + file.sent)
        try:
            self._store.put(key, zstd.compress(data), if_absent=True)
            advance = len(data)
        except (Conflict, Ambiguous):
            advance = self._sent_before(name, key, file, data)
        if file.sent < PREFIX_BYTES:
            file.prefix = (file.prefix + data[:advance])[:PREFIX_BYTES]
        file.sent += advance
        self._save()

    def _sent_before(self, name: str, key: str, file: LogFile, data: bytes) -> int:
        """How much of ``data`` a segment holds that is there already; 0 when it is another's: then behind all of it."""
        found = read_segment(self._store, key)
        if data.startswith(found):
            return len(found)
        last = max((info.key for info in self._store.list(names.log_prefix(self._node, name))), default=key)
        stop = names.parse_log_key(last)[2] + len(read_segment(self._store, last))
        self._log.warning("log stream goes on behind another's segments", stream=name, place=stop)
        file.start = stop - file.sent
        return 0


def _known(stream: LogStream, path: Path, status: os.stat_result) -> LogFile | None:
    """The record of a file; None for one that is new, was cut, or only has an old one's inode number."""
    for file in stream.files:
        if (file.device, file.inode) == (status.st_dev, status.st_ino) and status.st_size >= file.sent:
            try:
                with open(path, "rb") as opened:
                    if opened.read(len(file.prefix)) == file.prefix:
                        return file
            except FileNotFoundError:
                return None
    return None


def read_segment(store: Store, key: str) -> bytes:
    """The plain bytes of a segment; Corrupt names it."""
    fetched = store.get(key, size_max=_STORED_BYTES_MAX)
    assert fetched is not None
    try:
        size = zstd.content_size(fetched.data)
        if size > SEGMENT_BYTES_MAX:
            raise Corrupt(f"a log segment claims {size} bytes")
        return zstd.decompress(fetched.data, size)
    except BoxlinkError as error:
        error.key = key
        raise


def read_log(store: Store, node: str = "", file: str = "", after: str = "") -> Iterator[tuple[str, str, str, bytes]]:
    """(key, node, file, bytes) of all segments, each stream in order."""
    for info in store.list(names.log_prefix(node, file), after=after):
        found_node, found_file, _ = names.parse_log_key(info.key)
        yield info.key, found_node, found_file, read_segment(store, info.key)
