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


def send_log(path: Path, noted: Path, objects: Objects) -> None:
    """What was said in the file since it was sent last, which ``noted`` knows, in one try: the boot is tried again, and
    so is this."""
    node = os.environ.get("BOXLINK_NODE") or os.uname().nodename
    if not _NODE.fullmatch(node) or ".." in node:
        return
    with contextlib.suppress(OSError, Failure):
        place, offset, inode = _noted(noted)
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size < offset or status.st_ino != inode:
                offset = 0  # a new file was begun
            file.seek(offset)
            while data := file.read(SEGMENT_BYTES_MAX):
                place = _put(objects, f"log/{node}/{path.name}", place, data)
                offset += len(data)
                temporary = noted.with_name(f"{noted.name}.tmp")
                temporary.write_text(f"{place} {offset} {status.st_ino}\n")
                os.replace(temporary, noted)


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


def _noted(path: Path) -> tuple[int, int, int]:
    """The stream's next place, where it begins in the file, and which file that is."""
    try:
        place, offset, inode = (int(word) for word in path.read_text().split())
    except (OSError, ValueError):
        return 0, 0, 0
    return (place, offset, inode) if min(place, offset) >= 0 and place < _PLACE_MAX else (0, 0, 0)


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
