"""A lazy mount seen from elsewhere: a bind mount, below an overlay, by another user, from another namespace."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.same.conftest import Pair, open_to_others
from tests.mount.same.everything import described, digests

NOBODY = 65534


@contextlib.contextmanager
def mount_of(place: Path, *words: object) -> Iterator[bytes]:
    """What ``mount WORDS place`` makes."""
    place.mkdir()
    subprocess.run(["mount", *words, place], check=True)
    try:
        yield os.fsencode(place)
    finally:
        subprocess.run(["umount", place], check=True)


def assert_same(pair: Pair, seen: bytes) -> None:
    pair.forget()
    assert described(seen, with_links=pair.has_links) == described(pair.copy, with_links=pair.has_links)
    assert digests(seen) == digests(pair.copy)


def test_through_a_bind_mount(pair: Pair, tmp_path: Path) -> None:
    with mount_of(tmp_path / "bind", "--bind", pair.mount) as seen:
        assert_same(pair, seen)


def test_through_an_overlay_whose_files_are_changed(pair: Pair, tmp_path: Path) -> None:
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={os.fsdecode(pair.mount)},upperdir={tmp_path / 'upper'},workdir={tmp_path / 'work'}"
    with mount_of(tmp_path / "overlay", "-t", "overlay", "overlay", "-o", options) as seen:
        assert_same(pair, seen)
        before = digests(pair.copy)
        pair.forget()
        # One byte: the whole file is copied up, from what is not here.
        with open(os.path.join(seen, b"large/random"), "r+b") as file:
            file.seek(5_000_000)
            file.write(b"\0changed\0")
        with open(os.path.join(seen, b"wide/0007"), "ab") as file:
            file.write(b"more")
        os.rename(os.path.join(seen, b"sizes/random 4097"), os.path.join(seen, b"renamed"))
        os.unlink(os.path.join(seen, b"sizes/random 4096"))
        with open(os.path.join(pair.copy, b"large/random"), "rb") as file:
            wanted = bytearray(file.read())
        wanted[5_000_000:5_000_009] = b"\0changed\0"
        with open(os.path.join(seen, b"large/random"), "rb") as file:
            assert file.read() == wanted
        after = digests(seen)
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        assert changed == {
            b"large/random",
            b"wide/0007",
            b"renamed",
            b"sizes/random 4097",
            b"sizes/random 4096",
        }
        assert after[b"renamed"] == before[b"sizes/random 4097"]
    assert digests(pair.mount) == before


@pytest.mark.parametrize(("path", "may"), [("sizes/random 65536", True), ("modes/0600", False), ("modes/0000", False)])
def test_by_another_user(pair: Pair, tmp_path: Path, path: str, may: bool) -> None:
    open_to_others(tmp_path)
    told = []
    for side in pair.sides():
        done = subprocess.run(
            ["cat", os.path.join(side, os.fsencode(path))],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            capture_output=True,
            check=False,
        )
        told.append((done.returncode, done.stdout))
    assert told[0] == told[1]
    assert (told[1][0] == 0) == may


def test_from_another_mount_namespace(pair: Pair) -> None:
    copy, mount = pair.sides()
    script = 'umount "$2" && test ! -e "$2/sizes" && mount --bind "$1" "$2"; cat "$1/large/random" | sha256sum'
    inside = 'diff -r --no-dereference "$1" "$2" && cat "$2/large/random" | sha256sum'
    there = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", inside, "sh", copy, mount],
        capture_output=True,
        check=True,
    ).stdout
    # Who unmounts it there takes it away from nobody else.
    gone = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", copy, mount],
        capture_output=True,
        check=True,
    ).stdout
    assert there == gone
    pair.forget()
    assert digests(mount) == digests(copy)


def test_from_a_root_of_its_own(pair: Pair) -> None:
    """chroot(2) into it: the mount is all that there is."""
    read = "import os, sys; os.chroot(sys.argv[1]); sys.stdout.buffer.write(open('/large/random', 'rb').read())"
    found = [
        subprocess.run(["python3", "-c", read, side], capture_output=True, check=True).stdout for side in pair.sides()
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 7_000_001
