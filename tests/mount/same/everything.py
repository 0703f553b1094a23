"""A tree of all that a dataset may hold, and what two trees must have in common."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sqlite3
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

TIMES_NS = (
    1_700_000_000_000_000_001,
    1_234_567_890_999_999_999,
    0,
    1,
    -1_500_000_000,  # 1969
    4_102_444_800_123_456_789,  # 2100
)
SIZES = (0, 1, 4095, 4096, 4097, 65_536, 131_073, (1 << 20) - 1, 1 << 20, (1 << 20) + 1)
MODES = (0o000, 0o400, 0o444, 0o600, 0o640, 0o755, 0o777, 0o4755, 0o2755)
WIDE = 1500


def make_everything(place: Path) -> None:
    chance, top = random.Random(8), os.fsencode(place)
    os.makedirs(top)
    _sizes(top, chance)
    _names(top, chance)
    _links(top)
    _sparse(top, chance)
    _programs(place)
    _database(place / "database.sqlite", chance)
    for number in range(WIDE):
        _write(top, b"wide/%04d" % number, chance.randbytes(chance.randrange(3000)))
    deep = b"/".join(b"level%d" % number for number in range(30))
    _write(top, deep + b"/bottom", b"deep down")
    os.makedirs(os.path.join(top, b"empty directory"), mode=0o1777)
    for number, path in enumerate(sorted(files_of(top))):
        time_ns = TIMES_NS[number % len(TIMES_NS)] if number % 3 else 1_600_000_000_000_000_000 + number * 1_234_567
        os.utime(path, ns=(time_ns, time_ns))


def files_of(top: bytes) -> Iterator[bytes]:
    """The full paths of all files that are no links."""
    for directory, _, names in os.walk(top):
        for name in names:
            path = os.path.join(directory, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                yield path


def _write(top: bytes, path: bytes, data: bytes) -> bytes:
    full = os.path.join(top, path)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(full, "wb") as file:
        file.write(data)
    return full


def _sizes(top: bytes, chance: random.Random) -> None:
    for size in SIZES:
        _write(top, b"sizes/random %d" % size, chance.randbytes(size))
        _write(top, b"sizes/text %d" % size, (b"compressible %d " % size * (size // 12 + 1))[:size])
    _write(top, b"large/random", chance.randbytes(7_000_001))
    _write(top, b"large/zeros", bytes(2_500_000))
    _write(top, b"large/mixed", b"".join(chance.randbytes(300_000) + bytes(400_000) for _ in range(5)))
    for mode in MODES:
        os.chmod(_write(top, b"modes/%04o" % mode, b"mode %o" % mode), mode)


def _names(top: bytes, chance: random.Random) -> None:
    names = [b"\xff\xfe\x80 raw", "Ünïcode ✓".encode(), b"new\nline", b" space ", b"-dash", b"quote\"'", b"x" * 255]
    for name in (*names, b"\x01control", b"back\\slash", b"*?[glob]"):
        _write(top, b"names/" + name, chance.randbytes(100))
        _write(top, b"names/dir " + name[:250] + b"/inside", name)


def _links(top: bytes) -> None:
    first = _write(top, b"links/first", b"one file of three names" * 1000)
    os.makedirs(os.path.join(top, b"links/below"))
    os.link(first, os.path.join(top, b"links/second"))
    os.link(first, os.path.join(top, b"links/below/third"))
    targets = [b"first", b"../sizes", b"/nonexistent/absolute", b"dangling", b"loop", b"\xff raw", b"x/" * 1900 + b"y"]
    for number, target in enumerate(targets):
        os.symlink(target, os.path.join(top, b"links/link %d" % number))
    os.symlink(b"loop", os.path.join(top, b"links/loop"))


def _sparse(top: bytes, chance: random.Random) -> None:
    with open(os.path.join(top, b"large/sparse"), "wb") as file:
        for at in (0, 3_000_000, 3_004_096, 11_111_111):
            file.seek(at)
            file.write(chance.randbytes(10_000))
        file.truncate(16 << 20)


def _programs(place: Path) -> None:
    programs = place / "programs"
    programs.mkdir()
    shutil.copy(os.path.realpath("/bin/echo"), programs / "echo")
    os.chmod(programs / "echo", 0o755)
    (programs / "script").write_text('#!/bin/sh\necho "a script says $1"\n')
    os.chmod(programs / "script", 0o755)
    with zipfile.ZipFile(programs / "app.pyz", "w", zipfile.ZIP_DEFLATED) as app:
        app.writestr("__main__.py", "import inside.module\nprint(inside.module.NAME, len(inside.module.TABLE))\n")
        app.writestr("inside/__init__.py", "")
        app.writestr("inside/module.py", f"NAME = 'zipped'\nTABLE = {list(range(20_000))}\n")


def _database(path: Path, chance: random.Random) -> None:
    with sqlite3.connect(path) as database:
        database.execute("create table cover (id integer primary key, isbn text, thumb blob)")
        rows = [(number, f"978{number:010}", chance.randbytes(300)) for number in range(5000)]
        database.executemany("insert into cover values (?, ?, ?)", rows)
        database.execute("create index by_isbn on cover (isbn)")
    database.close()


def described(top: bytes, *, with_links: bool) -> dict[bytes, tuple[object, ...]]:
    """Everything below ``top``: type, mode, size, time, target; ``with_links``: and how many names a file has."""
    found: dict[bytes, tuple[object, ...]] = {}
    for directory, below, names in os.walk(top):
        for name in (*below, *names):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            kind, mode = stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode)
            rest: tuple[object, ...] = ()
            if stat.S_ISREG(status.st_mode):
                rest = (status.st_size, status.st_mtime_ns, status.st_nlink if with_links else 0)
            elif stat.S_ISLNK(status.st_mode):
                rest = (status.st_size, os.readlink(path))
            found[os.path.relpath(path, top)] = (kind, mode, *rest)
    return found


def digests(top: bytes) -> dict[bytes, str]:
    """What is in every file."""
    found = {}
    for path in files_of(top):
        with open(path, "rb") as file:
            found[os.path.relpath(path, top)] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
