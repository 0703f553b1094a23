"""Collection: what nothing reaches goes, what anybody holds stays, whoever comes when."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from synclib.clock import ulid_from_text, ulid_text
from synclib.core.frame import pack_frame
from synclib.core.lease import LEASE_S, Lease, decode_lease, encode_lease
from synclib.core.names import head_key, intent_key, pack_key, tag_key
from synclib.core.retention import Retention, kept_seqs
from synclib.engine import collect as collect_module
from synclib.engine.collect import CollectResult, collect
from synclib.engine.compact import compact
from synclib.engine.head_swap import update_head
from synclib.engine.host import no_progress
from synclib.engine.lease import Moved, intent, pin
from synclib.engine.revert import revert
from synclib.engine.tags import delete_tag, set_tag, tags
from synclib.errors import Corrupt, Fenced, Missing
from synclib.store.base import Body, ObjectInfo
from synclib.store.memory import MemoryStore
from tests.kit import Kit, read_tree

ALL, LAST = Retention(), Retention(last=1)


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    """Four seqs: in each one file more and one changed."""
    kit = Kit(tmp_path)
    for seq in range(1, 5):
        kit.write({b"changing": b"%d" % seq * 100, **{b"f%d" % number: b"%d" % number for number in range(seq)}})
        kit.publish()
    return kit


def gc(kit: Kit, retention: Retention = ALL, *, is_dry_run: bool = False) -> CollectResult:
    return collect(kit.dataset, kit.host, retention, None, no_progress, is_dry_run=is_dry_run)


def keys(kit: Kit, kind: str) -> set[str]:
    return {info.key for info in kit.store.list(f"data/covers/{kind}/")}


def test_by_default_every_seq_stays(kit: Kit, tmp_path: Path) -> None:
    compact(kit.dataset, kit.host, no_progress, is_full=True)
    gc(kit)
    # Five manifests, that of the compaction among them, are objects now.
    assert len(keys(kit, "manifest")) == 5
    assert kit.dataset.read_head().head.former == []
    before = {info.key for info in kit.store.list("")}
    done = gc(kit)
    assert {info.key for info in kit.store.list("")} == before
    assert (done.kept_seqs, done.swept) == ([1, 2, 3, 4], {})
    for seq in range(1, 5):
        kit.restore(tmp_path / f"at{seq}", seq=seq)
        assert read_tree(tmp_path / f"at{seq}")[b"changing"] == b"%d" % seq * 100


def test_retention_lets_the_others_go_and_what_stays_is_whole(kit: Kit, tmp_path: Path) -> None:
    compact(kit.dataset, kit.host, no_progress, is_full=True)
    packs = keys(kit, "pack")
    dry = gc(kit, LAST, is_dry_run=True)
    assert keys(kit, "pack") == packs
    done = gc(kit, LAST)
    assert dry.found == done.swept
    assert done.kept_seqs == [4]
    assert done.swept["packs"][0] == 0
    assert len(keys(kit, "run")) == len(keys(kit, "manifest")) == 1
    assert not kit.verify().damage
    with pytest.raises(Missing):
        kit.dataset.manifest_at(2)
    kit.write({b"only": b"this"})
    kit.publish(allow_delete=True)
    assert gc(kit, LAST).swept["packs"][0] == 0, "the snap still names what the diff upon it hides"
    compact(kit.dataset, kit.host, no_progress, is_full=True)
    assert gc(kit, LAST).swept["packs"][0] == len(packs)
    assert not kit.verify().damage
    kit.restore(tmp_path / "now")
    assert read_tree(tmp_path / "now") == {b"only": b"this"}
    head = kit.dataset.read_head().head
    assert head.condemned == []


def test_a_tag_spares_a_seq(kit: Kit, tmp_path: Path) -> None:
    set_tag(kit.dataset, kit.host, "golden", 2)
    done = gc(kit, LAST)
    assert done.kept_seqs == [2, 4]
    kit.restore(tmp_path / "at2", seq=2)
    assert read_tree(tmp_path / "at2")[b"changing"] == b"2" * 100
    assert set(tags(kit.dataset)) == {"golden"}
    assert delete_tag(kit.dataset, "golden").seq == 2
    assert gc(kit, LAST).kept_seqs == [4]
    with pytest.raises(Missing):
        set_tag(kit.dataset, kit.host, "again", 2)
    assert tags(kit.dataset) == {}


def test_a_pin_holds_its_seq_until_it_is_given_back(kit: Kit, tmp_path: Path) -> None:
    holder = pin(kit.dataset, kit.host)
    holder.take(kit.dataset.read_head(), 2)
    assert gc(kit, LAST).kept_seqs == [2, 4]
    kit.restore(tmp_path / "at2", seq=2)
    holder.end()
    assert gc(kit, LAST).kept_seqs == [4]


def test_what_a_killed_publisher_left_goes_when_its_intent_has_ended(kit: Kit) -> None:
    dead = intent(kit.dataset, kit.host)
    dead.take(kit.dataset.read_head(), 4)
    orphan = pack_key("data/covers", ulid_text(dead.mint()))
    kit.store.put(orphan, b"half a publish")
    assert gc(kit).swept == {}
    assert orphan in keys(kit, "pack")
    later = _Later(kit, LEASE_S + 10)
    assert gc(kit).swept.get("packs", (0, 0))[0] == 0, "one lease more, from when it was told to have ended"
    with pytest.raises(Fenced):
        dead.check()
    later.advance(LEASE_S + 10)
    assert gc(kit).swept["packs"] == (1, len(b"half a publish"))
    assert orphan not in keys(kit, "pack")
    assert not keys(kit, "intent")


class _Later:
    """A kit's clock, moved forward."""

    def __init__(self, kit: Kit, seconds: int) -> None:
        self.offset_ns = 0
        before = kit.host.clock.wall_ns
        kit.host.clock.wall_ns = lambda: before() + self.offset_ns  # type: ignore[method-assign]
        self.advance(seconds)

    def advance(self, seconds: int) -> None:
        self.offset_ns += seconds * 10**9


