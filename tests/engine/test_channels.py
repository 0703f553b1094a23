"""Channels: moved by compare-and-swap, spared by retention, followed by nodes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from synclib.core.markers import Down, parse_down
from synclib.core.names import channel_key, tag_key
from synclib.core.registration import MOVES_MAX, Channel, parse_channel
from synclib.engine.channels import channels, freeze_channel, move_channel, read_channel, remove_channel
from synclib.engine.follow import Follower
from synclib.engine.tags import set_tag, tags
from synclib.errors import Ambiguous, BoxlinkError, Conflict, Corrupt, Invalid, Missing
from synclib.store.base import Body, Fetched
from synclib.store.memory import MemoryStore
from synclib.store.meter import Meter
from synclib.store.open import open_store
from tests.engine.test_node import Silent
from tests.kit import Kit, read_tree

CONTENT = {b"a": b"one"}


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    """Three seqs of covers, each with its own number in the file a."""
    kit = Kit(tmp_path)
    for number in (1, 2, 3):
        kit.write({b"a": b"%d" % number})
        kit.publish()
    return kit


def to(seq: int, dataset: str = "covers") -> Channel:
    return Channel(dataset=dataset, seq=seq, at="")


def move(kit: Kit, seq: int, *, back: bool = False) -> Channel:
    return move_channel(kit.store, kit.host, "stable", to(seq), is_back_allowed=back)


def test_a_channel_is_made_moved_and_listed(kit: Kit) -> None:
    first = move(kit, 1).moves
    second = move(kit, 2)
    assert second.seq == 2
    assert second.moves > first
    assert move(kit, 2) == second, "nothing changes, nothing is written"
    (found,) = channels(kit.store).values()
    assert isinstance(found, Channel)
    assert (found.dataset, found.seq, found.frozen) == ("covers", 2, False)


def test_it_goes_back_only_where_that_is_said(kit: Kit) -> None:
    move(kit, 3)
    with pytest.raises(Conflict, match="every follower would go back"):
        move(kit, 2)
    assert move(kit, 2, back=True).seq == 2


def test_no_name_is_that_of_anothers_tag(kit: Kit) -> None:
    with pytest.raises(Invalid, match="no channel is called"):
        move_channel(kit.store, kit.host, "stable-before", to(1), is_back_allowed=False)


def test_a_frozen_one_is_not_moved(kit: Kit) -> None:
    move(kit, 2)
    assert freeze_channel(kit.store, kit.host, "stable", is_frozen=True).frozen
    with pytest.raises(Conflict, match="frozen at seq 2"):
        move(kit, 3)
    freeze_channel(kit.store, kit.host, "stable", is_frozen=False)
    assert move(kit, 3).seq == 3
    with pytest.raises(Missing, match="no channel other"):
        freeze_channel(kit.store, kit.host, "other", is_frozen=True)


def test_it_names_only_what_is_there(kit: Kit) -> None:
    with pytest.raises(Missing):
        move(kit, 4)
    with pytest.raises(Missing):
        move_channel(kit.store, kit.host, "stable", to(1, "maps"), is_back_allowed=False)
    move(kit, 1)
    with pytest.raises(Conflict, match=r"is of data/covers"):
        move_channel(kit.store, kit.host, "stable", Channel(release="covers", seq=1, at=""), is_back_allowed=False)


def test_what_it_names_and_named_before_is_spared(kit: Kit) -> None:
    move(kit, 1)
    move(kit, 3)
    assert {name: tag.seq for name, tag in tags(kit.dataset).items()} == {
        "channel-stable": 3,
        "channel-stable-before": 1,
    }


def test_one_that_nobody_uses_goes_with_its_tags(kit: Kit) -> None:
    move(kit, 1)
    move(kit, 3)

    def remove(check: Callable[[Channel | None], None] = lambda _: None, *, dry: bool = False) -> object:
        return remove_channel(kit.store, kit.host, "stable", check, is_dry_run=dry)

    def refuse(_: Channel | None) -> None:
        raise Conflict("followed")

    with pytest.raises(Conflict, match="followed"):
        remove(refuse)
    assert isinstance(remove(dry=True), Channel)
    read = read_channel(kit.store, "stable")
    assert read is not None
    assert not read.channel.frozen, "nothing was changed"
    assert len(tags(kit.dataset)) == 2
    # As whoever was killed in between left it.
    freeze_channel(kit.store, kit.host, "stable", is_frozen=True)
    kit.store.delete(tag_key("data/covers", "channel-stable"))
    assert isinstance(remove(), Channel)
    assert channels(kit.store) == {}
    assert tags(kit.dataset) == {}
    assert remove(refuse) is None, "once more changes nothing"
    kit.store.put(channel_key("stable"), b"damaged")
    assert isinstance(remove(), Corrupt)
    assert channels(kit.store) == {}


class Meanwhile(MemoryStore):
    """Another operator does something before call number ``at`` of the first one, all of it."""

    at, calls = -1, 0
    happens: Callable[[], object] = staticmethod(lambda: None)

    def _call(self) -> None:
        number, self.calls = self.calls, self.calls + 1
        if number == self.at:
            self.happens()

    def get(self, key: str, *, size_max: int, if_none_match: str | None = None) -> Fetched | None:
        self._call()
        return super().get(key, size_max=size_max, if_none_match=if_none_match)

    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        self._call()
        return super().put(key, body, if_absent=if_absent, if_match=if_match)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        self._call()
        super().delete(key, if_match=if_match)


@pytest.mark.parametrize(("first", "other"), [(2, 3), (3, 2)])
def test_two_operators_at_any_moment_of_each_other(tmp_path: Path, first: int, other: int) -> None:
    """One is refused, or goes on from what the other has put there; what it names in the end is spared."""
    store = Meanwhile()
    store.put("boxlink.json", b"{}")
    kit = Kit(tmp_path, store)
    for number in (1, 2, 3):
        kit.write({b"a": b"%d" % number})
        kit.publish()
    ends = set()
    for at in range(1000):
        name = f"c{at}"
        move_channel(store, kit.host, name, to(1), is_back_allowed=False)
        said: dict[int, str] = {}

        def try_move(seq: int, name: str = name, said: dict[int, str] = said) -> None:
            try:
                found = move_channel(store, kit.host, name, to(seq), is_back_allowed=False)
                said[seq] = f"at {found.seq}"
            except Conflict as error:
                said[seq] = error.message

        store.at, store.calls = at, 0
        store.happens = lambda try_move=try_move: try_move(other)  # type: ignore[misc]
        try_move(first)
        if other not in said:
            assert at > 6, "it happened somewhere"
            break
        read = read_channel(store, name)
        assert read is not None
        assert read.channel.seq == 3, at
        assert said[3] == "at 3", at
        assert said[2] in ("at 2", f"channel {name} stands at seq 3: every follower would go back"), at
        named = {tag: found.seq for tag, found in tags(kit.dataset).items()}
        assert named[f"channel-{name}"] == 3, at
        if said[2] == "at 2":
            assert named[f"channel-{name}-before"] == 2, at
        ends.add(said[2] == "at 2")
    assert ends == {True, False}, "each of them was first once"


def test_a_move_to_where_it_stands_lets_its_tag_be_right(kit: Kit) -> None:
    """Who moved it was killed before it had looked."""
    move(kit, 3)
    set_tag(kit.dataset, kit.host, "channel-stable", 1)
    move(kit, 3)
    assert tags(kit.dataset)["channel-stable"].seq == 3


def test_one_that_cannot_be_moved_any_more_can_be_taken_away(kit: Kit) -> None:
    move(kit, 1)
    last = Channel(dataset="covers", seq=1, moves=MOVES_MAX - 1, at="")
    kit.store.put(channel_key("stable"), last.model_dump_json(exclude_none=True).encode())
    with pytest.raises(Conflict, match="was moved"):
        move(kit, 3)
    remove_channel(kit.store, kit.host, "stable", lambda _: None, is_dry_run=False)
    assert channels(kit.store) == {}
    assert tags(kit.dataset) == {}


@pytest.mark.parametrize("how", ["thaw", "set"])
def test_one_whose_removal_was_killed_is_spared_again_when_it_is_thawed(kit: Kit, how: str) -> None:
    move(kit, 1)
    move(kit, 3)
    freeze_channel(kit.store, kit.host, "stable", is_frozen=True)
    for tag in ("channel-stable", "channel-stable-before"):
        kit.store.delete(tag_key("data/covers", tag))
    if how == "set":  # by one who thawed it and was killed
        read = read_channel(kit.store, "stable")
        assert read is not None
        thawed = read.channel.model_copy(update={"frozen": False})
        kit.store.put(channel_key("stable"), thawed.model_dump_json(exclude_none=True).encode())
        move(kit, 3)
    else:
        freeze_channel(kit.store, kit.host, "stable", is_frozen=False)
    assert tags(kit.dataset)["channel-stable"].seq == 3


def test_a_removal_that_somebody_thaws_away_leaves_its_seq_spared(tmp_path: Path) -> None:
    store = Meanwhile()
    store.put("boxlink.json", b"{}")
    kit = Kit(tmp_path, store)
    kit.write({b"a": b"1"})
    kit.publish()
    for at in range(1000):
        name = f"c{at}"
        move_channel(store, kit.host, name, to(1), is_back_allowed=False)
        store.at, store.calls = at, 0
        is_there = True

        def thaw(name: str = name) -> None:
            with contextlib.suppress(Missing):
                freeze_channel(store, kit.host, name, is_frozen=False)

        store.happens = thaw
        try:
            remove_channel(store, kit.host, name, lambda _: None, is_dry_run=False)
            is_there = name in channels(store)
        except Conflict:
            assert name in channels(store)
        happened, store.at = store.calls > at, -1
        assert (f"channel-{name}" in tags(kit.dataset)) == is_there, at
        if not happened:
            assert at > 3, "it happened somewhere"
            return


def test_many_operators_at_once(tmp_path: Path) -> None:
    """Threads and a store of files: all are told how it ended, and it ended as the last of them said."""
    (tmp_path / "store").mkdir()
    store, _ = open_store(f"file://{tmp_path / 'store'}", {})
    store.put("boxlink.json", b"{}")
    kit = Kit(tmp_path, store)
    for number in (1, 2, 3):
        kit.write({b"a": b"%d" % number})
        kit.publish()
    move(kit, 1)

    def try_move(seq: int) -> int | None:
        try:
            return move(kit, seq).seq
        except Conflict:
            return None

    wanted = [2, 3, 2, 3]
    with ThreadPoolExecutor(len(wanted)) as pool:
        ended = list(pool.map(try_move, wanted))
    assert [seq for seq, wish in zip(ended, wanted, strict=True) if wish == 3] == [3, 3]
    assert set(ended) <= {2, 3, None}
    read = read_channel(store, "stable")
    assert read is not None
    assert read.channel.seq == tags(kit.dataset)["channel-stable"].seq == 3


class LosesAnswers(MemoryStore):
    """Every write of a channel is applied, and its first answer lost."""

    lost = False

    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        etag = super().put(key, body, if_absent=if_absent, if_match=if_match)
        if key.startswith("channel/") and not self.lost:
            self.lost = True
            raise Ambiguous("the answer was lost")
        return etag


def test_a_lost_answer_is_no_second_move(tmp_path: Path) -> None:
    store = LosesAnswers()
    store.put("boxlink.json", b"{}")
    kit = Kit(tmp_path, store)
    kit.write(CONTENT)
    kit.publish()
    moved = move(kit, 1)
    read = read_channel(store, "stable")
    assert read is not None
    assert read.channel == moved
    assert store.lost


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"v":2,"dataset":"covers","seq":1,"at":""}',
        b'{"v":1,"seq":1,"at":""}',
        b'{"v":1,"dataset":"covers","release":"covers","seq":1,"at":""}',
        b'{"v":1,"dataset":"../covers","seq":1,"at":""}',
        b'{"v":1,"dataset":"covers","seq":0,"at":""}',
        b'{"v":1,"dataset":"covers","seq":%d,"at":""}' % (1 << 63),
    ],
)
def test_what_is_no_channel_is_refused_by_name(kit: Kit, text: bytes) -> None:
    with pytest.raises(Corrupt, match="channel stable"):
        parse_channel(text, "stable")
    kit.store.put(channel_key("stable"), text)
    (found,) = channels(kit.store).values()
    assert isinstance(found, BoxlinkError)


def test_one_that_is_too_long_is_not_read(kit: Kit) -> None:
    kit.store.put(channel_key("stable"), b" " * (1 << 20))
    with pytest.raises(Corrupt):
        read_channel(kit.store, "stable")


class Following:
    """A node's directory of covers that follows the channel."""

    def __init__(self, kit: Kit, place: Path) -> None:
        from synclib.engine.channels import ChannelWatch

        self.directory = place / "data" / "covers"
        self.directory.mkdir(parents=True)
        (self.directory / "synch.active").touch()
        watch = ChannelWatch(kit.store, kit.host.clock, ["stable"], 0.0)
        self.follower = Follower(
            self.directory, kit.store, None, kit.host, Silent(), 0.0, lambda: False, Meter(), None, watch
        )

    def round(self) -> bytes:
        """What stands in the file a after a look."""
        self.follower.round()
        found = read_tree(self.directory).get(b"a", b"")
        assert isinstance(found, bytes)
        return found

    def down(self) -> Down:
        return parse_down((self.directory / "synch.down").read_bytes())


