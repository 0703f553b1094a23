"""Data of the benchmarks: made from a seed, so that every tool sees the same."""

from __future__ import annotations

import random
from pathlib import Path

SMALL_BYTES = 20_000
LARGE_BYTES = 128_000_000
_FILES_PER_FOLDER = 500


def make_small_files(top: Path, count: int) -> None:
    """``count`` incompressible files of 20 KB, 500 in a folder."""
    generator = random.Random(1)
    for number in range(count):
        folder = top / f"{number // _FILES_PER_FOLDER:04}"
        if number % _FILES_PER_FOLDER == 0:
            folder.mkdir(parents=True)
        (folder / f"{number:07}.jpg").write_bytes(generator.randbytes(SMALL_BYTES))


def make_large_files(top: Path, count: int) -> None:
    """``count`` incompressible files of 128 MB."""
    top.mkdir(parents=True)
    for number in range(count):
        generator = random.Random(number)
        with open(top / f"{number:03}.bin", "wb") as file:
            file.writelines(generator.randbytes(1_000_000) for _ in range(LARGE_BYTES // 1_000_000))


def change_one_percent(top: Path, seed: int) -> None:
    """Small files: one in a hundred gets new content. Large ones: a hundredth of each is overwritten in one place."""
    generator = random.Random(seed)
    for number, path in enumerate(sorted(path for path in top.rglob("*") if path.is_file())):
        if path.suffix == ".jpg":
            if number % 100 == 0:
                path.write_bytes(generator.randbytes(SMALL_BYTES))
        else:
            with open(path, "r+b") as file:
                file.seek(generator.randrange(LARGE_BYTES * 9 // 10))
                file.write(generator.randbytes(LARGE_BYTES // 100))
