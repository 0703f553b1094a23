"""Local disks and directories that are full, closed or changing: each fault is named, nothing is torn, the next run
goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from synclib.clock import stamp_clock_ns
from synclib.core.entry import Kind
from synclib.core.names import ACTIVE, DOWN, ERROR
from synclib.core.streaming import Stretch, landings_of
from synclib.disk.scan import Found, Listing, list_directory
from synclib.disk.scan_extras import Extras
from synclib.engine.follow import Follower
from synclib.engine.host import Connect, Host
from synclib.engine.pack_job import Buffers, PackJob, pack_files
from synclib.errors import BoxlinkError, Full, Invalid
from synclib.lazy.dataset import STORE_KEY
from synclib.lazy.view import ChunkSource
from synclib.store.meter import Meter
from synclib.store.open import open_store
from tests.engine.test_node import Silent
from tests.kit import Content, Kit, put, read_tree

MIB = 1 << 20
NOBODY = 65534


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    if os.geteuid():
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "boxlink-test", place]
    mounted = subprocess.run(command, check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


class Choosy:
    """A file system that has no names with a colon, as VFAT: none of the kernels that tests run on brings one."""

    def __init__(self, number: int, patch: pytest.MonkeyPatch) -> None:
        for name in ("open", "mkdir", "stat", "rename", "symlink", "link"):
            patch.setattr(os, name, self._choosy(number, getattr(os, name)))

    @staticmethod
    def _choosy(number: int, function: Callable[..., object]) -> Callable[..., object]:
        def called(*words: object, **more: object) -> object:
            if any(isinstance(word, bytes) and b":" in word for word in words):
                raise OSError(number, os.strerror(number))
            return function(*words, **more)

        return called


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENAMETOOLONG, errno.EILSEQ])
def test_names_that_a_target_cannot_hold_are_said_and_the_rest_is_there(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = Kit(tmp_path / "kit")
    large = random.Random(1).randbytes(3 * MIB)
    good: Content = {b"a": b"1", b"d/x": b"2", b"z": large}
    bad: Content = {b"b:": b"3", b"c:/in/e": b"4", b"c:/in/large": large, b"d/f:/g": b"5"}
    kit.write({**good, **bad})
    os.symlink(b"a", os.fsencode(kit.directory) + b"/l:")
    kit.publish()
    target = tmp_path / "target"
    for _ in range(2):
        with monkeypatch.context() as patch:
            Choosy(number, patch)
            done = kit.restore(target)
        named = {path for path, reason in done.problems if os.strerror(number) in reason}
        assert {b"b:", b"c:", b"l:", b"d/f:"} <= named
        assert {b"c:/in/e", b"c:/in/large", b"d/f:/g"} <= {path for path, _ in done.problems}
        assert {path: data for path, data in read_tree(target).items() if data is not None} == good
    done = kit.restore(target)
    assert not done.problems
    assert read_tree(target)[b"c:/in/large"] == large


def fill(disk: Path, left_bytes: int = 0) -> Path:
    """A file that leaves only so much room."""
    path = disk / "filling"
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            have = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - left_bytes
            if have <= 0 or not file.write(bytes(min(have, MIB))):
                break
    return path


def content(seed: int, large: int = 18 * MIB) -> Content:
    entropy = random.Random(seed)
    small: Content = {b"d/%02d" % number: entropy.randbytes(20_000) for number in range(40)}
    return {b"d": None, **small, b"large": entropy.randbytes(large)}


def file_kit(place: Path, store: Path) -> Kit:
    store.mkdir(parents=True)
    url = f"file://{store}"
    opened = open_store(url, {})[0]
    opened.put(STORE_KEY, b"{}")
    return Kit(place, opened, connect=Connect(url))


@pytest.mark.parametrize("is_here", [True, False], ids=["in this process", "in workers"])
@pytest.mark.parametrize("left_bytes", [0, 100_000, 5 * MIB])
def test_restore_onto_a_disk_that_fills_up(small_disk: Path, tmp_path: Path, is_here: bool, left_bytes: int) -> None:
    """Somebody else takes the room after it was checked."""
    kit = file_kit(tmp_path / "kit", tmp_path / "store")
    if is_here:
        kit.connect = None
    kit.write(content(1))
    kit.publish()
    out = small_disk / "out"
    out.mkdir()
    (out / DOWN).write_text("an old answer")
    with pytest.raises(Full) as caught:
        kit.restore(out, before_change=lambda: fill(small_disk, left_bytes))
    assert caught.value.exit_code == 22
    assert not (out / DOWN).exists()
    for path, value in read_tree(out).items():
        assert value == content(1)[path], path
    assert kit.verify().damage == []
    (small_disk / "filling").unlink()
    assert kit.restore(out).problems == []
    assert read_tree(out) == content(1)


def test_restore_onto_a_disk_that_is_full(small_disk: Path, tmp_path: Path) -> None:
    kit = Kit(tmp_path / "kit")
    kit.write({b"a": b"1"})
    kit.publish()
    kit.restore(small_disk / "out")
    kit.write({b"a": b"2" * 100_000})
    kit.publish()
    filling = fill(small_disk)
    with pytest.raises(Full):
        kit.restore(small_disk / "out")
    assert read_tree(small_disk / "out") == {b"a": b"1"}
    filling.unlink()
    kit.restore(small_disk / "out")
    assert read_tree(small_disk / "out") == {b"a": b"2" * 100_000}


def test_the_node_on_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    kit = Kit(tmp_path / "kit")
    kit.write(content(1, MIB))
    kit.publish()
    directory = small_disk / "data/covers"
    directory.mkdir(parents=True)
    (directory / ACTIVE).touch()
    follower = Follower(directory, kit.store, None, kit.host, Silent(), 10, lambda: False, Meter())
    filling = fill(small_disk)
    error = follower.round()
    assert error is not None
    assert error.kind == "full"
    assert not (directory / DOWN).exists()
    filling.unlink()
    assert follower.round() is None
    assert (directory / DOWN).exists()
    assert not (directory / ERROR).exists()
    assert read_tree(directory) == content(1, MIB)


@pytest.mark.parametrize("is_here", [True, False], ids=["in this process", "in workers"])
def test_publish_into_a_full_store(small_disk: Path, tmp_path: Path, is_here: bool) -> None:
    kit = file_kit(tmp_path / "kit", small_disk / "store")
    if is_here:
        kit.connect = None
    kit.write(content(1, MIB))
    kit.publish()
    kit.write(content(2, 18 * MIB))
    for left_bytes in (0, 5_000, 20_000, 3 * MIB):
        filling = fill(small_disk, left_bytes)
        with pytest.raises(Full) as caught:
            kit.publish()
        assert caught.value.exit_code == 22
        filling.unlink()
        assert kit.dataset.read_head().manifest.seq == 1
        assert kit.verify().damage == []
    assert kit.publish().seq == 2
    kit.restore(tmp_path / "out")
    assert read_tree(tmp_path / "out") == content(2, 18 * MIB)


@pytest.mark.parametrize("what", ["state", "cache", "store", "target"])
def test_every_amount_of_room_ends_well_or_as_full(small_disk: Path, tmp_path: Path, what: str) -> None:
    """The disk gives out at each step in turn; whatever step it is, it is said in the same way."""
    if what == "store":
        kit = file_kit(tmp_path / "kit", small_disk / "store")
        kit.connect = None
    else:
        kit = Kit(tmp_path / "kit")
    places = {"state": tmp_path / "state", "cache": tmp_path / "cache"}
    places[what] = small_disk / "full"
    kit.host = Host("n1", kit.host.clock, kit.host.entropy, places["state"], places["cache"])
    target = small_disk / "out" if what == "target" else tmp_path / "out"
    ends: set[str] = set()
    tree: Content = {}
    for number, left_bytes in enumerate([0, *(4096 * step for step in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)), 40 * MIB]):
        tree[b"f%d" % number] = random.Random(number).randbytes(30_000)
        kit.write(tree)
        with room(small_disk, left_bytes):
            ends.add(outcome(kit.publish))
            ends.add(outcome(lambda: kit.restore(target)))
        seq = kit.dataset.read_head_or_empty().manifest.seq
        assert not seq or kit.verify().damage == []
    assert ends == {"full", "done"}
    assert kit.publish().seq == kit.dataset.read_head().manifest.seq
    kit.restore(target)
    assert read_tree(target) == tree


@contextlib.contextmanager
def room(disk: Path, left_bytes: int) -> Iterator[None]:
    filling = fill(disk, left_bytes)
    try:
        yield
    finally:
        filling.unlink()


def outcome(act: Callable[[], object]) -> str:
    try:
        act()
    except BoxlinkError as error:
        # Nothing was ever published: the head is missing, and that is said.
        return "full" if error.kind == "missing" else error.kind
    return "done"


# -- rights: root reads everything, so a child without them looks


@pytest.fixture
def shared_place() -> Iterator[Path]:
    """A directory that belongs to nobody, in which nobody's processes may work."""
    if os.geteuid():
        pytest.skip("changing to another user needs root")
    with tempfile.TemporaryDirectory() as place:
        os.chown(place, NOBODY, NOBODY)
        try:
            yield Path(place)
        finally:
            subprocess.run(["chmod", "-R", "u+rwx", place], check=True)


