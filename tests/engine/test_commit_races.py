"""A commit whose answer is lost, and what others do meanwhile (I5): own commits are known for own, in any order."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from synclib.core.manifest import decode_head
from synclib.disk.base import BaseFile
from synclib.engine.compact import compact
from synclib.engine.host import no_progress
from synclib.engine.revert import revert
from synclib.errors import Ambiguous, Conflict, Invalid, Unavailable
from synclib.lazy.run_cache import RunCache
from synclib.store.base import Body, Fetched
from synclib.store.memory import MemoryStore
from synclib.store.meter import Meter, MeteredStore
from tests.kit import Content, Kit, read_tree

HEAD = "data/covers/head"


class LosesAnswers(MemoryStore):
    """Does to the next write of a head what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.trouble: Callable[[Callable[[], str]], str] | None = None

    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        def write() -> str:
            return super(LosesAnswers, self).put(key, body, if_absent=if_absent, if_match=if_match)

        trouble = self.trouble
        if key != HEAD or trouble is None:
            return write()
        self.trouble = None
        return trouble(write)


class Pair:
    def __init__(self, place: Path) -> None:
        self.store = LosesAnswers()
        self.store.put("boxlink.json", b"{}")
        self.one = Kit(place / "1", self.store, seed=1)
        self.two = Kit(place / "2", self.store, seed=2)
        self.place = place
        self.one.write({b"shared": b"0"})
        self.one.publish()
        self.two.restore(self.two.directory)

    def restored(self) -> Content:
        self.one.restore(self.place / "out")
        assert self.one.verify().damage == []
        return read_tree(self.place / "out")


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def test_a_lost_answer_and_another_commit_before_it_is_looked_for(pair: Pair) -> None:
    """The head's newest run is then the other's: it is not what this directory holds."""

    def apply_then_lose(write: Callable[[], str]) -> str:
        write()
        pair.two.write({b"shared": b"0", b"theirs": b"2"})
        pair.two.publish()
        raise Ambiguous("the answer was lost")

    pair.one.write({b"shared": b"0", b"mine": b"1"})
    pair.store.trouble = apply_then_lose
    done = pair.one.publish()
    assert (done.seq, done.is_new, done.added) == (3, True, 1)
    # And so the next publish does not take what the other added for deleted.
    pair.one.write({b"shared": b"0", b"mine": b"1", b"more": b"3"})
    assert pair.one.publish().deleted == 0
    assert pair.restored() == {b"shared": b"0", b"mine": b"1", b"theirs": b"2", b"more": b"3"}


