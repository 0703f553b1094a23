"""What only a store of files must stand: other processes, kills, strangers in the directory, full disks."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from synclib.clock import ManualClock, SeededEntropy, SystemClock, SystemEntropy
from synclib.errors import Ambiguous, Full, Invalid, Missing, Unavailable
from synclib.store import file_lock
from synclib.store.base import Strangers, in_spite_of_strangers
from synclib.store.file import FileStore
from tests.conformance import file_workers
from tests.conformance.file_workers import open_file_store

SPAWN = multiprocessing.get_context("spawn")
SIZES = [0, 1, 5000, 70_000, 1 << 20, 3 << 20]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    return path


@pytest.fixture
def store(root: Path) -> FileStore:
    return open_file_store(str(root))


def read(store: FileStore, key: str) -> bytes:
    fetched = store.get(key, size_max=1 << 24)
    assert fetched is not None
    return fetched.data


def join(*processes: multiprocessing.process.BaseProcess) -> None:
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_keys_are_paths(store: FileStore, root: Path) -> None:
    store.put("data/covers/head", b"head")
    assert (root / "data/covers/head").read_bytes() == b"head"


def test_a_root_that_is_not_there_is_missing_until_created(tmp_path: Path) -> None:
    store = open_file_store(str(tmp_path / "new" / "store"))
    for call in (
        lambda: store.get("a", size_max=1),
        lambda: store.put("a", b""),
        lambda: store.delete("a"),
        lambda: list(store.list("")),
    ):
        with pytest.raises(Missing) as caught:
            call()
        assert "init" in caught.value.hint
    store.create()
    store.create()
    store.put("a", b"1")
    assert read(store, "a") == b"1"


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = open_file_store(str(tmp_path / "file"))
    for call in (store.create, lambda: store.put("a", b""), lambda: store.get("a", size_max=1)):
        with pytest.raises(Invalid) as caught:
            call()
        assert "directory" in caught.value.hint


def test_processes_lose_no_increment(store: FileStore, root: Path) -> None:
    store.put("count", b"0")
    barrier = SPAWN.Barrier(3)
    processes = [SPAWN.Process(target=file_workers.increment, args=(str(root), 30, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    join(*processes)
    assert read(store, "count") == b"90"


def test_one_process_wins_each_race_to_create(store: FileStore, root: Path) -> None:
    barrier = SPAWN.Barrier(3)
    processes = [SPAWN.Process(target=file_workers.claim, args=(str(root), 40, who, barrier)) for who in range(3)]
    for process in processes:
        process.start()
    join(*processes)
    won = [info.key.split("/")[1:] for info in store.list("won/")]
    assert sorted(int(number) for number, _ in won) == list(range(40))
    for number, worker in won:
        assert read(store, f"race/{number}") == worker.encode()


def check_whole(data: bytes) -> None:
    which = data[0] if data else 0
    assert len(data) == SIZES[which]
    assert data == bytes([which]) * len(data)


def test_readers_never_see_a_torn_object(store: FileStore, root: Path) -> None:
    store.put("a", b"")
    stop = SPAWN.Event()
    process = SPAWN.Process(target=file_workers.rewrite, args=(str(root), "a", SIZES, stop))
    process.start()
    seen: set[int] = set()
    deadline = time.monotonic() + 60
    while len(seen) < len(SIZES) and time.monotonic() < deadline:
        data = read(store, "a")
        check_whole(data)
        seen.add(len(data))
        suffix = store.get_suffix("a", 100)
        assert len(suffix.data) == min(100, suffix.size)
        assert len(set(suffix.data)) <= 1
    stop.set()
    join(process)
    assert seen == set(SIZES)


def test_a_kill_at_any_moment_leaves_old_or_new(store: FileStore, root: Path) -> None:
    store.put("a", b"")
    entropy = SeededEntropy(7)
    never = SPAWN.Event()
    for _ in range(4):
        before = store.get_suffix("a", 1).etag
        process = SPAWN.Process(target=file_workers.rewrite, args=(str(root), "a", SIZES, never))
        process.start()
        wait_until(lambda etag=before: store.get_suffix("a", 1).etag != etag)
        time.sleep(entropy.uniform() * 0.03)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        check_whole(read(store, "a"))
    # The lock of a killed writer is free, and its leavings are in no listing.
    store.put("b", b"")
    assert [info.key for info in store.list("")] == ["a", "b"]


def test_a_writer_killed_halfway_leaves_the_old_and_is_cleaned_up_after(
    store: FileStore, root: Path, tmp_path: Path
) -> None:
    store.put("a", b"old")
    pipe = tmp_path / "body"
    os.mkfifo(pipe)
    process = SPAWN.Process(target=file_workers.put_from, args=(str(root), "a", str(pipe)))
    process.start()
    with open(pipe, "wb", buffering=0) as body:
        body.write(bytes(50_000))
        wait_until(lambda: [entry.stat().st_size for entry in leftovers(root)] == [50_000])
        # While the writer lives, its file is not swept, however old it looks.
        os.utime(leftovers(root)[0], (0, 0))
        open_file_store(str(root)).put("b", b"")
        assert len(leftovers(root)) == 1
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert read(store, "a") == b"old"
    later = ManualClock(SystemClock().wall_ns() + 2 * file_lock.LEFTOVER_AGE_NS)
    FileStore(str(root), later, SystemEntropy()).put("b", b"")
    assert leftovers(root) == []


def leftovers(root: Path) -> list[Path]:
    return [path for path in (root / "%tmp").iterdir() if path.name != "lock"]


def test_young_leftovers_stay(store: FileStore, root: Path) -> None:
    store.put("a", b"")
    (root / "%tmp" / "half").write_bytes(b"half")
    open_file_store(str(root)).put("a", b"")
    assert len(leftovers(root)) == 1


def test_etags_never_repeat_while_the_clock_stands_or_goes_back(root: Path) -> None:
    clock = ManualClock()
    etags = set()
    for number in range(60):
        store = FileStore(str(root), clock, SystemEntropy())
        if number % 3 == 0:
            store.delete("a")
        etags.add(store.put("a", b"%02d" % number))
        if number == 30:
            clock.advance(-10_000)
    assert len(etags) == 60


def test_a_lock_that_is_never_given_back_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    clock = ManualClock()
    store = FileStore(str(root), clock, SystemEntropy())
    store.put("a", b"1")
    with open(root / "%tmp" / "lock", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Unavailable):
            store.put("a", b"2")
        assert clock.monotonic() >= file_lock.LOCK_TIMEOUT_S
    assert read(store, "a") == b"1"


@pytest.mark.parametrize("where", ["data", "data/covers", "data/covers/head"])
def test_symlinks_are_not_followed(store: FileStore, root: Path, tmp_path: Path, where: str) -> None:
    outside = tmp_path / "outside"
    (outside / "covers").mkdir(parents=True)
    for name in ("head", "covers/head"):
        (outside / name).write_bytes(b"secret")
    (root / where).parent.mkdir(parents=True, exist_ok=True)
    (root / where).symlink_to(outside / "head" if where.endswith("head") else outside)
    for call in (
        lambda: store.get("data/covers/head", size_max=99),
        lambda: store.get_ranges("data/covers/head", [(0, 1)]),
        lambda: store.get_suffix("data/covers/head", 1),
        lambda: store.put("data/covers/head", b"x"),
        lambda: store.put("data/covers/head", b"x", if_absent=True),
        lambda: store.delete("data/covers/head"),
        lambda: list(store.list("")),
        lambda: list(store.list("data/covers/")),
    ):
        with pytest.raises(Invalid) as caught:
            call()
        assert "symlink" in caught.value.message
    assert (outside / "head").read_bytes() == b"secret"
    assert (outside / "covers/head").read_bytes() == b"secret"
    assert sorted(path.name for path in outside.rglob("*")) == ["covers", "head", "head"]


def test_a_root_may_be_a_symlink(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    open_file_store(str(tmp_path / "link")).put("a", b"1")
    assert (root / "a").read_bytes() == b"1"


def test_pipes_and_strange_names(store: FileStore, root: Path) -> None:
    os.mkfifo(root / "pipe")
    with pytest.raises(Invalid):
        store.get("pipe", size_max=1)
    os.unlink(root / "pipe")
    for name in (b"\xff", b"new\nline", b"50%", b"%zz", b"ok"):
        (root / os.fsdecode(name)).write_bytes(b"1")
    # `50%` is where an object `50` stands when a directory has its name.
    assert [info.key for info in store.list("")] == ["50", "ok"]


@pytest.mark.parametrize("where", ["proxy/link", "proxy/a/link", "proxy/0", "proxy/zz"])
def test_a_stranger_is_said_when_all_objects_were_shown(store: FileStore, root: Path, where: str) -> None:
    keys = ["proxy/a/b", "proxy/b", "proxy/m/c", "proxy/z"]
    for key in keys:
        store.put(key, b"1")
    os.mkfifo(root / where) if where.endswith("zz") else (root / where).symlink_to("/etc/passwd")
    listing = store.list("proxy/")
    assert [next(listing).key for _ in keys] == keys
    with pytest.raises(Strangers, match="symlink"):
        next(listing)
    said: list[str] = []
    assert [info.key for info in in_spite_of_strangers(store.list("proxy/"), said.append)] == keys
    assert len(said) == 1
    # Where nothing at all can be seen it is another error.
    with pytest.raises(Invalid) as caught:
        list(in_spite_of_strangers(store.list(where + "/"), said.append))
    assert not isinstance(caught.value, Strangers)


def test_percent_signs_and_reserved_names(store: FileStore) -> None:
    for key in ("%tmp", "%tmp/lock", "a%", "a%25", "50%/x"):
        store.put(key, key.encode())
    assert [info.key for info in store.list("")] == ["%tmp", "%tmp/lock", "50%/x", "a%", "a%25"]
    for info in store.list(""):
        assert read(store, info.key) == info.key.encode()


def test_a_component_too_long_for_a_file_is_refused(store: FileStore) -> None:
    store.put("a/" + "x" * 254, b"")
    with pytest.raises(Invalid):
        store.put("a/" + "x" * 255, b"")


def test_an_object_can_be_read_while_it_makes_room(store: FileStore, root: Path) -> None:
    """`room/<n>` becomes a directory under a reader's eyes, and is never missing nor changed."""
    rounds = 40
    for number in range(rounds):
        store.put(f"room/{number}", b"%d" % number)
    failed: list[BaseException] = []
    is_done = threading.Event()

    def look() -> None:
        try:
            while not is_done.is_set():
                for number in range(rounds):
                    assert read(store, f"room/{number}") == b"%d" % number
        except BaseException as error:
            failed.append(error)

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(rounds):
        store.put(f"room/{number}/below", b"")
    is_done.set()
    reader.join()
    assert not failed, failed
    assert len(list(store.list("room/"))) == 2 * rounds


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", path], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_full_disk_is_said_and_harms_nothing(small_disk: Path) -> None:
    store = open_file_store(str(small_disk))
    etag = store.put("a", b"old")
    with pytest.raises(Full):
        store.put("a", bytes(2 << 20), if_match=etag)
    assert read(store, "a") == b"old"
    assert leftovers(small_disk) == []
    assert store.put("a", bytes(100_000), if_match=etag)