def test_without_an_intent_an_orphan_goes_at_once(kit: Kit) -> None:
    kit.store.put(pack_key("data/covers", "01J0000000000000000000000A"), b"x")
    assert gc(kit).swept["packs"] == (1, 1)


def test_a_lease_that_does_not_read_stops_everything(kit: Kit) -> None:
    gc(kit)
    kit.store.put(intent_key("data/covers", "01J0000000000000000000000A"), b"{}")
    with pytest.raises(Corrupt):
        gc(kit, LAST)
    assert len(keys(kit, "manifest")) == 4


class Interposed(MemoryStore):
    """A memory store that does something once, before or after a call."""

    def __init__(self) -> None:
        super().__init__()
        self.when: Callable[[str, str], bool] = lambda verb, key: False
        self.what: Callable[[], None] = lambda: None

    def _step(self, verb: str, key: str) -> None:
        if self.when(verb, key):
            self.when = lambda verb, key: False
            self.what()

    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        self._step("put", key)
        etag = super().put(key, body, if_absent=if_absent, if_match=if_match)
        self._step("was put", key)
        return etag

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        self._step("delete", key)
        super().delete(key, if_match=if_match)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        self._step("list", prefix)
        return super().list(prefix, after=after)


@pytest.fixture
def meeting(tmp_path: Path) -> tuple[Kit, Interposed]:
    """Two seqs of which the second has nothing of the first, and a store in which others can come between."""
    store = Interposed()
    store.put("boxlink.json", b"{}")
    kit = Kit(tmp_path, store)
    kit.write({b"a": b"first" * 50})
    kit.publish()
    kit.write({b"a": b"second" * 50})
    kit.publish()
    gc(kit)
    return kit, store


HEAD = head_key("data/covers")


