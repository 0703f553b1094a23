"""Objects that a collector removed while a restore was under way: the head is read again, and a new plan made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from synclib.engine.follow import Follower
from synclib.engine.host import no_progress
from synclib.engine.restore import RestoreOptions, restore_newest
from synclib.errors import Missing
from synclib.store.base import Buffer
from synclib.store.memory import MemoryStore
from synclib.store.meter import Meter
from tests.kit import Kit, read_tree


class Moving(MemoryStore):
    """Something happens before the first pack is read."""

    def __init__(self) -> None:
        super().__init__("")
        self.happens: Callable[[], None] | None = None

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        if "/pack/" in key and self.happens is not None:
            happens, self.happens = self.happens, None
            happens()
        return super().get_ranges(key, ranges)


class Quiet:
    def info(self, event: str, **fields: object) -> None:
        """Not kept."""

    def warning(self, event: str, **fields: object) -> None:
        """Not kept."""


def moving_kit(place: Path, times: int, *, is_new: bool = True) -> Kit:
    """Each restore of the first heads finds that its packs are gone, and (``is_new``) another seq there."""
    store = Moving()
    store.put("boxlink.json", b"{}")
    kit = Kit(place, store)
    kit.write({b"a": b"first"})
    kit.publish()

    def collect(left: int) -> None:
        packs = [info.key for info in store.list("data/covers/pack/")]
        if is_new:
            kit.write({b"a": b"again %d" % left})
            kit.publish()
        for key in packs:
            store.delete(key)
        if left > 1:
            store.happens = lambda: collect(left - 1)

    store.happens = lambda: collect(times)
    return kit


def newest(kit: Kit, out: Path) -> int:
    return restore_newest(kit.dataset, None, out, kit.host, RestoreOptions(), no_progress).seq


def test_the_next_head_is_taken(tmp_path: Path) -> None:
    kit = moving_kit(tmp_path, 2)
    assert newest(kit, tmp_path / "out") == 3
    assert read_tree(tmp_path / "out") == {b"a": b"again 1"}


def test_not_for_ever(tmp_path: Path) -> None:
    kit = moving_kit(tmp_path, 100)
    with pytest.raises(Missing):
        newest(kit, tmp_path / "out")
    assert kit.dataset.read_head().manifest.seq == 5


def test_what_the_head_itself_lacks_is_missing(tmp_path: Path) -> None:
    kit = moving_kit(tmp_path, 1, is_new=False)
    with pytest.raises(Missing):
        newest(kit, tmp_path / "out")
    assert read_tree(tmp_path / "out") == {}


def test_a_node_takes_the_next_head_in_the_same_round(tmp_path: Path) -> None:
    kit = moving_kit(tmp_path, 1)
    directory = tmp_path / "data/covers"
    directory.mkdir(parents=True)
    (directory / "synch.active").touch()
    follower = Follower(directory, kit.store, None, kit.host, Quiet(), 10.0, lambda: False, Meter())
    assert follower.round() is None
    assert read_tree(directory) == {b"a": b"again 1"}
    assert (directory / "synch.down").exists()


def test_a_node_whose_head_lacks_objects_says_so(tmp_path: Path) -> None:
    kit = moving_kit(tmp_path, 1, is_new=False)
    directory = tmp_path / "data/covers"
    directory.mkdir(parents=True)
    (directory / "synch.active").touch()
    follower = Follower(directory, kit.store, None, kit.host, Quiet(), 10.0, lambda: False, Meter())
    assert isinstance(follower.round(), Missing)
    assert not (directory / "synch.down").exists()
