"""Channels: names that say which seq their followers should stand at, so that a bad publish does not reach every node.

A channel is moved by compare-and-swap. The seq it names, and the one before, have tags, so that retention spares them:
the tag is set first. Of several operators who move it at once one has set it last, and not always the one whose seq the
channel names then: so each, when it has moved or was refused, looks whether the tag is what the channel names.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from synclib.clock import Clock, now_text
from synclib.core.names import channel_key, channel_prefix, check_node, tag_key
from synclib.core.registration import CHANNEL_BYTES_MAX, MOVES_MAX, Channel, parse_channel
from synclib.engine.head_swap import wait_after_conflict
from synclib.engine.host import Host
from synclib.engine.tags import read_tag, set_tag
from synclib.errors import Ambiguous, BoxlinkError, Conflict, Corrupt, Invalid, Missing
from synclib.lazy.dataset import Dataset
from synclib.store.base import Store

_ATTEMPTS = 10
_BEFORE = "-before"


@dataclass(frozen=True, slots=True)
class Read:
    """A channel, and the etag that the next compare-and-swap names."""

    channel: Channel
    etag: str


def read_channel(store: Store, name: str, etag: str | None = None) -> Read | None:
    """The channel now; None while it has ``etag``. Missing where there is none of that name."""
    key = channel_key(name)
    try:
        found = store.get(key, size_max=CHANNEL_BYTES_MAX, if_none_match=etag)
    except Missing as error:
        raise Missing(f"there is no channel {name}", hint=f"boxlink channel set {name} DATASET SEQ", key=key) from error
    if found is None:
        return None
    try:
        return Read(parse_channel(found.data, name), found.etag)
    except Corrupt as error:
        error.key = key
        raise


def channels(store: Store) -> dict[str, Channel | BoxlinkError]:
    """All channels by name; what cannot be read of them, as the error that it is."""
    found: dict[str, Channel | BoxlinkError] = {}
    for info in store.list(channel_prefix()):
        name = info.key.removeprefix(channel_prefix())
        try:
            read = read_channel(store, check_node(name))
            assert read is not None
            found[name] = read.channel
        except Missing:
            continue  # it was taken away just now
        except (Corrupt, Invalid) as error:
            found[name] = error
    return found


def move_channel(store: Store, host: Host, name: str, wanted: Channel, *, is_back_allowed: bool) -> Channel:
    """Let a channel name ``wanted``'s seq, of what ``wanted`` names; its ``at`` and ``moves`` are ours to say.

    Conflict where it is frozen, names something else, or stands at a later seq (unless ``is_back_allowed``). Missing
    where there is no such seq.
    """
    if name.endswith(_BEFORE):
        hint = f"the tag of where another one stood before ends in {_BEFORE}"
        raise Invalid(f"no channel is called {name}", hint=hint)
    dataset = Dataset(store, wanted.root)
    is_tagged = False

    def moved(former: Channel | None) -> Channel | None:
        nonlocal is_tagged
        if former is not None:
            _check_move(name, former, wanted, is_back_allowed=is_back_allowed)
            if former.seq == wanted.seq:
                is_tagged = True
                return None
        dataset.manifest_at(wanted.seq)
        is_tagged = True
        if former is not None:
            set_tag(dataset, host, f"channel-{name}{_BEFORE}", former.seq)
        set_tag(dataset, host, f"channel-{name}", wanted.seq)
        return wanted

    try:
        return _change(store, host, name, moved)
    finally:
        if is_tagged:
            _spare(dataset, host, name)


def _spare(dataset: Dataset, host: Host, name: str) -> None:
    """Let the tag of a channel be of the seq that it names now. Missing where that seq is gone."""
    for _ in range(_ATTEMPTS):
        try:
            read = read_channel(dataset.store, name)
        except (Missing, Corrupt):
            return  # taken away or damaged meanwhile: it names nothing
        assert read is not None
        if read.channel.root != dataset.root or read.channel.seq == _tagged(dataset, name):
            return
        set_tag(dataset, host, f"channel-{name}", read.channel.seq)


def _tagged(dataset: Dataset, name: str) -> int | None:
    """The seq that a channel's tag spares; None where there is none that reads, as after a removal that was killed."""
    try:
        return read_tag(dataset, f"channel-{name}").seq
    except (Missing, Corrupt):
        return None


def freeze_channel(store: Store, host: Host, name: str, *, is_frozen: bool) -> Channel:
    """Refuse, or allow again, that a channel is moved."""

    def frozen(former: Channel | None) -> Channel | None:
        if former is None:
            raise Missing(f"there is no channel {name}", hint=f"boxlink channel set {name} DATASET SEQ")
        return None if former.frozen == is_frozen else former.model_copy(update={"frozen": is_frozen})

    channel = _change(store, host, name, frozen)
    if not is_frozen:
        # Whoever took it away and was killed had frozen it, and taken its tags.
        _spare(Dataset(store, channel.root), host, name)
    return channel