@pytest.mark.parametrize("verb", ["put", "was put"])
def test_a_pin_that_comes_around_the_condemnation(meeting: tuple[Kit, Interposed], tmp_path: Path, verb: str) -> None:
    """Taken before it, the pin holds; taken after it, the pin is refused. Never both a pin and a deletion."""
    kit, store = meeting
    holder = pin(kit.dataset, kit.host)
    before = kit.dataset.read_head()
    outcome: list[str] = []

    def come() -> None:
        try:
            holder.take(before, 1)
            outcome.append("held")
        except Moved:
            holder.end()
            outcome.append("refused")

    store.when = lambda found, key: (found, key) == (verb, HEAD)
    store.what = come
    gc(kit, LAST)
    assert outcome == ["held" if verb == "put" else "refused"]
    if verb == "put":
        kit.restore(tmp_path / "at1", seq=1)
        assert read_tree(tmp_path / "at1") == {b"a": b"first" * 50}
        late = pin(kit.dataset, kit.host)
        head = kit.dataset.read_head()
        with pytest.raises(Missing):
            kit.dataset.check_condemned(head, kit.dataset.manifest_at(1))
        holder.end()
        late.end()
        gc(kit, LAST)
    with pytest.raises(Missing):
        kit.dataset.manifest_at(1)


@pytest.mark.parametrize("verb", ["put", "was put"])
def test_a_tag_that_comes_around_the_condemnation(meeting: tuple[Kit, Interposed], verb: str) -> None:
    kit, store = meeting
    outcome: list[str] = []

    def come() -> None:
        try:
            set_tag(kit.dataset, kit.host, "mine", 1)
            outcome.append("set")
        except Missing:
            outcome.append("refused")

    store.when = lambda found, key: (found, key) == (verb, HEAD)
    store.what = come
    gc(kit, LAST)
    if outcome == ["set"]:
        assert kit.dataset.manifest_at(1).seq == 1
        assert not kit.verify(seq=1).damage
    else:
        assert outcome == ["refused"]
        assert tags(kit.dataset) == {}


def test_a_publisher_that_uses_what_is_being_condemned_keeps_it(
    meeting: tuple[Kit, Interposed], tmp_path: Path
) -> None:
    """Its directory holds the first seq's bytes again; they are in a pack that only the first seq reaches."""
    kit, store = meeting
    revert(kit.dataset, kit.host, 1)
    other = Kit(tmp_path / "other", store, seed=2)
    other.restore(other.directory)
    other.write({b"a": b"first" * 50, b"b": b"first" * 50})

    def come() -> None:
        # While it uploads: the head moves away from those bytes, and a collector comes.
        revert(kit.dataset, kit.host, 2)
        gc(kit, LAST)
        gc(kit, LAST)

    store.when = lambda verb, key: verb == "put" and "/run/" in key
    store.what = come
    other.publish()
    assert not kit.verify().damage
    gc(kit, LAST)
    assert not kit.verify().damage
    kit.restore(tmp_path / "now")
    assert read_tree(tmp_path / "now")[b"b"] == b"first" * 50


def test_a_collector_that_slept_deletes_nothing_that_came_since(
    meeting: tuple[Kit, Interposed], tmp_path: Path
) -> None:
    """It stops after it has condemned; another ends its work, and what is published meanwhile stays."""
    kit, store = meeting
    store.put(pack_key("data/covers", "01J0000000000000000000000A"), b"x")

    def come() -> None:
        gc(kit, LAST)
        kit.write({b"a": b"first" * 50})
        kit.publish()

    store.when = lambda verb, key: verb == "delete" and "/pin/" not in key and "/intent/" not in key
    store.what = come
    gc(kit, LAST)
    assert not kit.verify().damage


