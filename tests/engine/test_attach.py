"""Image and map of a snap: made once, named by every manifest that has the snap, collected with the last of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from synclib.core.names import attachment_key, dataset_root
from synclib.core.retention import Retention
from synclib.engine.attach import attach
from synclib.engine.collect import collect
from synclib.engine.compact import compact
from synclib.engine.host import no_progress
from synclib.engine.objects import list_attachments
from synclib.engine.replicate import replicate
from synclib.engine.revert import revert
from synclib.errors import Corrupt
from synclib.lazy.attachment import check_attachment
from synclib.lazy.dataset import STORE_KEY, Dataset
from synclib.store.memory import MemoryStore
from tests.kit import Kit


def published(place: Path, files: int = 30) -> Kit:
    kit = Kit(place)
    kit.write({b"d%d/f%d" % (number % 3, number): b"%d" % number for number in range(files)})
    kit.publish()
    return kit


def made(kit: Kit) -> set[str]:
    done = attach(kit.dataset, kit.host, no_progress, entries_min=1)
    return {item.key(kit.dataset.root) for item in done.attachments}


def there(kit: Kit) -> set[str]:
    return {item.key for item in list_attachments(kit.dataset)}


def named(kit: Kit, seq: int | None = None) -> set[str]:
    return {item.key(kit.dataset.root) for item in kit.dataset.manifest_at(seq).attachments}


def test_made_once_and_carried_on_by_what_is_published_after(tmp_path: Path) -> None:
    kit = published(tmp_path)
    digest = kit.dataset.manifest_at(None).digest
    first = made(kit)
    assert {key.split("/")[2] for key in first} == {"image", "map", "wall"}
    assert named(kit) == there(kit) == first
    assert not made(kit), "there are some"
    kit.write({b"new": b"new"})
    kit.publish()
    assert kit.dataset.manifest_at(None).seq == 2
    assert named(kit) == first
    assert not made(kit), "the snap has them still"
    assert kit.dataset.manifest_at(1).digest == digest
    revert(kit.dataset, kit.host, 1)
    assert named(kit) == first
    assert not kit.verify().damage


def test_small_datasets_have_none(tmp_path: Path) -> None:
    kit = published(tmp_path)
    assert not attach(kit.dataset, kit.host, no_progress).attachments
    dry = attach(kit.dataset, kit.host, no_progress, entries_min=1, is_dry_run=True)
    assert dry.run == kit.dataset.manifest_at(None).runs[0]
    assert not there(kit)


def test_a_new_snap_has_none_until_they_are_made_and_the_old_ones_go_with_their_seqs(tmp_path: Path) -> None:
    kit = published(tmp_path)
    old = made(kit)
    kit.write({b"new": b"new"})
    kit.publish()
    compact(kit.dataset, kit.host, no_progress, is_full=True)
    assert not named(kit)
    new = made(kit)
    assert new
    assert new.isdisjoint(old)
    assert there(kit) == old | new
    collect(kit.dataset, kit.host, Retention(last=1), None, no_progress)
    assert there(kit) == new == named(kit)
    assert not kit.verify().damage


def test_a_replication_carries_them(tmp_path: Path) -> None:
    kit = published(tmp_path)
    keys = made(kit)
    target = MemoryStore()
    target.put(STORE_KEY, b"{}")
    copy = Dataset(target, dataset_root("covers"))
    done = replicate(kit.dataset, copy, kit.host, None, no_progress)
    assert done.copied["attachments"][0] == 3
    assert {item.key for item in list_attachments(copy)} == keys
    assert all(target.get(key, size_max=1 << 20) is not None for key in keys)
    assert replicate(kit.dataset, copy, kit.host, None, no_progress).copied["attachments"][0] == 0


@pytest.mark.parametrize("kind", ["image", "map", "wall"])
def test_damage_is_named_and_never_copied(tmp_path: Path, kind: str) -> None:
    kit = published(tmp_path)
    made(kit)
    (item,) = (item for item in kit.dataset.manifest_at(None).attachments if item.kind == kind)
    key = item.key(kit.dataset.root)
    fetched = kit.store.get(key, size_max=1 << 20)
    assert fetched is not None
    for position in range(16, len(fetched.data), 7):
        data = bytearray(fetched.data)
        data[position] ^= 1
        with pytest.raises(Corrupt):
            check_attachment(item, lambda start, stop, data=data: bytes(data[start:stop]))  # type: ignore[misc]
    kit.store.put(key, bytes(data))
    assert [found for found, _ in kit.verify().damage] == [key]
    copy = MemoryStore()
    copy.put(STORE_KEY, b"{}")
    with pytest.raises(Corrupt) as caught:
        replicate(kit.dataset, Dataset(copy, dataset_root("covers")), kit.host, None, no_progress)
    assert caught.value.key == key


def test_keys_are_below_the_dataset() -> None:
    assert attachment_key("data/covers", "image", "0" * 26) == "data/covers/image/" + "0" * 26
    with pytest.raises(Corrupt):
        attachment_key("data/covers", "../head", "0" * 26)


def test_nothing_is_left_where_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", os.fspath(scratch))
    made(published(tmp_path / "kit"))
    assert not list(scratch.iterdir())
