"""Data of the benchmarks: made from a seed, so that every tool sees the same.

Three shapes: ``small`` (files of 20 KB, 500 in a folder), ``large`` (files of 128 MB), ``tree`` (a copy of a source
tree).
"""

from __future__ import annotations

import os
import random
import shutil
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

    def make(self, top: Path) -> None:
        if self.name == "small":
            _make_small_files(top, self.count)
        elif self.name == "large":
            _make_large_files(top, self.count)
        else:
            assert self.origin is not None
            shutil.copytree(self.origin, top, symlinks=True)

    def change(self, top: Path, seed: int) -> None:
        """A small change: one file in a hundred gets new content (of large ones a hundredth is overwritten, in all); in
        a tree every time is new as well, as in a next release."""
        generator = random.Random(seed)
        for number, path in enumerate(_files(top)):
            if self.name == "large":
                with open(path, "r+b") as file:
                    file.seek(generator.randrange(LARGE_BYTES * 9 // 10))
                    file.write(generator.randbytes(LARGE_BYTES // 100))
            elif number % 100 == 0:
                path.write_bytes(generator.randbytes(SMALL_BYTES) if self.name == "small" else path.read_bytes() * 2)
            elif self.name == "tree":
                os.utime(path)

    def one_file(self, top: Path) -> str:
        """The path of a file in the middle."""
        files = _files(top)
        return str(files[len(files) // 2].relative_to(top))

    def one_folder(self, top: Path) -> str:
        """The folder of that file, or the top where there is none."""
        return str(Path(self.one_file(top)).parent)


def _files(top: Path) -> list[Path]:
    return sorted(path for path in top.rglob("*") if path.is_file() and not path.is_symlink())


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