def test_what_was_taken_off_the_list_before_a_lease_was_given_back_stays(meeting: tuple[Kit, Interposed]) -> None:
    """A holder (a replication) commits with what was condemned, and ends its claim, after a collector has read the
    list and before it looks at the leases."""
    kit, store = meeting
    claim = intent(kit.dataset, kit.host)
    claim.take(kit.dataset.read_head(), 1, 2)
    assert gc(kit, LAST).swept == {}
    claim.end()
    before = {info.key for info in store.list("")}

    def commit() -> None:
        update_head(
            kit.dataset, kit.host, lambda state: msgspec.structs.replace(state.head, condemned=[]), lambda: None
        )

    store.put(pack_key("data/covers", "01J0000000000000000000000A"), b"x")
    # Condemned are seq 1 by a lost sweep, and that pack now; the leases are looked at next.
    update_head(
        kit.dataset,
        kit.host,
        lambda state: msgspec.structs.replace(state.head, condemned=[*first_ids(kit)]),
        lambda: None,
    )

    def at_the_leases() -> None:
        store.when, store.what = (lambda verb, key: verb == "list" and "/intent/" in key), commit

    store.when, store.what = (lambda verb, key: verb == "was put" and key == HEAD), at_the_leases
    gc(kit, LAST)
    assert before <= {info.key for info in store.list("")}


def first_ids(kit: Kit) -> list[bytes]:
    """What only seq 1 has: its manifest."""
    return [bytes.fromhex(key.rpartition("-")[2])[:16] for seq, key in kit.dataset.manifests() if seq == 1]


def test_what_another_collector_has_condemned_stays_so_until_it_is_gone(meeting: tuple[Kit, Interposed]) -> None:
    """Also what was uploaded after this one has listed."""
    kit, store = meeting
    orphan = "01J0000000000000000000000A"

    def come() -> None:
        store.put(pack_key("data/covers", orphan), b"x")
        update_head(
            kit.dataset,
            kit.host,
            lambda state: msgspec.structs.replace(
                state.head, epoch=state.head.epoch + 1, condemned=[ulid_from_text(orphan)]
            ),
        )

    store.when = lambda verb, key: verb == "list" and "/intent/" in key
    store.what = come
    gc(kit)
    is_there = pack_key("data/covers", orphan) in keys(kit, "pack")
    assert is_there == (ulid_from_text(orphan) in kit.dataset.read_head().head.condemned)
    assert not kit.verify().damage


