"""`log` shows the chain as it is, `restore --at` finds the seq of a moment, `--dask` reaches a cluster."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from synclib.core.leveling import Merge
from synclib.engine.compact import compact
from synclib.engine.host import Connect, connect_once, no_progress
from synclib.errors import Missing
from synclib.lazy.dataset import STORE_KEY
from synclib.store.open import open_store
from tests.kit import Kit, put
from tools.cli import boxlink
from tools.cli_engine import size_text


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kit:
    """Nine seqs, each with a file more."""
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "store").mkdir()
    url = f"file://{tmp_path}/store"
    store = open_store(url, {})[0]
    store.put(STORE_KEY, b"{}")
    kit = Kit(tmp_path / "kit", store, connect=Connect(url))
    for number in range(9):
        put(kit.directory, b"d/%d" % number, b"%d" % number * 100)
        kit.publish()
    return kit


def run(kit: Kit, *words: object) -> str:
    done = CliRunner().invoke(boxlink, [*map(str, words), "--store", kit.store.url], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_log_shows_the_chain_with_entries_bytes_and_age(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands after months: a snap, two diff3s, a diff2, a diff1."""
    merges = iter([Merge(0, 2, "snap", 0), Merge(1, 3, "diff3", 0), Merge(2, 4, "diff3", 0), Merge(3, 5, "diff2", 0)])
    monkeypatch.setattr("synclib.engine.compact.plan_merge", lambda *_: next(merges, None))
    compact(kit.dataset, kit.host, no_progress)
    runs = kit.dataset.read_head().manifest.runs
    spans = [(run.level, run.seq_first, run.seq_last) for run in runs]
    assert spans == [("snap", 1, 2), ("diff3", 3, 4), ("diff3", 5, 6), ("diff2", 7, 8), ("diff1", 9, 9)]
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3 * 86400 + 60)
    lines = run(kit, "log", "covers").splitlines()
    heading = next(number for number, line in enumerate(lines) if line.startswith("level"))
    assert lines[heading].split() == ["level", "seqs", "entries", "bytes", "age"]
    for line, found in zip(lines[heading + 1 :], runs, strict=False):
        level, span, entries, size, age = re.split(r"\s{2,}|(?<=\w)\s+(?=\d+\.\.)", line.strip())
        assert (level, span) == (found.level, f"{found.seq_first}..{found.seq_last}")
        assert (int(entries), size, age) == (found.entry_count, size_text(found.object_bytes), "3 d")
    shown = json.loads(run(kit, "log", "covers", "--json"))["chain"]
    assert [(row["entries"], row["bytes"]) for row in shown] == [
        (found.entry_count, found.object_bytes) for found in runs
    ]


def moment(time_ns: int) -> str:
    """As people write it, to the microsecond, rounded up."""
    return datetime.fromtimestamp(-(-time_ns // 1000) / 1e6, UTC).isoformat()


def test_restore_at_a_moment(kit: Kit, tmp_path: Path) -> None:
    manifests = [kit.dataset.manifest_at(seq) for seq in range(1, 10)]
    for seq in (1, 2, 5, 9):
        before, after = manifests[seq - 1].published_at_ns, manifests[min(seq, 8)].published_at_ns
        at = before if seq == 9 else min(before + 1000, after - 2000)
        done = json.loads(run(kit, "restore", "covers", tmp_path / f"at{seq}", "--at", moment(at), "--json"))
        assert (done["seq"], done["digest"]) == (seq, manifests[seq - 1].digest)
        assert len(list((tmp_path / f"at{seq}/d").iterdir())) == seq
    early = moment(manifests[0].published_at_ns - 10**9)
    with pytest.raises(Missing, match="no seq of that time"):
        run(kit, "restore", "covers", tmp_path / "none", "--at", early)


def stores_opened() -> int:
    """In a worker."""
    return connect_once.cache_info().currsize


def test_a_cluster_by_its_address(kit: Kit) -> None:
    """`--dask`: verified and repacked by its workers, not by processes of this machine."""
    import distributed

    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, processes=True) as cluster:
        address = cluster.scheduler_address
        done = json.loads(run(kit, "verify", "covers", "--data", "--dask", address, "--json"))
        assert (done["packs"], done["damage"]) == (9, [])
        with distributed.Client(cluster) as client:
            opened = client.run(stores_opened)
        assert list(opened.values()) == [1]
        done = json.loads(run(kit, "repack", "covers", "--dask", address, "--json"))
        assert (done["digest"], done["packs"]) == (kit.dataset.manifest_at(9).digest, 9)
        assert json.loads(run(kit, "verify", "covers", "--data", "--json"))["damage"] == []