def test_a_read_only_disk_can_be_read_and_says_so(small_disk: Path) -> None:
    open_file_store(str(small_disk)).put("a", b"1")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    store = open_file_store(str(small_disk))
    assert read(store, "a") == b"1"
    assert [info.key for info in store.list("")] == ["a"]
    for call in (lambda: store.put("a", b"2"), lambda: store.put("b", b"2"), lambda: store.delete("a")):
        with pytest.raises(Invalid) as caught:
            call()
        assert "rights" in caught.value.hint


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, Full),
        (errno.EDQUOT, Full),
        (errno.EACCES, Invalid),
        (errno.EIO, Unavailable),
        (errno.ESTALE, Unavailable),
    ],
)
def test_kinds(store: FileStore, root: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type) -> None:
    store.put("a", b"old")

    def fail(descriptor: int) -> None:
        raise OSError(number, "said the kernel")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(kind) as caught:
            store.put("a", b"new")
    assert type(caught.value) is kind
    assert read(store, "a") == b"old"
    assert leftovers(root) == []


def test_a_conditional_write_that_cannot_be_made_durable_is_ambiguous(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    etag = store.put("a", b"old")
    real = os.fsync

    def fail_for_directories(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "said the kernel")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_for_directories)
        with pytest.raises(Ambiguous):
            store.put("a", b"new", if_match=etag)
    assert read(store, "a") == b"new"


def test_a_store_that_was_here_and_is_away_is_unavailable(root: Path, store: FileStore) -> None:
    with pytest.raises(Missing):
        open_file_store(str(root / "nowhere")).get("a", size_max=1)
    store.put("a", b"x")
    away = root.rename(root.parent / "away")
    with pytest.raises(Unavailable):
        store.get("a", size_max=1)
    away.rename(root)
    assert read(store, "a") == b"x"
