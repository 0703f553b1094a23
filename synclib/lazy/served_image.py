"""An image that is too large to be brought here whole: the pieces of its object, and the blocks that diffs changed."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import IO

from synclib.core.erofs import BLOCK_BYTES
from synclib.core.image_patch import ImagePatch
from synclib.lazy.base_image import BaseImage

_COUNT = struct.Struct("<QQ")  # blocks in the file; blocks of the image


def write_patch(patch: ImagePatch, file: IO[bytes]) -> None:
    """The changed blocks, for :class:`ServedImage`: their numbers, then they themselves."""
    numbers = sorted(patch.blocks)
    file.write(_COUNT.pack(len(numbers), patch.block_count))
    file.write(struct.pack(f"<{len(numbers)}Q", *numbers))
    file.writelines(patch.blocks[number] for number in numbers)


class ServedImage:
    """Safe between threads."""

    def __init__(self, base: BaseImage, patch: Path) -> None:
        self._base = base
        self._file = os.open(patch, os.O_RDONLY | os.O_CLOEXEC)
        count, block_count = _COUNT.unpack(os.pread(self._file, _COUNT.size, 0))
        numbers = struct.unpack(f"<{count}Q", os.pread(self._file, count * 8, _COUNT.size))
        start = _COUNT.size + count * 8
        self._places = {number: start + index * BLOCK_BYTES for index, number in enumerate(numbers)}
        self.image_bytes = block_count * BLOCK_BYTES

    def close(self) -> None:
        os.close(self._file)

    def read(self, position: int, length: int) -> bytes:
        """Bytes of the image; any BoxlinkError of the store."""
        first, last = position // BLOCK_BYTES, (position + length - 1) // BLOCK_BYTES
        found: list[bytes] = []
        number = first
        while number <= last:
            stop = number
            while stop <= last and stop not in self._places:
                stop += 1
            if stop > number:
                found.append(self._base.read(number * BLOCK_BYTES, (stop - number) * BLOCK_BYTES))
            if stop <= last:
                found.append(os.pread(self._file, BLOCK_BYTES, self._places[stop]))
            number = stop + 1
        start = position - first * BLOCK_BYTES
        return b"".join(found)[start : start + length]
