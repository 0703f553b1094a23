"""A manifest that is written when all that it names alone has been swept: by a replicator that slept for days, or
because its write was long under way. The next collection clears it away, and takes no damage for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from synclib.clock import ulid_text
from synclib.core.names import pack_key
from synclib.core.retention import Retention
from synclib.engine.collect import CollectResult, collect
from synclib.engine.compact import compact
from synclib.engine.host import no_progress
from synclib.engine.replicate import replicate
from synclib.errors import Missing
from synclib.lazy.dataset import STORE_KEY, Dataset
from synclib.store.memory import MemoryStore
from tests.kit import Kit

ALL, LAST = Retention(), Retention(last=1)


def gc(kit: Kit, dataset: Dataset, retention: Retention = ALL) -> CollectResult:
    return collect(dataset, kit.host, retention, None, no_progress)


def written_late(kit: Kit) -> str:
    """Seq 1 is swept, but for what the head shares with it; then its manifest comes."""
    kit.write({b"kept": b"k" * 100, b"gone": b"g" * 100})
    kit.publish()
    ((_, key),) = kit.dataset.manifests()
    found = kit.store.get(key, size_max=1 << 20)
    assert found is not None
    kit.write({b"kept": b"k" * 100, b"new": b"n" * 100})
    kit.publish()
    compact(kit.dataset, kit.host, no_progress, is_full=True)
    gc(kit, kit.dataset, LAST)
    assert [seq for seq, _ in kit.dataset.manifests()] == [2]
    kit.store.put(key, found.data)
    return key


def test_a_collection_clears_it_away(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    key = written_late(kit)
    with pytest.raises(Missing):
        kit.restore(tmp_path / "out", seq=1)
    done = gc(kit, kit.dataset)
    assert (done.kept_seqs, done.swept["manifests"][0]) == ([2], 1)
    assert key not in {key for _, key in kit.dataset.manifests()}
    assert kit.dataset.read_head().head.condemned == []
    assert not kit.verify().damage


def test_a_copy_gets_over_a_replicator_that_slept(tmp_path: Path) -> None:
    """Its write comes when the copy has gone on without that seq, which the source no longer has either."""
    kit = Kit(tmp_path)
    store = MemoryStore("memory://copy")
    store.put(STORE_KEY, b"{}")
    target = Dataset(store, kit.dataset.root)
    key = written_late(kit)
    late = kit.store.get(key, size_max=1 << 20)
    assert late is not None
    gc(kit, kit.dataset)
    replicate(kit.dataset, target, kit.host, None, no_progress)
    store.put(key, late.data)
    assert {seq for seq, _ in target.manifests()} == {1, 2}
    gc(kit, target)
    assert {seq for seq, _ in target.manifests()} == {2}
    assert not replicate(kit.dataset, target, kit.host, None, no_progress).is_new


@pytest.mark.parametrize("is_shared", [True, False])
def test_damage_is_not_cleared_away(tmp_path: Path, is_shared: bool) -> None:
    """One pack of several is lost: what else there is of the seq stays for whoever puts that one back."""
    kit = Kit(tmp_path)
    kit.write({b"a": b"a" * 100})
    kit.publish()
    first = set(packs(kit))
    kit.write({b"a": b"a" * 100, b"b": b"b" * 100})
    kit.publish()
    second = set(packs(kit)) - first
    kit.write({b"c": b"c" * 100})
    kit.publish()
    compact(kit.dataset, kit.host, no_progress, is_full=True)
    (lost,) = first if is_shared else second
    data = kit.store.get_suffix(lost, 1 << 20).data
    kit.store.delete(lost)
    before = {info.key for info in kit.store.list("")}
    assert gc(kit, kit.dataset).kept_seqs == [1, 2, 3]
    assert before <= {info.key for info in kit.store.list("")}
    kit.store.put(lost, data)
    for seq in (1, 2, 3):
        assert not kit.verify(seq).damage


def packs(kit: Kit) -> list[str]:
    return [info.key for info in kit.store.list(pack_key(kit.dataset.root, ulid_text(bytes(16)))[:-26])]
