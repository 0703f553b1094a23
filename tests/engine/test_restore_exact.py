"""What stands after a restore is what was published, to the bit and the nanosecond, also at the edges."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from synclib.core.entry import Entry
from synclib.errors import Unavailable
from tests.e2e.boxlink_process import Machine
from tests.engine.forge import Forge, file
from tests.kit import Kit, metadata, put, read_tree


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


def round_trip(kit: Kit, out: Path) -> None:
    kit.publish()
    done = kit.restore(out)
    assert done.problems == []
    assert read_tree(out) == read_tree(kit.directory)
    assert metadata(out) == metadata(kit.directory)
    assert kit.restore(out).fetched_files == 0


@pytest.mark.parametrize("is_broken_off", [True, False])
@pytest.mark.parametrize("is_full", [True, False])
def test_other_bytes_with_the_same_size_and_time(tmp_path: Path, is_full: bool, is_broken_off: bool) -> None:
    forge = Forge()
    kit, out = Kit(tmp_path, forge.store), tmp_path / "out"
    chunks, table = forge.chunks(b"first", b"alone")
    both = [file(b"a", chunks[:1]), file(b"b", chunks[:1])]
    forge.publish(both, table=table)
    kit.restore(out)
    chunks, table = forge.chunks(b"other")
    forge.publish([file(b"a", chunks)], table=table)
    if is_broken_off:
        # After it was begun, and before anything was done.
        put(out, b"b", b"changed by hand")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("synclib.engine.restore.Placement.make", _break_off)
            with pytest.raises(KeyboardInterrupt):
                kit.restore(out)
    kit.restore(out, is_full=is_full)
    assert read_tree(out)[b"a"] == b"other"


def _break_off(*_: object) -> None:
    raise KeyboardInterrupt


def test_times_and_special_bits(kit: Kit, tmp_path: Path) -> None:
    times_ns = [-(1 << 30) * 10**9 - 1, -1, 0, 1, 999_999_999, (1 << 31) * 10**9 + 7, (1 << 32) * 10**9 + 123_456_789]
    for number, time_ns in enumerate(times_ns):
        put(kit.directory, b"t%d" % number, b"x")
        put(kit.directory, b"l%d" % number, ("link", b"t"))
        for kind in ("t", "l"):
            os.utime(kit.directory / f"{kind}{number}", ns=(0, time_ns), follow_symlinks=False)
    for mode in (0o0, 0o1, 0o4755, 0o2755, 0o1777, 0o7777, 0o222, 0o444):
        put(kit.directory, b"f%o" % mode, b"%o" % mode)
        put(kit.directory, b"d%o" % mode, None)
        if os.geteuid() == 0 or mode & 0o444 == 0o444:
            os.chmod(kit.directory / f"f{mode:o}", mode)
            os.chmod(kit.directory / f"d{mode:o}", mode)
    round_trip(kit, tmp_path / "out")


def test_names(kit: Kit, tmp_path: Path) -> None:
    names = [
        "é".encode(),
        "e\u0301".encode(),
        b"K",
        "\u212a".encode(),
        b"n" * 255,
        b"\xff\xfe",
        b" ",
        b"-rf",
        b"a\nb",
        b"\\",
        b"CON",
        b"~",
        bytes(range(1, 47)) + bytes(range(48, 128)),
    ]
    for name in names:
        put(kit.directory, name, name)
        put(kit.directory, b"d" + name[:254], None)
        put(kit.directory, b"d" + name[:254] + b"/" + name, b"below")
    round_trip(kit, tmp_path / "out")


def test_many_in_one_directory_and_many_levels(kit: Kit, tmp_path: Path) -> None:
    (kit.directory / "many").mkdir()
    for number in range(10_000):
        (kit.directory / f"many/{number}").write_bytes(b"%d" % (number % 50))
    path = kit.directory
    for level in range(200):
        path /= f"l{level}"
    path.mkdir(parents=True)
    (path / "deep").write_bytes(b"down here")
    (kit.directory / "empty/empty/empty").mkdir(parents=True)
    round_trip(kit, tmp_path / "out")


def test_what_is_in_the_way(kit: Kit, tmp_path: Path) -> None:
    kit.write(
        {b"f": b"1", b"d": None, b"d/x": b"2", b"l": ("link", b"f"), b"e": b"", b"big": bytes(range(256)) * 20000}
    )
    out = tmp_path / "out"
    (out / "big").mkdir(parents=True)
    for name in ("f", "d", "l", "e"):
        os.mkfifo(out / name)
    round_trip(kit, out)


def test_with_hardly_any_descriptors(tmp_path: Path) -> None:
    """A limit that is too low is named, and what it was; it leaves nothing wrong, and with a higher one goes on."""
    machine = Machine(tmp_path)
    machine.run("init")
    source = tmp_path / "source"
    for number in range(40):
        (source / f"{number}/a/b/c").mkdir(parents=True)
        (source / f"{number}/a/b/c/f").write_bytes(os.urandom(200_000))
    machine.run("publish", "covers", source, "-q")
    published = read_tree(source)
    for limit in (12, 32):
        out = tmp_path / f"out{limit}"
        limited = ["bash", "-c", f'ulimit -n {limit}; exec "$@"', "-", str(Path(os.sys.executable).parent / "boxlink")]
        done = subprocess.run(
            [*limited, "restore", "covers", str(out)],
            env=machine.environment,
            cwd=tmp_path,
            capture_output=True,
            timeout=60,
            check=False,
        )
        text = done.stderr.decode()
        assert done.returncode in (0, Unavailable.exit_code), text
        assert "Traceback" not in text
        assert done.returncode == 0 or ("oo many open files" in text and "ulimit -n" in text), text
        # What has its name is whole.
        left = read_tree(out) if out.exists() else {}
        assert {path: published[path] for path in left} == left
        assert done.returncode or left == published
        machine.run("restore", "covers", out, "-q")
        assert read_tree(out) == published


def test_a_damaged_name_of_a_part_is_no_danger(kit: Kit, tmp_path: Path) -> None:
    """Things that stand where temporary files of large files belong: not followed, not waited for."""
    from synclib.core.names import sort_key
    from synclib.disk.tree import part_name
    from synclib.lazy.chain import Chain
    from synclib.lazy.run_reader import StoreRuns

    kit.write({b"big": os.urandom(17 << 20)})
    kit.publish()
    entry = Chain.of(StoreRuns(kit.store), kit.dataset.root, kit.dataset.manifest_at(None).runs).lookup(
        sort_key(b"", b"big")
    )
    assert isinstance(entry, Entry)
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    for number, make in enumerate((os.mkfifo, lambda path: os.symlink(victim, path))):
        out = tmp_path / f"out{number}"
        (out / ".boxlink/tmp").mkdir(parents=True)
        make(out / ".boxlink/tmp" / part_name(entry).decode())
        kit.restore(out)
        assert read_tree(out) == read_tree(kit.directory)
    assert victim.read_bytes() == b"mine"
