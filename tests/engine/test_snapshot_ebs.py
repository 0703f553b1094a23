"""Direct snapshots and a node's volumes against the stand-in of AWS: its own state machines, tokens, checksums."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from synclib.clock import SeededEntropy
from synclib.engine import volume_content
from synclib.engine.host import no_progress
from synclib.engine.node_volume import make_volume, release_volumes
from synclib.engine.snapshot_direct import create_direct
from synclib.engine.snapshots import find
from synclib.volume.base import VolumeDriver, VolumeState
from tests.kit import Content, Kit
from tests.memory_volumes import Killed
from tests.volume_checks import complete_ones

EbsDriver = pytest.importorskip("synclib.volume.ebs").EbsDriver
client = pytest.importorskip("tests.aws.clients").client
standin = pytest.importorskip("tests.aws.standin")

_CHANGING = ("start", "put", "complete", "tag", "delete_snapshot")


class Dying:
    """A driver whose caller is killed at its Nth call that changes something: before it, or right after it."""

    def __init__(self, inner: Any, calls: list[str], dies_at: int, *, is_applied: bool) -> None:
        self._inner, self._calls, self._dies_at, self._is_applied = inner, calls, dies_at, is_applied

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name == "blocks":
            return lambda: Dying(found(), self._calls, self._dies_at, is_applied=self._is_applied)
        return self._counted(name, found) if name in _CHANGING else found

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*words: Any, **named: Any) -> Any:
            self._calls.append(name)
            number = len(self._calls)
            if number > self._dies_at or (number == self._dies_at and not self._is_applied):
                raise Killed(name)
            done = call(*words, **named)
            if number == self._dies_at:
                raise Killed(name)
            return done

        return counted


class Place:
    def __init__(self, directory: Path, found: Any) -> None:
        self.standin = found
        self.driver: VolumeDriver = EbsDriver(client(found, "ec2"), client(found, "ebs"), found.clock, SeededEntropy(1))
        self.kit = Kit(directory)
        self.kit.host = replace(self.kit.host, clock=found.clock)

    def publish(self, content: Content) -> None:
        self.kit.write(content)
        self.kit.publish()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "aws").mkdir()
    with standin.running_standin(tmp_path / "aws") as found:
        yield Place(tmp_path, found)


def test_each_is_made_upon_the_one_before(place: Place) -> None:
    kit, driver = place.kit, place.driver
    content: Content = {b"%03d" % n: random.Random(n).randbytes(50_000) for n in range(40)}
    for number in range(3):
        content[b"new%d" % number] = random.Random(number).randbytes(600_000)
        place.publish(content)
        done = create_direct(kit.dataset, kit.host, driver, no_progress)
        assert (done.is_new, done.parent_seq) == (True, number)
        assert not create_direct(kit.dataset, kit.host, driver, no_progress).is_new
    place.publish({b"000": content[b"000"]})
    assert create_direct(kit.dataset, kit.host, driver, no_progress).zero_blocks
    assert len(complete_ones(kit, driver)) == 4


@pytest.mark.parametrize("is_applied", [False, True])
def test_killed_at_any_call_and_run_again_nothing_is_there_twice(
    place: Place, monkeypatch: pytest.MonkeyPatch, is_applied: bool
) -> None:
    monkeypatch.setattr(volume_content, "_PUTS_AT_ONCE", 1)
    kit = place.kit
    number = before = 0
    while True:
        number += 1
        place.publish({b"a": random.Random(number).randbytes(600_000)})
        dying: Any = Dying(place.driver, [], number, is_applied=is_applied)
        try:
            create_direct(kit.dataset, kit.host, dying, no_progress)
            break  # it ended before that call
        except Killed:
            pass
        create_direct(kit.dataset, kit.host, place.driver, no_progress)
        before += 1
        assert len(complete_ones(kit, place.driver)) == len(place.driver.snapshots()) == before
    assert number > 6


def test_a_nodes_volume_is_made_once_and_anew_when_it_is_gone(place: Place) -> None:
    kit, driver = place.kit, place.driver
    place.publish({b"a": b"a"})
    create_direct(kit.dataset, kit.host, driver, no_progress)
    (known,) = find(driver, kit.store.url, "covers").snapshots
    zone = place.standin.site.zones[0]
    made = [make_volume(driver, kit.host, known.snapshot, known.tags, zone, "n1") for _ in range(2)]
    assert made[0].id == made[1].id
    assert made[0].state is VolumeState.AVAILABLE
    assert release_volumes(driver, kit.host, known.tags.store, "covers", "n1") == []
    place.standin.clock.advance(120)
    second = make_volume(driver, kit.host, known.snapshot, known.tags, zone, "n1")
    driver.delete_volume(second.id)
    place.standin.clock.advance(120)
    third = make_volume(driver, kit.host, known.snapshot, known.tags, zone, "n1")
    assert [volume.id for volume in driver.volumes()] == [third.id]
    assert len({made[0].id, second.id, third.id}) == 3