def remove_channel(
    store: Store, host: Host, name: str, check: Callable[[Channel | None], None], *, is_dry_run: bool
) -> Channel | BoxlinkError | None:
    """Take a channel and its tags away, whatever it names: what it was (an error where it is damaged; then its tags
    stay), None where there is none. ``check`` may refuse, of what it is.

    It is frozen first, so that nobody moves it while its tags go; killed there, it goes by the same call again.
    """
    try:
        read = read_channel(store, name)
    except Missing:
        return None
    except Corrupt as error:
        check(None)
        _, etag = _former(store, name)
        if etag is not None and not is_dry_run:
            store.delete(channel_key(name), if_match=etag)
        return error
    assert read is not None
    check(read.channel)
    if is_dry_run:
        return read.channel
    if read.channel.moves < MOVES_MAX - 1:  # else nobody can move it
        freeze_channel(store, host, name, is_frozen=True)
        read = read_channel(store, name)
        assert read is not None
    dataset = Dataset(store, read.channel.root)
    for tag in (f"channel-{name}", f"channel-{name}{_BEFORE}"):
        store.delete(tag_key(dataset.root, tag))
    try:
        store.delete(channel_key(name), if_match=read.etag)
    except Conflict:
        _spare(dataset, host, name)  # somebody thawed it and moved it
        raise
    return read.channel


def _check_move(name: str, former: Channel, wanted: Channel, *, is_back_allowed: bool) -> None:
    if former.root != wanted.root:
        raise Conflict(f"channel {name} is of {former.root}", hint="choose another name for it")
    if former.frozen:
        raise Conflict(
            f"channel {name} is frozen at seq {former.seq}", hint=f"boxlink channel freeze {name} --thaw allows it"
        )
    if wanted.seq < former.seq and not is_back_allowed:
        raise Conflict(
            f"channel {name} stands at seq {former.seq}: every follower would go back",
            hint=f"boxlink channel set {name} {_words(wanted)} --back, if that is meant",
        )


def _words(channel: Channel) -> str:
    """As ``boxlink channel set`` takes them."""
    name = channel.root.partition("/")[2]
    return f"{name} {channel.seq}{'' if channel.release is None else ' --release'}"


def _change(store: Store, host: Host, name: str, change: Callable[[Channel | None], Channel | None]) -> Channel:
    """Replace a channel by what ``change`` makes of it (None: nothing), again where others were there first."""
    for attempt in range(_ATTEMPTS):
        former, etag = _former(store, name)
        new = change(former)
        if new is None:
            assert former is not None
            return former
        # By the clock, so that a channel that was taken away and made anew is newer than what followers have seen.
        moves = max(host.clock.wall_ns() // 1_000_000, 0 if former is None else former.moves + 1)
        if moves >= MOVES_MAX:
            raise Conflict(f"channel {name} says that it was moved {moves} times", hint="take its object away first")
        new = new.model_copy(update={"at": now_text(host.clock), "moves": moves})
        body = new.model_dump_json(exclude_none=True).encode()
        try:
            # Applied twice it says the same; after a lost answer the next look finds it there.
            store.put(channel_key(name), body, if_absent=etag is None, if_match=etag)
            return new
        except (Conflict, Ambiguous):
            wait_after_conflict(host, attempt)
    raise Conflict(f"channel {name} changes faster than it can be moved", hint="run it again when others are done")


def _former(store: Store, name: str) -> tuple[Channel | None, str | None]:
    """(channel, etag): none of both where there is no object; no channel where it is damaged, and is written anew."""
    try:
        read = read_channel(store, name)
        assert read is not None
        return read.channel, read.etag
    except Missing:
        return None, None
    except Corrupt:
        key = channel_key(name)
        found = next((info for info in store.list(key) if info.key == key), None)
        return None, None if found is None else found.etag


class ChannelWatch:
    """What a node's channels say of its datasets, as it was last read. Safe between threads."""

    def __init__(self, store: Store, clock: Clock, names: Sequence[str], poll_s: float) -> None:
        self._store, self._clock, self._poll_s = store, clock, poll_s
        self._read: dict[str, Read | None] = dict.fromkeys(names)
        self._due = dict.fromkeys(names, clock.monotonic())
        self._lock = threading.Lock()

    def seq_of(self, root: str) -> int | None:
        """The seq that a channel names for what is at ``root``; None where none is about it.

        Each channel costs a conditional GET when it is due. A store that serves an older state of a channel than was
        seen here moves nobody. What a damaged channel was about last (all, where that is not known) ends in its error.
        """
        with self._lock:
            for name in self._read:
                try:
                    self._refresh(name)
                except BoxlinkError:
                    former = self._read[name]
                    if former is None or former.channel.root == root:
                        raise
            found = [read.channel.seq for read in self._read.values() if read and read.channel.root == root]
        if len(found) > 1:
            raise Invalid(f"{len(found)} channels of this node are about {root}", hint="name one of them")
        return found[0] if found else None

    def _refresh(self, name: str) -> None:
        now = self._clock.monotonic()
        if now < self._due[name]:
            return
        former = self._read[name]
        newer = read_channel(self._store, name, None if former is None else former.etag)
        # Somewhat sooner than followers look, so that each of their looks finds it fresh.
        self._due[name] = now + self._poll_s / 2
        if newer is not None and (former is None or newer.channel.moves >= former.channel.moves):
            self._read[name] = newer