def as_nobody(scenario: Callable[[], None]) -> None:
    """Run in a child without root's rights; its traceback is this test's."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setegid(NOBODY)
            os.seteuid(NOBODY)
            scenario()
        except BaseException:
            os.write(write, traceback.format_exc().encode()[-60_000:])
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    assert not told, told.decode()


def test_what_cannot_be_read_keeps_its_old_entry(shared_place: Path) -> None:
    def scenario() -> None:
        kit = Kit(shared_place)
        first: Content = {
            b"file": b"1",
            b"open": b"1",
            b"closed": None,
            b"closed/a": b"1",
            b"closed/e": None,
            b"closed/e/f": b"1",
            b"listed": None,
            b"listed/a": b"1",
            b"listed/e": None,
            b"listed/e/f": b"1",
            b"listed/e/g": None,
            b"listed/e/g/h": b"1",
            b"z": b"1",
        }
        kit.write(first)
        kit.publish()
        put(kit.directory, b"file", b"22")
        put(kit.directory, b"open", b"22")
        put(kit.directory, b"never", b"22")
        os.unlink(kit.directory / "z")
        (kit.directory / "file").chmod(0)
        (kit.directory / "never").chmod(0)
        (kit.directory / "closed").chmod(0)
        # Its names can be listed, but nothing be told of them.
        (kit.directory / "listed").chmod(0o644)
        done = kit.publish()
        names = {path for path, _ in done.skipped}
        assert names == {b"closed", b"file", b"listed/a", b"listed/e", b"never"}, names
        assert (done.seq, done.deleted) == (2, 1)
        assert kit.restore(shared_place / "out").problems == []
        for name in ("closed", "listed"):
            (shared_place / "out" / name).chmod(0o755)
        expected = {**first, b"open": b"22"}
        del expected[b"z"]
        assert read_tree(shared_place / "out") == expected
        for name in ("file", "never", "closed", "listed"):
            (kit.directory / name).chmod(0o755)
        done = kit.publish()
        assert (done.skipped, done.deleted) == ([], 0)
        kit.restore(shared_place / "out")
        assert read_tree(shared_place / "out") == {**expected, b"file": b"22", b"never": b"22"}

    as_nobody(scenario)


def test_directories_that_are_closed_to_writing_are_followed(shared_place: Path) -> None:
    """Trees that are read-only by design: what changes in them is restored, and their modes stay."""

    def scenario() -> None:
        kit = Kit(shared_place)
        out = shared_place / "out"
        states: list[Content] = [
            {b"r": None, b"r/a": b"1", b"r/s": None, b"r/s/b": b"1", b"r/s/c": b"1", b"q": None, b"q/x": b"1"},
            {b"r": None, b"r/a": b"22", b"r/s": None, b"r/s/b": b"22", b"r/s/n": b"2", b"q": None, b"q/x": b"1"},
            {b"r": None, b"r/a": b"22", b"r/l": ("link", b"a"), b"q": None},
        ]
        for state in states:
            for name in ("r", "r/s", "q"):
                with contextlib.suppress(FileNotFoundError):
                    (kit.directory / name).chmod(0o755)
            kit.write(state)
            for name in ("r/s", "r", "q"):
                with contextlib.suppress(FileNotFoundError):
                    (kit.directory / name).chmod(0o555)
            kit.publish()
        for seq in (1, 2, 3, 1, 3):
            for is_full in (False, True):
                done = kit.restore(out, seq, is_full=is_full)
                assert (done.problems, done.kept) == ([], []), (seq, done)
                assert read_tree(out) == states[seq - 1]
                for path, value in states[seq - 1].items():
                    if value is None:
                        assert os.stat(os.path.join(os.fsencode(out), path)).st_mode & 0o777 == 0o555

    as_nobody(scenario)


def test_a_target_that_may_not_be_written(shared_place: Path) -> None:
    def scenario() -> None:
        kit = Kit(shared_place)
        kit.write({b"a": b"1"})
        kit.publish()
        (shared_place / "closed").mkdir(0o555)
        with pytest.raises(Invalid):
            kit.restore(shared_place / "closed")
        with pytest.raises(Invalid):
            kit.restore(shared_place / "closed/below")
        kit.host.state.chmod(0o555)
        (kit.host.state / "base").chmod(0o555)
        put(kit.directory, b"a", b"2")
        with pytest.raises(Invalid):
            kit.publish()

    as_nobody(scenario)


# -- a source that does not stand still


def test_a_file_that_grows_all_the_time_is_skipped_or_whole(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.write({b"grows": b"", b"still": b"1"})
    stop = threading.Event()

    def append() -> None:
        with open(kit.directory / "grows", "ab", buffering=0) as file:
            number = 0
            while not stop.is_set():
                number += 1
                file.write(b"%09d\n" % number)

    writer = threading.Thread(target=append)
    writer.start()
    try:
        skipped = 0
        for _ in range(15):
            done = kit.publish()
            assert {path for path, _ in done.skipped} <= {b"grows"}
            skipped += len(done.skipped)
    finally:
        stop.set()
        writer.join()
    assert skipped
    for seq in range(1, kit.dataset.read_head().manifest.seq + 1):
        kit.restore(tmp_path / "out", seq)
        lines = (tmp_path / "out/grows").read_bytes() if (tmp_path / "out/grows").exists() else b""
        assert lines == b"".join(b"%09d\n" % number for number in range(1, len(lines) // 10 + 1))
    kit.publish()
    kit.restore(tmp_path / "out")
    assert read_tree(tmp_path / "out") == read_tree(kit.directory)


REWRITE = """
import os, sys
page, last = os.open(sys.argv[1], os.O_RDWR), int(sys.argv[2])
number = 0
while True:
    number += 1
    for place in (0, last):
        os.pwrite(page, number.to_bytes(8, "big"), place)