def test_a_node_follows_its_channel_and_not_the_head(kit: Kit, tmp_path: Path) -> None:
    move(kit, 1)
    node = Following(kit, tmp_path / "node")
    assert node.round() == b"1"
    assert node.down().seq == 1
    kit.write({b"a": b"4"})
    kit.publish()
    assert node.round() == b"1"
    move(kit, 3)
    assert node.round() == b"3"
    move(kit, 2, back=True)
    assert node.round() == b"2", "an operator moved it there, by name"
    assert node.down().seq == 2


def test_followers_stay_while_their_channel_is_frozen(kit: Kit, tmp_path: Path) -> None:
    """Nobody moves it, in no direction; who comes anew starts where it stands; what is published changes nothing."""
    move(kit, 2)
    node = Following(kit, tmp_path / "node")
    assert node.round() == b"2"
    freeze_channel(kit.store, kit.host, "stable", is_frozen=True)
    frozen = kit.store.get(channel_key("stable"), size_max=1 << 14)
    assert frozen is not None
    for seq, back in ((3, False), (3, True), (1, True)):
        with pytest.raises(Conflict, match="frozen at seq 2"):
            move(kit, seq, back=back)
    kit.write({b"a": b"4"})
    kit.publish()
    assert node.round() == b"2"
    assert Following(kit, tmp_path / "new").round() == b"2"
    assert kit.store.get(channel_key("stable"), size_max=1 << 14) == frozen, "nor was anything else of it changed"
    freeze_channel(kit.store, kit.host, "stable", is_frozen=False)
    assert node.round() == b"2", "a thaw moves nobody"
    move(kit, 4)
    assert node.round() == b"4"


