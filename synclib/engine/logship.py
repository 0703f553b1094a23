"""Log shipping: what grows in data/log goes up as immutable segments, each byte exactly once.

A segment's key names the place of its first byte in its stream, and it is written with create-if-absent. When a killed
shipper had written one and not noted it, its successor meets a Conflict, reads the segment, and goes on behind it. A
segment of somebody else's is never replaced: the stream goes on behind it.

Where the record of what was sent is lost or an older one, the stream's segments are walked over until one is met that
holds what stands here next. After WALK_SEGMENTS_MAX of them it goes on behind all that are there, and what stands here
goes up once more: rather twice than never.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from synclib.clock import Clock
from synclib.core import names, zstd
from synclib.core.frame import DECODE_ERRORS
from synclib.core.logstream import BACKLOG_BYTES_MAX, SEGMENT_BYTES_MAX, LogFile, LogStream, is_due
from synclib.disk.atomic import write_atomic
from synclib.disk.log_files import Matcher, Present, list_streams, note_sent
from synclib.engine.event_log import Log
from synclib.errors import Ambiguous, BoxlinkError, Conflict, Corrupt, Missing, Unavailable
from synclib.store.base import Store

_STORED_BYTES_MAX = SEGMENT_BYTES_MAX + (64 << 10)
WALK_SEGMENTS_MAX = 100

Pairs = list[tuple[Present, LogFile]]


class LogShipper:
    """Ships one node's data/log. Not safe between threads; one a directory."""

    def __init__(self, directory: Path, state: Path, node: str, store: Store, clock: Clock, log: Log) -> None:
        """``on_sent`` is called after each segment; ``backlog_bytes``: what waited when a round last began."""
        self.on_sent: Callable[[], None] = lambda: None
        self.backlog_bytes = self.segments = 0
        self._directory, self._state, self._node = directory, state, node
        self._store, self._clock, self._log = store, clock, log
        self._matchers: dict[str, Matcher] = {}
        self._waiting: dict[str, float] = {}
        self._walked: dict[str, int] = {}  # segments of others that a stream has met one after the other
        self._refused: set[str] = set()
        self._streams = self._load()

    def _load(self) -> dict[str, LogStream]:
        try:
            return msgspec.json.decode(self._state.read_bytes(), type=dict[str, LogStream])
        except (FileNotFoundError, *DECODE_ERRORS):
            return {}

    def _save(self) -> None:
        self._state.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self._state, msgspec.json.encode(self._streams))

    @property
    def dropped_bytes(self) -> int:
        return sum(stream.dropped_bytes for stream in list(self._streams.values()))

    def round(self, *, is_last: bool = False) -> int:
        """Send what is due (with ``is_last``: all there is); the number of segments sent.

        Raises what the store raises: what was not sent is sent later. One stream's damage does not hold up another.
        """
        present = list_streams(self._directory, self._refuse)
        if present is None:
            return 0
        pairs: dict[str, Pairs] = {}
        for name in {*present, *self._streams}:
            stream = self._streams.setdefault(name, LogStream())
            pairs[name] = self._matchers.setdefault(name, Matcher()).match(stream, present.get(name, []))
        self._drop_backlog(pairs)
        sent, failed = 0, None
        for name, files in sorted(pairs.items()):
            try:
                sent += self._send_stream(name, files, is_last)
            except Unavailable:
                raise
            except BoxlinkError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return sent

    def _refuse(self, file: str) -> None:
        if file not in self._refused:
            self._refused.add(file)
            self._log.warning("log file not shipped: its name has other characters", file=file)

    def _drop_backlog(self, pairs: dict[str, Pairs]) -> None:
        """Give up the oldest bytes of the node beyond what may wait."""
        waiting = [(file, record, name) for name, files in pairs.items() for file, record in files]
        backlog = sum(max(0, file.size - record.sent) for file, record, _ in waiting)
        self.backlog_bytes = min(backlog, BACKLOG_BYTES_MAX)
        if backlog <= BACKLOG_BYTES_MAX:
            return
        for file, record, name in sorted(waiting, key=lambda item: (item[0].mtime_ns, -item[0].age)):
            drop = min(backlog - BACKLOG_BYTES_MAX, file.size - record.sent)
            descriptor = file.open() if drop > 0 else None
            if descriptor is None:
                continue
            try:
                note_sent(record, descriptor, record.sent + drop)
            finally:
                os.close(descriptor)
            backlog -= drop
            self._streams[name].dropped_bytes += drop
            self._log.warning("log backlog too large, oldest bytes dropped", stream=name, dropped=drop)
        self._save()

    def _send_stream(self, name: str, files: Pairs, is_last: bool) -> int:
        sent = 0
        for index, (file, record) in enumerate(files):
            descriptor = file.open()
            if descriptor is None:
                # Names have changed meanwhile: what comes after it must wait for it.
                break
            try:
                is_complete = is_last or index < len(files) - 1
                sent += self._send_file(name, descriptor, record, is_complete)
            finally:
                os.close(descriptor)
        return sent

    def _send_file(self, name: str, descriptor: int, record: LogFile, is_complete: bool) -> int:
        sent = 0
        now = self._clock.monotonic()
        stream = self._streams[name]
        while True:
            data = os.pread(descriptor, SEGMENT_BYTES_MAX, record.sent)
            since = self._waiting.setdefault(name, now) if data else now
            if not is_due(len(data), now - since, is_first=stream.stop == 0, is_complete=is_complete):
                return sent
            advance = self._send(name, stream, data)
            note_sent(record, descriptor, record.sent + advance)
            stream.stop += advance
            self._save()
            self._waiting.pop(name, None)
            self.backlog_bytes = max(0, self.backlog_bytes - advance)
            self.segments += 1
            self.on_sent()
            sent += 1

    def _send(self, name: str, stream: LogStream, data: bytes) -> int:
        """Write a segment at the stream's place; how much of ``data`` stands there now. 0: the place was taken, and is
        now behind what stood there."""
        key = names.log_key(self._node, name, stream.stop)
        try:
            self._store.put(key, zstd.compress(data), if_absent=True)
            self._walked.pop(name, None)
            return len(data)
        except Conflict:
            found = self._found(key)
        except Ambiguous as error:
            try:
                found = self._found(key)
            except Missing:
                raise error from None
        if found and data.startswith(found):
            # Our own: a shipper was killed before it noted it, or its answer was lost.
            return len(found)
        walked = self._walked[name] = self._walked.get(name, 0) + 1
        if walked == 1:
            self._log.warning("log stream meets segments that it does not know", stream=name, place=stream.stop)
        is_near = found and walked <= WALK_SEGMENTS_MAX
        stream.stop = stream.stop + len(found) if is_near else self._behind(name, stream.stop)
        return 0

    def _found(self, key: str) -> bytes:
        """What stands at a segment's place; nothing when it is no segment."""
        try:
            return read_segment(self._store, key)
        except Corrupt:
            return b""

    def _behind(self, name: str, place: int) -> int:
        """The first place behind all segments that are there."""
        last, last_key = place, names.log_key(self._node, name, place)
        for info in self._store.list(names.log_prefix(self._node, name)):
            try:
                found = names.parse_log_key(info.key)[2]
            except BoxlinkError:
                # A stranger's object: no place of this stream.
                continue
            if found >= last:
                last, last_key = found, info.key
        return last + max(1, len(self._found(last_key)))


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
