"""What a first boot that failed has said is sent up by itself, for no sync will: as sync does (engine/logship.py).

One that goes on later finds them at their places, and sends what comes after them.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

from .failure import AlreadyThere, Failure
from .objects import SMALL_S, Objects

SEGMENT_BYTES_MAX = 1 << 20
_BLOCK_BYTES_MAX = 128 << 10
_OTHERS_MAX = 64
_PLACE_MAX = 10**19  # what its name can hold
_NODE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def node_name(told: str) -> str:
    """A node's name: as user-data has it, else as boxlink finds it (tools/cli_context.py)."""
    return told or os.environ.get("BOXLINK_NODE") or os.uname().nodename


def send_log(path: Path, noted: Path, objects: Objects, node: str) -> None:
    """What was said in the file since it was sent last, which ``noted`` knows, in one try: the boot is tried again, and
    so is this."""
    if not _NODE.fullmatch(node) or ".." in node:
        return
    sent = _Sent(noted)
    with contextlib.suppress(OSError, Failure):
        former = path.with_name(f"{path.name}.1")
        if sent.inode and sent.inode != _inode(path) and sent.inode == _inode(former):
            # A new file was begun (log.py) before all of that one was sent.
            _send(former, sent, objects, f"log/{node}/{path.name}")
        _send(path, sent, objects, f"log/{node}/{path.name}")


class _Sent:
    """How far a stream was sent: its next place, where that begins in the file, and which file that is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.place, self.offset, self.inode = (int(word) for word in path.read_text().split())
            if not (min(self.place, self.offset) >= 0 and self.place < _PLACE_MAX):
                raise ValueError
        except (OSError, ValueError):
            self.place = self.offset = self.inode = 0

    def note(self, place: int, offset: int, inode: int) -> None:
        self.place, self.offset, self.inode = place, offset, inode
        temporary = self._path.with_name(f"{self._path.name}.tmp")
        temporary.write_text(f"{place} {offset} {inode}\n")
        os.replace(temporary, self._path)


def _inode(path: Path) -> int:
    """0 where there is none."""
    with contextlib.suppress(OSError):
        return path.lstat().st_ino
    return 0


def _send(path: Path, sent: _Sent, objects: Objects, stream: str) -> None:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        is_same = status.st_ino == sent.inode and status.st_size >= sent.offset
        offset = file.seek(sent.offset if is_same else 0)
        while data := file.read(SEGMENT_BYTES_MAX):
            place = _put(objects, stream, sent.place, data)
            offset += len(data)
            sent.note(place, offset, status.st_ino)


def _put(objects: Objects, stream: str, place: int, data: bytes) -> int:
    """A segment at the next place, or behind what stood there before this machine was installed anew; where the one
    after it goes."""
    frame = zstd_frame(data)
    for _ in range(_OTHERS_MAX):
        key = f"{stream}/{place:020}"
        try:
            objects.put_new(key, frame)
        except AlreadyThere:
            # By a try whose answer was lost?
            if b"".join(objects.pieces(key, 2 * SEGMENT_BYTES_MAX, time.monotonic() + SMALL_S)) != frame:
                place += SEGMENT_BYTES_MAX  # none is longer
                continue
        return place + len(data)
    raise Failure(f"{stream}: there is no place for more")


def zstd_frame(data: bytes) -> bytes:
    """A frame that states its content size and holds the bytes as they are (RFC 8878, 3.1.1): there is no compressor in
    the standard library."""
    # One segment, eight bytes of content size, no checksum, no dictionary.
    header = b"\x28\xb5\x2f\xfd" + bytes([0b11_1_00000]) + len(data).to_bytes(8, "little")
    starts = range(0, len(data), _BLOCK_BYTES_MAX) or range(1)
    blocks = []
    for start in starts:
        piece = data[start : start + _BLOCK_BYTES_MAX]
        is_last = start == starts[-1]
        blocks.append((len(piece) << 3 | is_last).to_bytes(3, "little") + piece)  # a raw block
    return header + b"".join(blocks)