def test_killed_at_any_write_a_collector_leaves_everything_whole(kit: Kit, tmp_path: Path) -> None:
    set_tag(kit.dataset, kit.host, "golden", 2)
    # Killed while it makes objects of manifests it leaves an intent that holds all seqs for a day.
    gc(kit)

    class Killed(BaseException):
        pass

    real_put, real_delete = kit.store.put, kit.store.delete
    for writes in range(1, 40):
        left = [writes]

        def step(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        def put(key: str, body: Body, **conditions: object) -> str:
            step()
            return real_put(key, body, **conditions)  # type: ignore[arg-type]

        def delete(key: str, **conditions: object) -> None:
            step()
            real_delete(key, **conditions)  # type: ignore[arg-type]

        kit.store.put, kit.store.delete = put, delete  # type: ignore[assignment]
        try:
            gc(kit, LAST)
            break
        except Killed:
            continue
        finally:
            kit.store.put, kit.store.delete = real_put, real_delete
            assert not kit.verify().damage
            assert not kit.verify(seq=2).damage
    else:
        pytest.fail("it never came to its end")
    assert keys(kit, "manifest") == {key for key in keys(kit, "manifest") if int(key.split("/")[3][:20]) in (2, 4)}
    # The sweeps of those that were killed are not over for two days; then the list is cleared.
    assert gc(kit, LAST).sweeping
    for key in keys(kit, "intent"):
        kit.store.delete(key)
    assert gc(kit, LAST).sweeping == []
    assert kit.dataset.read_head().head.condemned == []


def test_more_garbage_than_one_head_can_condemn(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_module, "CONDEMNED_MAX", 3)
    for number in range(10):
        kit.store.put(pack_key("data/covers", f"01J000000000000000000000{number:02}"), b"xy")
    assert gc(kit).swept["packs"] == (10, 20)
    assert not kit.verify().damage


def test_kept_seqs() -> None:
    day = 24 * 3600 * 10**9
    start = 1_790_000_000 * 10**9
    times = [(seq, start + seq * day // 4) for seq in range(1, 401)]
    assert kept_seqs(times, Retention()) == set(range(1, 401))
    assert kept_seqs(times, Retention(last=3)) == {398, 399, 400}
    daily = kept_seqs(times, Retention(daily=5))
    assert len(daily) == 5
    assert 400 in daily
    assert all(second - first == 4 for first, second in zip(sorted(daily)[:-2], sorted(daily)[1:-1], strict=True))
    assert len(kept_seqs(times, Retention(weekly=4))) == 4
    assert len(kept_seqs(times, Retention(monthly=3))) == 3
    assert len(kept_seqs(times, Retention(monthly=300))) in (4, 5)
    assert kept_seqs([], Retention(last=1)) == set()


def test_revert_makes_an_old_content_new(kit: Kit, tmp_path: Path) -> None:
    digest = kit.dataset.manifest_at(2).digest
    packs = keys(kit, "pack")
    dry = revert(kit.dataset, kit.host, 2, is_dry_run=True)
    assert kit.dataset.read_head().manifest.seq == 4
    done = revert(kit.dataset, kit.host, 2)
    assert (done.manifest.seq, done.manifest.digest, done.is_new) == (5, digest, True)
    assert (dry.added, dry.changed, dry.deleted) == (done.added, done.changed, done.deleted) == (0, 1, 2)
    assert keys(kit, "pack") == packs
    assert not revert(kit.dataset, kit.host, 2).is_new
    kit.restore(tmp_path / "now")
    assert read_tree(tmp_path / "now") == {b"changing": b"2" * 100, b"f0": b"0", b"f1": b"1"}
    assert not keys(kit, "intent")
    with pytest.raises(Missing):
        revert(kit.dataset, kit.host, 9)


def test_leases_read_back_and_garbage_does_not() -> None:
    lease = Lease(1, "n1", [3, 4], time.time_ns())
    assert decode_lease(encode_lease(lease)) == lease
    payloads = (b"", b"[]", b"{}", encode_lease(lease)[20:-8].replace(b"[3,4]", b"[-1]"), b"[" * 5000)
    flipped = bytearray(encode_lease(lease))
    flipped[40] ^= 1
    for bad in (b"", b"{}", bytes(flipped), *(pack_frame(b"BXLL", payload) for payload in payloads)):
        with pytest.raises(Corrupt):
            decode_lease(bad)
    assert tag_key("data/covers", "golden") == "data/covers/tag/golden"


def test_what_goes_is_deleted_side_by_side_and_by_kind(tmp_path: Path) -> None:
    """Each object is deleted once, sixteen at a time, and nothing before all that names it is gone."""

    class Watched(MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            self.put("boxlink.json", b"{}")
            self.together = threading.Barrier(16)
            self.deleted: list[str] = []
            self.is_watched = False

        def delete(self, key: str, *, if_match: str | None = None) -> None:
            if self.is_watched and "/intent/" not in key:
                self.deleted.append(key.split("/")[2])
                if key.split("/")[2] == "run":
                    self.together.wait(timeout=60)
            super().delete(key, if_match=if_match)

    store = Watched()
    kit = Kit(tmp_path, store)
    for number in range(32):
        kit.write({b"a": b"%d" % number})
        kit.publish()
    compact(kit.dataset, kit.host, no_progress, is_full=True)
    store.is_watched = True
    told: list[tuple[int, int]] = []
    with ThreadPoolExecutor(16) as executor:
        collect(kit.dataset, kit.host, LAST, executor, lambda what, done, total: told.append((done, total)))
    store.is_watched = False
    counts = Counter(store.deleted)
    # The runs that became one, all but the head's manifests, and the packs of what is hidden.
    assert counts == {"manifest": 32, "run": 32, "pack": 31}
    assert [kind for kind, _ in itertools.groupby(store.deleted)] == ["manifest", "run", "pack"]
    assert told[-1][0] == told[-1][1] == sum(counts.values())
    assert not kit.verify().damage
