"""An older seq that is asked for by name: it is taken away again like any other, whatever became of it in the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from synclib.core.retention import Retention
from synclib.engine.collect import collect
from synclib.engine.compact import compact
from synclib.engine.host import no_progress
from tests.kit import Kit, read_tree


@pytest.mark.parametrize("seqs_between", [1, 2, 3, 5])
def test_files_of_an_older_seq_go_though_the_store_has_forgotten_it(tmp_path: Path, seqs_between: int) -> None:
    """What stood here is known here: the newest seqs that stood here before do not push it out."""
    kit, out = Kit(tmp_path), tmp_path / "out"
    kit.write({b"old": b"of the first seq", b"d": None, b"d/old": b"of the first seq too"})
    kit.publish()
    for number in range(seqs_between):
        kit.write({b"new": b"%d" % number})
        kit.publish()
        compact(kit.dataset, kit.host, no_progress, is_full=True)
        kit.restore(out)
    kit.restore(out, 1)
    collect(kit.dataset, kit.host, Retention(last=1), None, no_progress)
    assert 1 not in {seq for seq, _ in kit.dataset.manifests()}
    done = kit.restore(out)
    assert read_tree(out) == {b"new": b"%d" % (seqs_between - 1)}
    assert (done.deleted, done.kept) == (3, [])


def test_few_seqs_are_remembered(tmp_path: Path) -> None:
    """However many there were, and in whatever order."""
    kit, out = Kit(tmp_path), tmp_path / "out"
    for number in range(8):
        kit.write({b"f": b"%d" % number})
        kit.publish()
    for seq in (8, 1, 5, 2, 7, 3, 6, 1):
        kit.restore(out, seq)
    remembered = sorted(path.name for path in (out / ".boxlink/manifest").iterdir())
    assert len(remembered) == 3
    assert remembered[0].startswith(f"{1:020}-")
