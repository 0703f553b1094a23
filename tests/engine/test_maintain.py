"""What follows a publish: nothing that befalls it makes the publish fail, and the next one does what was left."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from synclib.core.leveling import RATIO_RUNS_MIN
from synclib.engine.host import no_progress
from synclib.engine.maintain import COLLECT_EVERY, maintain
from synclib.lazy.dataset import HeadState
from synclib.lazy.run_cache import RunCache
from tests.kit import Kit, put
from tools.cli import boxlink


def published(kit: Kit, number: int) -> str:
    return maintain(kit.dataset, kit.host, no_progress, head_of(kit, number))


def head_of(kit: Kit, number: int) -> HeadState:
    put(kit.directory, b"a", b"%d" % number)
    done = kit.publish()
    assert done.head is not None
    return done.head


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EMFILE, errno.ENOTTY])
def test_a_full_disk_is_told_and_the_next_publish_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    kit = Kit(tmp_path)
    for number in range(RATIO_RUNS_MIN):
        assert published(kit, number) == ""

    def fails(*_: object) -> Path:
        raise OSError(code, "planted", "/there")

    head = head_of(kit, 50)
    with monkeypatch.context() as patch:
        patch.setattr(RunCache, "keep", fails)
        assert "planted" in maintain(kit.dataset, kit.host, no_progress, head)
    assert len(kit.dataset.read_head().manifest.runs) == 1 + RATIO_RUNS_MIN
    assert published(kit, 51) == ""
    assert len(kit.dataset.read_head().manifest.runs) == 1
    assert not kit.verify().damage


def test_an_interrupt_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = Kit(tmp_path)
    for number in range(RATIO_RUNS_MIN):
        published(kit, number)

    def interrupted(*_: object) -> Path:
        raise KeyboardInterrupt

    head = head_of(kit, 50)
    monkeypatch.setattr(RunCache, "keep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        maintain(kit.dataset, kit.host, no_progress, head)
    assert not list(kit.store.list("data/covers/intent/"))


def test_what_a_killed_publisher_left_goes_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every so many seqs; until then nothing is listed."""
    kit = Kit(tmp_path)
    collected: list[int] = []
    collect = "synclib.engine.collect.collect"
    from synclib.engine.collect import collect as real

    def noted(*args: object) -> object:
        collected.append(kit.dataset.read_head().manifest.seq)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(collect, noted)
    orphan = "data/covers/pack/" + "0" * 26
    kit.store.put(orphan, b"x")
    for number in range(2 * COLLECT_EVERY):
        published(kit, number)
    assert collected == [COLLECT_EVERY, 2 * COLLECT_EVERY]
    assert orphan not in [item.key for item in kit.store.list("data/covers/pack/")]


def test_the_verb_says_its_seq_and_what_was_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    source = tmp_path / "source"
    source.mkdir()
    runner, store = CliRunner(), f"file://{tmp_path}/store"
    assert runner.invoke(boxlink, ["init", "--store", store]).exit_code == 0

    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/run")

    monkeypatch.setattr("synclib.engine.maintain.compact", lambda *_, **__: fails())
    (source / "a").write_text("1")
    done = runner.invoke(boxlink, ["publish", "covers", str(source), "--store", store, "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["seq"] == 1
    assert "No space left on device" in answer["maintenance"]
    assert "tries again" in done.stderr
