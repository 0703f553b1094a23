"""A restore holds what it reads: a collector that comes meanwhile leaves it, and goes on afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from synclib.core.retention import Retention
from synclib.engine.collect import collect
from synclib.engine.compact import compact
from synclib.engine.host import no_progress
from synclib.errors import Invalid
from synclib.store.base import Body, Buffer
from tests.kit import Kit, read_tree


def test_a_restore_of_an_old_seq_while_it_is_dropped(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.write({b"a": b"first" * 100})
    kit.publish()
    kit.write({b"a": b"second" * 100})
    kit.publish()
    compact(kit.dataset, kit.host, no_progress, is_full=True)
    real = kit.store.get_ranges
    held: list[int] = []

    def get_ranges(key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        if "/pack/" in key and not held:
            done = collect(kit.dataset, kit.host, Retention(last=1), None, no_progress)
            held.append(len(done.kept_seqs))
        return real(key, ranges)

    kit.store.get_ranges = get_ranges  # type: ignore[method-assign]
    kit.restore(tmp_path / "old", seq=1)
    assert held == [2]
    assert read_tree(tmp_path / "old") == {b"a": b"first" * 100}
    assert not list(kit.store.list("data/covers/pin/"))
    assert collect(kit.dataset, kit.host, Retention(last=1), None, no_progress).kept_seqs == [2]


def test_a_node_that_may_not_write_restores_all_the_same(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.write({b"a": b"first" * 100})
    kit.publish()

    def put(key: str, body: Body, **_: object) -> str:
        raise Invalid("403", key=key)

    kit.store.put = put  # type: ignore[assignment]
    kit.restore(tmp_path / "copy")
    assert read_tree(tmp_path / "copy") == {b"a": b"first" * 100}


def test_a_seq_whose_chain_was_compacted_is_here_already(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    for number in range(3):
        kit.write({b"a": b"%d" % number})
        kit.publish()
    place = tmp_path / "node"
    kit.restore(place)
    compact(kit.dataset, kit.host, no_progress, is_full=True)
    (place / "synch.down").write_text("it stands")
    done = kit.restore(place)
    assert (done.fetched_files, done.fetch_requests) == (0, 0)
    assert (place / "synch.down").read_text() == "it stands"
    kit.write({b"a": b"new"})
    kit.publish()
    kit.restore(place, is_full=False)
    assert read_tree(place) == {b"a": b"new"}
