"""What a first boot that failed has said is sent up by itself, for no sync will: as sync does (engine/logship.py).

One that goes on later finds them at their places, and sends what comes after them.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from .failure import AlreadyThere, Failure
from .objects import Objects

SEGMENT_BYTES_MAX = 1 << 20
_BLOCK_BYTES_MAX = 128 << 10
_NODE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def send_log(path: Path, objects: Objects) -> None:
    """What was said in the file since it was sent last, in one try: the boot is tried again, and so is this."""
    node = os.environ.get("BOXLINK_NODE") or os.uname().nodename
    if not _NODE.fullmatch(node) or ".." in node:
        return
    noted = path.with_name(f"{path.name}.sent")
    with contextlib.suppress(OSError, Failure):
        place, offset = _noted(noted)
        size = path.stat().st_size
        if size < offset:
            offset = 0  # a new file was begun
        with path.open("rb") as file:
            file.seek(offset)
            while data := file.read(SEGMENT_BYTES_MAX):
                # One that is there was made by a try whose answer was lost, or before this machine was installed anew.
                with contextlib.suppress(AlreadyThere):
                    objects.put_new(f"log/{node}/{path.name}/{place:020}", zstd_frame(data))
                place, offset = place + len(data), offset + len(data)
                temporary = noted.with_name(f"{noted.name}.tmp")
                temporary.write_text(f"{place} {offset}\n")
                os.replace(temporary, noted)


def _noted(path: Path) -> tuple[int, int]:
    """The stream's next place, and where it begins in the file."""
    try:
        place, offset = path.read_text().split()
        return int(place), int(offset)
    except (OSError, ValueError):
        return 0, 0


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
