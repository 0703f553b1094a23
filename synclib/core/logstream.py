"""Rolling log files as endless streams: which file a name stands for, and when its bytes go up.

A stream is named by its newest file, ``render-17.log``; ``render-17.log.1``, ``.2`` … are what it was before, the
highest number the oldest. A file is told by its inode, by how it begins and by how what was sent of it ends: so a
rotation is a change of names only, a file under an old inode's number is a new one, and a copy of a file that was then
truncated goes on where its original was.
"""

from __future__ import annotations

import re

import msgspec

SEGMENT_BYTES_MAX = 1 << 20
SEGMENT_AGE_S = 30.0
BACKLOG_BYTES_MAX = 1 << 30
SAMPLE_BYTES = 256
# Rounds that a file waits which looks like a copy of another: until that other is truncated, or it is clear that not.
COPY_ROUNDS_MAX = 3

_ROTATED = re.compile(r"(.+)\.([0-9]{1,4})")


class LogFile(msgspec.Struct):
    """What was sent of one file: at least a byte."""

    device: int
    inode: int
    sent: int = 0
    prefix: bytes = b""  # the first SAMPLE_BYTES of what was sent
    suffix: bytes = b""  # the last SAMPLE_BYTES of what was sent


class LogStream(msgspec.Struct):
    """What was sent of one stream: ``stop`` is the place of its next segment, behind all that went up."""

    files: list[LogFile] = []
    stop: int = 0
    dropped_bytes: int = 0


def stream_of(name: str) -> tuple[str, int]:
    """(stream, age) of a file in data/log: age 0 is the file that still grows."""
    match = _ROTATED.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, 0)


def is_due(pending_bytes: int, waiting_s: float, *, is_first: bool, is_complete: bool) -> bool:
    """Whether pending bytes go up now: enough of them, old enough, nothing more will come, or nothing came before.

    A stream's first bytes go at once: whoever starts a node wants to see that it lives.
    """
    is_urgent = is_first or is_complete
    return pending_bytes > 0 and (is_urgent or pending_bytes >= SEGMENT_BYTES_MAX or waiting_s >= SEGMENT_AGE_S)