def test_an_older_state_of_a_channel_takes_nobody_back(kit: Kit, tmp_path: Path) -> None:
    move(kit, 1)
    older = kit.store.get(channel_key("stable"), size_max=1 << 14)
    assert older is not None
    move(kit, 3)
    node = Following(kit, tmp_path / "node")
    assert node.round() == b"3"
    kit.store.put(channel_key("stable"), older.data)
    assert node.round() == b"3"


def test_without_its_channel_a_node_says_so_and_stays(kit: Kit, tmp_path: Path) -> None:
    node = Following(kit, tmp_path / "node")
    assert node.round() == b""
    assert "there is no channel stable" in (node.directory / "synch.error").read_text()
    move(kit, 2)
    assert node.round() == b"2"
    kit.store.put(channel_key("stable"), b"garbage")
    assert node.round() == b"2"
    assert "channel stable does not parse" in (node.directory / "synch.error").read_text()


def test_a_damaged_channel_is_written_anew(kit: Kit) -> None:
    for damage in (b"garbage", b" " * (1 << 20), b'{"v":1,"dataset":"covers","seq":1,"moves":%d,"at":""}' % (1 << 62)):
        kit.store.put(channel_key("stable"), damage)
        assert move(kit, 2).seq == 2


def test_one_made_anew_is_newer_than_what_was_seen(kit: Kit, tmp_path: Path) -> None:
    move(kit, 1)
    move(kit, 2)
    node = Following(kit, tmp_path / "node")
    assert node.round() == b"2"
    kit.store.delete(channel_key("stable"))
    move(kit, 3)
    assert node.round() == b"3"


