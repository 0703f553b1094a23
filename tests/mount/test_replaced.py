"""`boxlink mount` on a directory where another seq of the dataset is mounted: replaced at once, by hand."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from synclib.disk.mounts import devices_on
from tests.mount.mounted import Mounted
from tests.mount.test_upgrade import wait
from tools.mount_ahead import REPLACED
from tools.mounted import alone_at

MODES = ("erofs", "fuse")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    """Seqs 1 and 2 differ in ``text`` and ``seq``."""
    found = Mounted(tmp_path)
    (found.source / "seq").write_text("1")
    found.machine.run("publish", "covers", found.source)
    (found.source / "seq").write_text("2")
    found.machine.run("publish", "covers", found.source)
    try:
        yield found
    finally:
        while devices_on(os.fsencode(found.target)):
            found.unmount("--force")


def seq_at(mounted: Mounted) -> str:
    return (mounted.target / "seq").read_text()


def rows(mounted: Mounted) -> list[dict[str, object]]:
    found: list[dict[str, object]] = mounted.machine.json("status")["mounts"]
    return found


@pytest.mark.parametrize("first", MODES)
@pytest.mark.parametrize("second", MODES)
def test_another_seq_takes_its_place_and_what_is_open_keeps_its_bytes(
    mounted: Mounted, first: str, second: str
) -> None:
    mounted.mount("--seq", "2", "--mode", first)
    with (mounted.target / "seq").open() as open_file, (mounted.target / "large").open("rb") as large:
        done = mounted.mount("--seq", "3", "--mode", second)
        assert (done["is_new"], done["replaced"], done["directory"]) == (True, 2, str(mounted.target))
        assert seq_at(mounted) == "2"
        assert open_file.read() == "1"
        assert large.read() == (mounted.source / "large").read_bytes()
        assert {row["seq"] for row in rows(mounted)} == {2, 3}
    # Nobody has anything of it open: its processes go.
    wait(lambda: [row["seq"] for row in rows(mounted)] == [3])
    mounted.assert_same()
    back = mounted.mount("--seq", "2", "--mode", first)
    assert back["replaced"] == 3
    assert seq_at(mounted) == "1"
    wait(lambda: [row["seq"] for row in rows(mounted)] == [2])
    mounted.unmount()
    wait(lambda: not rows(mounted))
    assert not any(mounted.target.iterdir())
    assert not list((mounted.machine.place / "state/boxlink/mount").glob("*/mount.json"))


def test_whoever_opens_paths_all_the_time_sees_one_seq_or_the_other(mounted: Mounted) -> None:
    mounted.mount("--seq", "2")
    seen: list[str] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            try:
                seen.append(seq_at(mounted))
            except OSError as error:
                seen.append(str(error))

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(3):
        for seq in ("3", "2"):
            mounted.mount("--seq", seq)
    is_over.set()
    reader.join()
    assert set(seen) == {"1", "2"}


def test_the_same_seq_is_mounted_already(mounted: Mounted) -> None:
    first = mounted.mount()
    again = mounted.machine.json("mount", "covers", mounted.target)
    assert (again["is_new"], again["seq"], again["keeper"]) == (False, 3, first["keeper"])
    refused = mounted.machine.json("mount", "covers", mounted.target, "--no-hydrate", code=13)["error"]
    assert refused["hint"] == f"boxlink umount {mounted.target}"


def test_another_dataset_does_not_take_its_place(mounted: Mounted) -> None:
    mounted.mount()
    mounted.machine.run("publish", "maps", mounted.source)
    refused = mounted.machine.json("mount", "maps", mounted.target, code=13)["error"]
    assert refused["message"] == "covers is mounted there already"
    assert seq_at(mounted) == "2"


@pytest.mark.parametrize("mode", MODES)
def test_a_worker_and_a_keeper_that_were_renewed_know_that_they_are_replaced(mounted: Mounted, mode: str) -> None:
    mounted.mount("--seq", "2", "--mode", mode)
    with (mounted.target / "seq").open() as open_file:
        mounted.mount("--seq", "3", "--mode", mode)
        mounted.machine.run("remount")
        assert open_file.read() == "1"
        assert seq_at(mounted) == "2"
    wait(lambda: [row["seq"] for row in rows(mounted)] == [3])
    assert seq_at(mounted) == "2"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("victim", [2, 3])
def test_a_keeper_that_is_killed(mounted: Mounted, mode: str, victim: int) -> None:
    """Of the one that stands there: an error until it is mounted again. Of the one before: only what is open of it."""
    mounted.mount("--seq", "2", "--mode", mode)
    with (mounted.target / "seq").open() as open_file:
        mounted.mount("--seq", "3", "--mode", mode)
        (row,) = (row for row in rows(mounted) if row["seq"] == victim)
        for process in ("keeper", "worker"):
            os.kill(int(str(row[process])), signal.SIGKILL)
        if victim == 2:
            assert seq_at(mounted) == "2"
            mounted.mount("--seq", "2", "--mode", mode)
            assert seq_at(mounted) == "1"
        else:
            mounted.drop_page_cache()
            with pytest.raises(OSError):
                (mounted.target / "large").read_bytes()
            assert open_file.read() == "1"
            mounted.mount("--seq", "3", "--mode", mode)
            assert seq_at(mounted) == "2"
    wait(lambda: len(rows(mounted)) == 1)
    with contextlib.suppress(OSError):
        open_file.close()


def test_what_is_all_here_stands_without_a_process(mounted: Mounted) -> None:
    """Native in the place of a daemon, and a daemon in the place of that."""
    for seq in ("2", "3", "2"):  # what is written for one has the other looked at again
        mounted.machine.run("mount", "covers", mounted.target, "--seq", seq)
        wait(lambda: rows(mounted)[0].get("hydration") == "done")
        mounted.unmount()
    for seq, shown in (("2", "1"), ("3", "2"), ("2", "1")):
        done = mounted.machine.json("mount", "covers", mounted.target, "--seq", seq)
        assert done["served"] == "native"
        assert seq_at(mounted) == shown
        assert [row["seq"] for row in rows(mounted)] == [int(seq)]
    limited = mounted.mount("--seq", "3", "--cache-size", "64M")
    assert limited["served"] == "daemon"
    assert seq_at(mounted) == "2"
    assert [row["seq"] for row in rows(mounted)] == [3]
    mounted.unmount()
    assert rows(mounted) == []


def test_two_at_once_leave_one_there_and_nothing_else(mounted: Mounted) -> None:
    mounted.mount("--seq", "1")
    both = [mounted.machine.start("mount", "covers", mounted.target, "--seq", seq, "--json") for seq in ("2", "3")]
    for process in both:
        process.communicate(timeout=60)
        assert process.returncode == 0
    wait(lambda: len(rows(mounted)) == 1)
    assert len(devices_on(os.fsencode(mounted.target))) == 1
    assert seq_at(mounted) == {2: "1", 3: "2"}[int(str(rows(mounted)[0]["seq"]))]
    mounted.unmount()
    assert not devices_on(os.fsencode(mounted.target))


@pytest.mark.parametrize("then", ["umount", "mount"])
def test_a_mount_that_was_killed_before_it_had_told_the_former_one(mounted: Mounted, then: str) -> None:
    former = int(str(mounted.mount("--seq", "2")["keeper"]))
    os.kill(former, signal.SIGSTOP)  # it learns nothing
    mounted.mount("--seq", "3")
    (told,) = (mounted.machine.place / "state/boxlink/mount").glob(f"*/{REPLACED}")
    told.unlink()
    os.kill(former, signal.SIGCONT)
    assert {row["seq"] for row in rows(mounted)} == {2, 3}
    if then == "mount":
        assert mounted.machine.json("mount", "covers", mounted.target)["is_new"] is False
        wait(lambda: [row["seq"] for row in rows(mounted)] == [3])
        assert seq_at(mounted) == "2"
    else:
        mounted.unmount()
        wait(lambda: not rows(mounted))


def test_whoever_mounts_waits_for_who_mounts_there_already(mounted: Mounted) -> None:
    mounted.mount("--seq", "2")
    state = mounted.machine.place / "state/boxlink"
    with alone_at(state, str(mounted.target)):
        process = mounted.machine.start("mount", "covers", mounted.target, "--seq", "3", "--no-hydrate")
        # It stands in the kernel's list of those who wait (proc(5), /proc/locks).
        wait(
            lambda: any(
                "->" in line and f" {process.pid} " in line for line in Path("/proc/locks").read_text().splitlines()
            )
        )
        assert seq_at(mounted) == "1"
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert seq_at(mounted) == "2"