"""


TICK_NS = 10_000_000


def ticking(descriptor: int) -> SimpleNamespace:
    """The status of a file as kernels before 6.13 tell it: their stamps move in ticks of up to 10 ms."""
    status = REAL_FSTAT(descriptor)
    mtime_ns, ctime_ns = (time_ns // TICK_NS * TICK_NS for time_ns in (status.st_mtime_ns, status.st_ctime_ns))
    return SimpleNamespace(st_mode=status.st_mode, st_size=status.st_size, st_mtime_ns=mtime_ns, st_ctime_ns=ctime_ns)


REAL_FSTAT = os.fstat


def test_a_file_that_is_rewritten_in_place_is_never_a_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size and, within a tick of the kernel's clock, its times stay the same. A number at its start is raised
    first, then the one at its end: at every moment they are equal or one apart."""
    kit = Kit(tmp_path)
    monkeypatch.setattr("synclib.engine.pack_job.os.fstat", ticking)
    monkeypatch.setattr("synclib.engine.pack_job.stamp_clock_ns", lambda: stamp_clock_ns() // TICK_NS * TICK_NS)
    size = 1_000_000
    page = kit.directory / "page"
    page.write_bytes(bytes(size))
    writer = subprocess.Popen([sys.executable, "-c", REWRITE, page, str(size - 8)])
    try:
        for number in range(100):
            mtime_ns = os.stat(page).st_mtime_ns // TICK_NS * TICK_NS
            found = Found(b"", b"page", Kind.FILE, 0o644, mtime_ns, size)
            ulid = number.to_bytes(16, "big")
            index, top = tmp_path / "chunks.sqlite", os.fsencode(kit.directory)
            job = PackJob(Connect("memory://"), kit.dataset.root, top, b"", index, str(number), ulid, [found])
            for entry in pack_files(job, kit.store, Buffers()).entries:
                value = bytearray(size)
                landings = landings_of(entry.chunks, 0)
                ChunkSource(kit.store, kit.dataset.root).fill(entry, landings, Stretch(memoryview(value), 0))
                first, last = (int.from_bytes(value[place : place + 8], "big") for place in (0, size - 8))
                assert first - last in (0, 1)
    finally:
        writer.kill()
        writer.wait()


@pytest.mark.parametrize("after", [b"", b"d", b"e"])
def test_files_that_vanish_while_they_are_published(
    tmp_path: Path, after: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removed once the scan has listed one directory: skipped this time, deleted the next."""
    kit = Kit(tmp_path)
    first: Content = {b"f": b"1", b"d": None, b"d/g": b"1", b"e": None, b"e/h": b"1", b"stays": b"1"}
    kit.write(first)
    kit.publish()
    kit.write({path: b"22" if value else value for path, value in first.items()})

    def vanishing(path: bytes, directory: bytes, extras: Extras, *, is_top: bool) -> Listing:
        listing = list_directory(path, directory, extras, is_top=is_top)
        if directory == after:
            subprocess.run(["rm", "-rf", *(kit.directory / name for name in ("f", "d", "e"))], check=True)
        return listing

    with monkeypatch.context() as patch:
        patch.setattr("synclib.engine.difference.list_directory", vanishing)
        kit.publish()
    kit.restore(tmp_path / "out")
    seen = read_tree(tmp_path / "out")
    assert seen[b"stays"] == b"22"
    for path, value in seen.items():
        assert value in (first[path], b"22")
    kit.publish()
    kit.restore(tmp_path / "out")
    assert read_tree(tmp_path / "out") == {b"stays": b"22"}
    assert kit.verify().damage == []