def test_a_damaged_channel_stops_only_what_it_was_about(kit: Kit) -> None:
    from synclib.engine.channels import ChannelWatch

    move(kit, 2)
    watch = ChannelWatch(kit.store, kit.host.clock, ["stable"], 0.0)
    assert (watch.seq_of("data/covers"), watch.seq_of("data/maps")) == (2, None)
    kit.store.put(channel_key("stable"), b"garbage")
    assert watch.seq_of("data/maps") is None
    with pytest.raises(Corrupt):
        watch.seq_of("data/covers")


def test_a_seq_that_is_asked_for_by_a_marker_stands_above_the_channel(kit: Kit, tmp_path: Path) -> None:
    move(kit, 3)
    node = Following(kit, tmp_path / "node")
    (node.directory / "synch.active").write_text("seq=1")
    assert node.round() == b"1"


def test_an_idle_look_costs_one_conditional_get(kit: Kit, tmp_path: Path) -> None:
    from synclib.store.meter import MeteredStore

    move(kit, 2)
    meter = Meter()
    kit.store = MeteredStore(kit.store, meter)
    node = Following(kit, tmp_path / "node")
    node.round()
    before = dict(meter.requests)
    node.round()
    after = dict(meter.requests)
    assert {verb: count - before.get(verb, 0) for verb, count in after.items() if count != before.get(verb, 0)} == {
        "get": 1
    }
