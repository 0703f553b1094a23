"""Data of the benchmarks: made from a seed, so that every tool sees the same.

Three shapes: ``small`` (files of 20 KB, 500 in a folder), ``large`` (files of 128 MB), ``tree`` (a copy of a source
tree).
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SMALL_BYTES = 20_000
LARGE_BYTES = 128_000_000
_FILES_PER_FOLDER = 500


@dataclass(frozen=True)
class Shape:
    """One kind of data; ``count`` files, or a copy of the tree ``origin``."""

    name: str
    count: int = 0
    origin: Path | None = None

    @property
    def title(self) -> str:
        if self.name == "tree":
            return "C: a source tree"
        return f"{'A' if self.name == 'small' else 'B'}: {self.count:,} files of {_SIZES[self.name]}, incompressible"

    def make(self, top: Path) -> None:
        if self.name == "small":
            _make_small_files(top, self.count)
        elif self.name == "large":
            _make_large_files(top, self.count)
        else:
            assert self.origin is not None
            shutil.copytree(self.origin, top, symlinks=True)

    def change(self, top: Path, seed: int) -> Callable[[], None]:
        """A small change; what is returned puts the old bytes back.

        One file in a hundred gets new content (of large ones a hundredth is overwritten, in each); in a tree every
        time is new as well, as in a next release.
        """
        generator = random.Random(f"change {seed}")  # no bytes that were there before
        kept: list[tuple[Path, int, bytes, bool]] = []  # path, offset, old bytes, whether the file ends there
        for number, path in enumerate(_files(top)):
            if self.name == "large":
                kept.append((path, *_overwrite_part(path, generator), False))
            elif number % 100 == 0:
                old = path.read_bytes()
                kept.append((path, 0, old, True))
                path.write_bytes(generator.randbytes(SMALL_BYTES) if self.name == "small" else old * 2)
            elif self.name == "tree":
                os.utime(path)
        return lambda: _put_back(kept)

    def one_file(self, top: Path) -> str:
        """The path of a file in the middle."""
        files = _files(top)
        return str(files[len(files) // 2].relative_to(top))

    def one_folder(self, top: Path) -> str:
        """The folder of that file, or the top where there is none."""
        return str(Path(self.one_file(top)).parent)


_SIZES = {"small": "20 KB", "large": "128 MB"}


def _files(top: Path) -> list[Path]:
    return sorted(path for path in top.rglob("*") if path.is_file() and not path.is_symlink())


def _overwrite_part(path: Path, generator: random.Random) -> tuple[int, bytes]:
    """Where a hundredth of the file was overwritten, and what stood there."""
    with open(path, "r+b") as file:
        offset = file.seek(generator.randrange(LARGE_BYTES * 9 // 10))
        old = file.read(LARGE_BYTES // 100)
        file.seek(offset)
        file.write(generator.randbytes(len(old)))
    return offset, old


def _put_back(kept: list[tuple[Path, int, bytes, bool]]) -> None:
    for path, offset, old, is_whole in kept:
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(old)
            if is_whole:
                file.truncate()


def _make_small_files(top: Path, count: int) -> None:
    generator = random.Random(1)
    for number in range(count):
        folder = top / f"{number // _FILES_PER_FOLDER:04}"
        if number % _FILES_PER_FOLDER == 0:
            folder.mkdir(parents=True)
        (folder / f"{number:07}.jpg").write_bytes(generator.randbytes(SMALL_BYTES))


def _make_large_files(top: Path, count: int) -> None:
    folder = top / "files"
    folder.mkdir(parents=True)
    for number in range(count):
        generator = random.Random(number)
        with open(folder / f"{number:03}.bin", "wb") as file:
            file.writelines(generator.randbytes(1_000_000) for _ in range(LARGE_BYTES // 1_000_000))
