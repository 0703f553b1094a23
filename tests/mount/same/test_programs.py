"""Programs that copy a lazy mount, or run what is in it, do as with a plain copy."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.same.conftest import Pair
from tests.mount.same.everything import described, digests

_COPIES = {
    "cp --reflink=never": 'cp -a --reflink=never "$1/." "$2"',
    "cp --reflink=auto": 'cp -a --reflink=auto "$1/." "$2"',
    "cp --sparse=always": 'cp -a --sparse=always "$1/." "$2"',
    "tar -S": 'tar -C "$1" -S -cf - . | tar -C "$2" -xpf -',
    "tar": 'tar -C "$1" -cf - . | tar -C "$2" -xpf -',
    "rsync": 'rsync -aHS "$1/" "$2"',
    "cpio-like find | cat": 'cd "$1" && find . -type d -exec mkdir -p "$2"/{} \\; && '
    'find . -type f -print0 | while IFS= read -r -d "" path; do cat "$path" > "$2/$path"; done',
}


@pytest.mark.parametrize("how", _COPIES)
def test_a_copy_of_the_mount_is_a_copy_of_the_tree(pair: Pair, tmp_path: Path, how: str) -> None:
    program = how.partition(" ")[0]
    if program == "rsync" and shutil.which(program) is None:
        pytest.skip("rsync is not installed")
    copy, mount = pair.sides()
    target = tmp_path / "target"
    target.mkdir()
    subprocess.run(["bash", "-c", "set -e -o pipefail\n" + _COPIES[how], "copy", mount, target], check=True)
    made = os.fsencode(target)
    assert digests(made) == digests(copy)
    if program != "cpio-like":
        shown, wanted = (described(side, with_links=pair.has_links) for side in (made, copy))
        if program == "tar":  # its times have whole seconds in this format, and what is before 1970 is another matter
            shown, wanted = _without_times(shown), _without_times(wanted)
        assert shown == wanted


def _without_times(found: dict[bytes, tuple[object, ...]]) -> dict[bytes, tuple[object, ...]]:
    return {path: (*row[:3], *row[4:]) if len(row) == 5 else row for path, row in found.items()}


def test_programs_in_it_run(pair: Pair) -> None:
    said = []
    for side in pair.sides():
        programs = os.path.join(side, b"programs/")
        words = [[programs + b"echo", "a b"], [programs + b"script", "c"], [sys.executable, programs + b"app.pyz"]]
        imports = (
            "import sys; sys.path.insert(0, sys.argv[1]); import inside.module as m; print(m.NAME, m.__file__[-22:])"
        )
        words.append([sys.executable, "-c", imports, programs + b"app.pyz"])
        done = [subprocess.run(line, capture_output=True, check=True).stdout for line in words]
        said.append(done)
    assert said[0] == said[1]
    assert said[1][:2] == [b"a b\n", b"a script says c\n"]


def test_what_may_not_be_executed_is_not(pair: Pair) -> None:
    for side in pair.sides():
        with pytest.raises(PermissionError):
            subprocess.run([os.path.join(side, b"programs/app.pyz")], check=False)


@pytest.mark.parametrize("options", ["mode=ro", "mode=ro&immutable=1"])
def test_a_database_is_read(pair: Pair, options: str) -> None:
    found = []
    for side in pair.sides():
        path = os.fsdecode(os.path.join(side, b"database.sqlite"))
        database = sqlite3.connect(f"file:{path}?{options}", uri=True)
        try:
            assert database.execute("pragma integrity_check").fetchone() == ("ok",)
            by_key = database.execute("select * from cover where isbn = '9780000001234'").fetchall()
            sums = database.execute("select count(*), sum(length(thumb)), max(hex(thumb)) from cover").fetchall()
            with pytest.raises(sqlite3.OperationalError):
                database.execute("delete from cover")
            found.append((by_key, sums))
        finally:
            database.close()
    assert found[0] == found[1]
    assert found[0][1][0][0] == 5000