def test_a_commit_that_the_head_has_forgotten_keeps_its_run(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was applied, its repetition met a conflict, and so many others have written since that its name is gone."""
    monkeypatch.setattr("synclib.engine.head_swap.RECENT_COMMITS", 1)

    def apply_then_refuse(write: Callable[[], str]) -> str:
        write()
        pair.two.write({b"shared": b"0", b"theirs": b"2"})
        pair.two.publish()
        raise Conflict("another was there first")

    pair.one.write({b"shared": b"0", b"mine": b"1"})
    pair.store.trouble = apply_then_refuse
    pair.one.publish()
    assert pair.restored() == {b"shared": b"0", b"mine": b"1", b"theirs": b"2"}


def test_one_that_is_forgotten_and_merged_away_keeps_its_run_for_its_seq(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synclib.engine.head_swap.RECENT_COMMITS", 1)

    def apply_then_refuse(write: Callable[[], str]) -> str:
        write()
        pair.two.write({b"shared": b"0", b"theirs": b"2"})
        pair.two.publish()
        compact(pair.two.dataset, pair.two.host, no_progress, is_full=True)
        raise Conflict("another was there first")

    pair.one.write({b"shared": b"0", b"mine": b"1"})
    pair.store.trouble = apply_then_refuse
    pair.one.publish()
    for seq, content in ((2, {b"shared": b"0", b"mine": b"1"}), (3, {b"shared": b"0", b"mine": b"1", b"theirs": b"2"})):
        pair.one.restore(pair.place / f"at {seq}", seq)
        assert read_tree(pair.place / f"at {seq}") == content


def test_a_merge_that_the_head_has_forgotten_keeps_its_run(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synclib.engine.head_swap.RECENT_COMMITS", 1)
    pair.one.write({b"shared": b"0", b"mine": b"1"})
    pair.one.publish()
    pair.two.restore(pair.two.directory)

    named: list[str] = []  # by the head when the answer is lost: only a collector may take these away

    def apply_then_lose(write: Callable[[], str]) -> str:
        write()
        pair.two.write({b"shared": b"0", b"mine": b"1", b"theirs": b"2"})
        pair.two.publish()
        named.extend(run.key(pair.one.dataset.root) for run in pair.one.dataset.read_head().manifest.runs)
        raise Ambiguous("the answer was lost")

    pair.store.trouble = apply_then_lose
    compact(pair.one.dataset, pair.one.host, no_progress, is_full=True)
    assert len(named) == 2
    assert set(named) <= {info.key for info in pair.store.list("data/covers/run/")}
    assert pair.restored() == {b"shared": b"0", b"mine": b"1", b"theirs": b"2"}


def test_a_write_that_is_applied_long_after_its_answer_was_given_up(pair: Pair) -> None:
    """Applied just before the second try: that meets a conflict, and the first is known for its own."""
    late: list[Callable[[], str]] = []

    def lose(write: Callable[[], str]) -> str:
        late.append(write)
        pair.store.trouble = arrive
        raise Ambiguous("no answer in time")

    def arrive(write: Callable[[], str]) -> str:
        late.pop()()
        return write()

    pair.one.write({b"shared": b"0", b"mine": b"1"})
    pair.store.trouble = lose
    done = pair.one.publish()
    assert (done.seq, done.is_new, done.added) == (2, True, 1)
    assert pair.restored() == {b"shared": b"0", b"mine": b"1"}
    assert pair.one.publish().is_new is False


def test_a_write_that_is_applied_between_two_looks(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its run is not deleted while it may still be applied."""
    late: list[Callable[[], str]] = []

    def lose(write: Callable[[], str]) -> str:
        late.append(write)
        raise Ambiguous("no answer in time")

    real = RunCache.drop

    def drop(cache: RunCache, key: str) -> bool:
        while late:
            late.pop()()
        return real(cache, key)

    monkeypatch.setattr(RunCache, "drop", drop)
    pair.one.write({b"shared": b"0", b"mine": b"1"})
    pair.store.trouble = lose
    pair.one.publish()
    head = pair.store.get(HEAD, size_max=1 << 20)
    assert head is not None
    runs = decode_head(head.data, "data/covers")[1].runs
    for ref in runs:
        pair.store.get_suffix(ref.key("data/covers"), 1)
    assert pair.restored() == {b"shared": b"0", b"mine": b"1"}


def test_a_change_that_one_head_had_and_the_next_has_not(pair: Pair) -> None:
    """Two races lost one after the other: what needed no change on the first other head is laid on the second."""

    def first(write: Callable[[], str]) -> str:
        """The other publishes the very same file..."""
        pair.two.write({b"shared": b"0", b"mine": b"1"})
        os.utime(pair.two.directory / "mine", (1, 1))
        pair.two.publish()
        pair.store.trouble = second
        return write()

    def second(write: Callable[[], str]) -> str:
        """...and takes it back."""
        pair.two.write({b"shared": b"0"})
        pair.two.publish()
        return write()

    pair.one.write({b"shared": b"0", b"mine": b"1", b"more": b"2"})
    os.utime(pair.one.directory / "mine", (1, 1))
    pair.store.trouble = first
    assert pair.one.publish().seq == 4
    assert pair.restored() == {b"shared": b"0", b"mine": b"1", b"more": b"2"}


def test_what_fails_after_the_commit_does_not_unsay_it(pair: Pair) -> None:
    """Credentials that expire between the head and its manifest: the next publisher writes that."""
    real = pair.store.put

    def refuse(write: Callable[[], str]) -> str:
        etag = write()

        def put(key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
            raise Invalid("the credentials have expired", key=key)

        pair.store.put = put  # type: ignore[method-assign]
        return etag

    pair.one.write({b"shared": b"1"})
    pair.store.trouble = refuse
    done = pair.one.publish()
    assert (done.seq, done.is_new) == (2, True)
    pair.store.put = real  # type: ignore[method-assign]
    assert pair.one.publish().is_new is False
    pair.two.write({b"shared": b"2"})
    assert pair.two.publish().seq == 3
    assert pair.two.dataset.manifest_at(2).seq == 2


@pytest.mark.parametrize("what", ["compact", "revert"])
def test_what_is_done_and_then_told_to_have_lost_is_known_for_own(pair: Pair, what: str) -> None:
    """As when a client tries again by itself: its second try meets its first. The new run stays."""
    pair.one.write({b"shared": b"1"})
    pair.one.publish()

    def own_conflict(write: Callable[[], str]) -> str:
        write()
        raise Conflict("it is no longer what it was")

    pair.store.trouble = own_conflict
    if what == "compact":
        done = compact(pair.one.dataset, pair.one.host, no_progress, is_full=True)
        assert [run.level for run in done.manifest.runs] == ["snap"]
        assert pair.restored() == {b"shared": b"1"}
    else:
        reverted = revert(pair.one.dataset, pair.one.host, 1)
        assert (reverted.manifest.seq, reverted.is_new) == (3, True)
        assert pair.restored() == {b"shared": b"0"}


def test_killed_after_the_commit_before_the_base_is_noted(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next publish changes nothing and finds that the directory is the head; the one after that reads no file."""
    pair.one.write({b"shared": b"1", b"mine": b"1"})
    for path in pair.one.directory.iterdir():
        os.utime(path, (1, 1))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BaseFile, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            pair.one.publish()
    done = pair.one.publish()
    assert (done.seq, done.is_new) == (2, False)
    meter = Meter()
    pair.one.dataset.store = MeteredStore(pair.store, meter)
    done = pair.one.publish()
    assert (done.seq, done.is_new, done.read_bytes) == (2, False, 0)
    assert meter.requests == {"get": 1, "put": 0, "list": 0, "delete": 0}


def test_an_intent_that_cannot_be_taken_back_does_not_unsay_a_publish(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(key: str, *, if_match: str | None = None) -> None:
        raise Unavailable("the store went away", key=key)

    monkeypatch.setattr(pair.store, "delete", unavailable)
    pair.one.write({b"shared": b"1"})
    assert pair.one.publish().seq == 2
    monkeypatch.undo()
    assert pair.one.publish().is_new is False


def test_publishers_that_share_a_cache_do_not_prune_each_others_runs(tmp_path: Path) -> None:
    """One ends while the other has a run laid that is in no head yet."""
    one = Kit(tmp_path)
    two = Kit(tmp_path / "2", one.store, seed=2)
    two.host = one.host
    one.write({b"shared": b"0"})
    one.publish()
    two.restore(two.directory)
    two.write({b"shared": b"0", b"theirs": b"2"})
    real_put = one.store.put
    runs = one.host.dataset_cache(one.store.url, one.dataset.root) / "run"
    before = set(os.listdir(runs))

    def put_late(key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        """The other's whole publish comes between laying a run and uploading it."""
        if "/run/" in key:
            one.store.put = real_put  # type: ignore[method-assign]
            assert two.publish().seq == 2
        return real_put(key, body, if_absent=if_absent, if_match=if_match)

    one.store.put = put_late  # type: ignore[method-assign]
    one.write({b"shared": b"0", b"mine": b"1"})
    assert one.publish().seq == 3
    one.restore(tmp_path / "out")
    assert read_tree(tmp_path / "out") == {b"shared": b"0", b"mine": b"1", b"theirs": b"2"}
    # When nobody else is at work, what is no longer wanted goes.
    one.write({b"shared": b"0", b"mine": b"2"})
    one.publish()
    assert before <= set(os.listdir(runs))
    assert len(os.listdir(runs)) <= 6


class ShowsNothing(MemoryStore):
    """What is read of the head is told only after somebody has done something else: the first publish."""

    def __init__(self) -> None:
        super().__init__()
        self.put("boxlink.json", b"{}")
        self.meanwhile: Callable[[], object] | None = None

    def get(self, key: str, *, size_max: int, if_none_match: str | None = None) -> Fetched | None:
        try:
            return super().get(key, size_max=size_max, if_none_match=if_none_match)
        finally:
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile is not None:
                meanwhile()


def test_the_first_publish_of_another_is_not_taken_for_a_lost_head(tmp_path: Path) -> None:
    store = ShowsNothing()
    one, two = Kit(tmp_path / "1", store, seed=1), Kit(tmp_path / "2", store, seed=2)
    one.write({b"one": b"1"})
    two.write({b"two": b"2"})
    store.meanwhile = one.publish
    assert two.dataset.read_head().manifest.seq == 1
    assert two.publish().seq == 2
