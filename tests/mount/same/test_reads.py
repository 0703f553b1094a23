"""Every file of a lazy mount, by every way of reading, is what it is in a plain copy."""

from __future__ import annotations

import errno
import os
import subprocess

import pytest

from tests.mount.same.conftest import Pair
from tests.mount.same.everything import described, digests, files_of
from tests.mount.same.ways import WAYS, Way

_FIND = r"%P %y %m %s %T@ %l\0"


def test_names_types_modes_sizes_times_and_targets(pair: Pair) -> None:
    copy, mount = (described(side, with_links=pair.has_links) for side in pair.sides())
    assert mount == copy


def test_find_says_the_same(pair: Pair) -> None:
    command = ["find", ".", "-mindepth", "1", "-type", "d", "-printf", r"%P %y %m\0", "-o", "-printf", _FIND]
    copy, mount = (
        subprocess.run(command, cwd=side, capture_output=True, check=True).stdout.split(b"\0") for side in pair.sides()
    )
    assert sorted(mount) == sorted(copy)
    assert len(copy) > 1500


def test_names_of_one_file_are_one_file(pair: Pair) -> None:
    if not pair.has_links:
        pytest.skip("a FUSE tree shows the names of a hard link as files of their own")
    for side in pair.sides():
        paths = [os.path.join(side, b"links", name) for name in (b"first", b"second", b"below/third")]
        assert len({os.stat(path).st_ino for path in paths}) == 1
        assert len({os.stat(path).st_dev for path in paths}) == 1
    every = [os.lstat(path) for path in files_of(pair.mount)]
    assert len({status.st_ino for status in every}) == len(every) - 2


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_bytes(pair: Pair, way: Way) -> None:
    copy, mount = pair.sides()
    wrong = []
    for name in sorted(os.path.relpath(path, copy) for path in files_of(copy)):
        if name.startswith(b"wide/") and not name.startswith(b"wide/00"):
            continue  # more of the same
        path = os.path.join(copy, name)
        size = os.lstat(path).st_size
        found = []
        for side in (copy, mount):
            descriptor = os.open(os.path.join(side, name), os.O_RDONLY)
            try:
                found.append(way(descriptor, size))
            finally:
                os.close(descriptor)
        if found[0] != found[1]:
            wrong.append(name)
    assert wrong == []


def test_diff_finds_no_difference(pair: Pair) -> None:
    copy, mount = pair.sides()
    done = subprocess.run(
        ["diff", "-r", "--no-dereference", copy, mount], capture_output=True, check=False, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, b"")
    assert digests(mount) == digests(copy)


@pytest.mark.parametrize(
    ("path", "flags"),
    [
        (b"nothing", os.O_RDONLY),
        (b"sizes/random 1/below", os.O_RDONLY),
        (b"x" * 256, os.O_RDONLY),
        (b"links/link 4", os.O_RDONLY),
        (b"links/link 3", os.O_RDONLY),
        (b"sizes", os.O_WRONLY),
        (b"sizes/random 1", os.O_DIRECTORY),
        (b"links/link 0", os.O_RDONLY | os.O_NOFOLLOW),
    ],
)
def test_errors_are_the_same(pair: Pair, path: bytes, flags: int) -> None:
    numbers = []
    for side in pair.sides():
        with pytest.raises(OSError, match=r".") as caught:
            os.close(os.open(os.path.join(side, path), flags))
        numbers.append(errno.errorcode[caught.value.errno or 0])
    if flags == os.O_WRONLY:
        assert numbers[1] in ("EROFS", "EISDIR")
    else:
        assert numbers[0] == numbers[1]


def test_nothing_can_be_changed(pair: Pair) -> None:
    path = os.path.join(pair.mount, b"sizes/random 4096")
    changes = [
        lambda: os.close(os.open(path, os.O_WRONLY)),
        lambda: os.close(os.open(path + b" new", os.O_WRONLY | os.O_CREAT)),
        lambda: os.unlink(path),
        lambda: os.rename(path, path + b" other"),
        lambda: os.chmod(path, 0o777),
        lambda: os.utime(path),
        lambda: os.truncate(path, 0),
        lambda: os.mkdir(path + b" directory"),
        lambda: os.link(path, path + b" link"),
    ]
    for change in changes:
        with pytest.raises(OSError, match="Read-only file system"):
            change()


def test_a_directory_is_read_in_pieces_again_and_again(pair: Pair) -> None:
    listed = []
    for side in pair.sides():
        wide = os.path.join(side, b"wide")
        with os.scandir(wide) as entries:
            first = {next(entries).name for _ in range(100)}
        descriptor = os.open(wide, os.O_RDONLY | os.O_DIRECTORY)
        try:
            second, third = os.listdir(descriptor), os.listdir(descriptor)
        finally:
            os.close(descriptor)
        assert sorted(second) == sorted(third) == sorted(os.listdir(os.fsdecode(wide)))
        assert first <= set(map(os.fsencode, second))
        listed.append(sorted(second))
    assert listed[0] == listed[1]
