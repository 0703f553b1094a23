"""A store that lies, and a stranger who was in the directory first: nothing is written outside the dataset's directory,
memory is bounded, and what is wrong is said (I6, I9)."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import xxhash
from blake3 import blake3

from synclib.core import zstd
from synclib.core.entry import ChunkRef, Codec, Entry, Kind
from synclib.core.frame import pack_frame
from synclib.core.manifest import HEAD_MAGIC, Manifest, RunRef, encode_manifest
from synclib.core.manifest import Head as HeadObject
from synclib.core.names import head_key, sort_key
from synclib.core.plan import RANGE_BYTES_MAX, Piece, plan_window, split_file
from synclib.core.run import Tail
from synclib.errors import BoxlinkError, Corrupt, Invalid, Missing, Unsupported
from synclib.lazy.chain import Chain
from synclib.lazy.run_reader import StoreRuns
from synclib.store.memory import MemoryStore
from tests.engine.forge import ROOT, TIME_NS, Forge, directory, file, link
from tests.kit import Content, Kit, put, read_tree


@contextlib.contextmanager
def bounded(most_bytes: int) -> Iterator[None]:
    """Python's own memory may not grow by more meanwhile."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most_bytes
    finally:
        tracemalloc.stop()


class Victim:
    """A node that restores from a forged store into ``data``, beside a directory that must stay as it is."""

    def __init__(self, place: Path, store: MemoryStore) -> None:
        self.outside = place / "outside"
        put(self.outside, b"passwd", b"root")
        put(self.outside, b"sub/file", b"old")
        self.kit = Kit(place / "kit", store)
        self.data = place / "data"
        self.before = self.everything()

    def everything(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for top, directories, files in os.walk(self.outside):
            found.update({os.path.join(top, name): Path(top, name).read_bytes() for name in files})
            found.update({os.path.join(top, name): os.lstat(os.path.join(top, name)).st_mode for name in directories})
        return found

    def refuses(self, kinds: tuple[type[BoxlinkError], ...] = (Corrupt,), seq: int | None = None) -> None:
        """A restore whole, one of what changed, one of a part, and verify: each says that it is wrong."""
        with pytest.raises(kinds):
            self.kit.restore(self.data, seq)
        with pytest.raises(kinds):
            self.kit.restore(self.data, seq, is_full=False)
        assert self.everything() == self.before
        assert not (self.data / "synch.down").exists()

    def finds_damage(self) -> None:
        assert self.kit.verify().damage != []


OUTSIDE = [
    [Entry(b"", b"..", Kind.DIRECTORY, 0o755), file(b"../escaped")],
    [Entry(b"..", b"escaped", Kind.FILE, 0o644, TIME_NS)],
    [directory(b"a"), Entry(b"a/..", b"escaped", Kind.FILE, 0o644, TIME_NS)],
    [directory(b"a"), Entry(b"a/../..", b"escaped", Kind.FILE, 0o644, TIME_NS)],
    [Entry(b"", b"../escaped", Kind.FILE, 0o644, TIME_NS)],
    [Entry(b"/etc", b"passwd", Kind.FILE, 0o644, TIME_NS)],
    [Entry(b"", b"/etc/passwd", Kind.FILE, 0o644, TIME_NS)],
    [Entry(b"", b".", Kind.FILE, 0o644, TIME_NS)],
    [Entry(b"", b"", Kind.FILE, 0o644, TIME_NS)],
    [Entry(b"", b"a\0b", Kind.FILE, 0o644, TIME_NS)],
    [directory(b"a"), Entry(b"a//b", b"c", Kind.FILE, 0o644, TIME_NS)],
    [directory(b"a"), Entry(b"a/", b"c", Kind.FILE, 0o644, TIME_NS)],
    [Entry(b"", b"n" * 256, Kind.FILE, 0o644, TIME_NS)],
    [Entry(b"/".join([b"d" * 200] * 25), b"n", Kind.FILE, 0o644, TIME_NS)],
    [file(b"synch.down")],
    [link(b"synch.error", b"/etc/passwd")],
    [directory(b".boxlink"), file(b".boxlink/state.json")],
    [file(b".boxlink/lock")],
    [file(b".boxlink/run/x")],
    [directory(b"synch.active"), file(b"synch.active/x")],
    [link(b"x", b""), file(b"y")],
    [link(b"x", b"a\0b")],
    [link(b"x", b"t" * 4096)],
    [Entry(b"", b"mode", Kind.FILE, 0o100644, TIME_NS)],
    [Entry(b"", b"kind", 7, 0o644)],
    [Entry(b"", b"extra", Kind.FILE, 0o644, TIME_NS, extra=(("n" * 70_000, b""),))],
]


@pytest.mark.parametrize("entries", OUTSIDE, ids=lambda entries: repr(entries[-1].path)[:40])
@pytest.mark.parametrize("is_later", [False, True], ids=["first", "later"])
def test_entries_that_lead_outside(tmp_path: Path, entries: list[Entry], is_later: bool) -> None:
    """Alone, and as a change to a dataset that stands here already."""
    forge = Forge()
    victim = Victim(tmp_path, forge.store)
    if is_later:
        forge.publish([directory(b"a"), file(b"good")])
        victim.kit.restore(victim.data)
    with contextlib.suppress(struct.error):
        forge.publish(sorted(entries, key=lambda entry: entry.key))
    if not entries[0].extra:
        victim.refuses()
        victim.finds_damage()


def test_an_extra_that_cannot_be_counted(tmp_path: Path) -> None:
    """Its name is longer than the digest's length field."""
    forge = Forge()
    forge.publish(
        [file(b"f")],
        columns=lambda columns: msgspec.structs.replace(columns, extras=[(0, (("n" * 70_000, b"v"),))]),
    )
    victim = Victim(tmp_path, forge.store)
    victim.refuses()
    victim.finds_damage()
    with pytest.raises(Corrupt):
        victim.kit.publish(victim.outside)


@pytest.mark.parametrize("is_later", [False, True], ids=["at once", "later"])
def test_through_a_symlink_of_the_chain_itself(tmp_path: Path, is_later: bool) -> None:
    forge = Forge()
    victim = Victim(tmp_path, forge.store)
    outside = os.fsencode(victim.outside)
    chunks, table = forge.chunks(b"evil")
    if is_later:
        forge.publish([directory(b"x"), *[file(b"x/passwd", chunks)]], table=table)
        victim.kit.restore(victim.data)
        forge.publish([link(b"x", outside)])
    else:
        forge.publish([link(b"x", outside), file(b"x/passwd", chunks)], table=table)
    victim.refuses()
    victim.finds_damage()
    with pytest.raises(Corrupt):
        victim.kit.restore(victim.data, path=b"x/passwd")
    assert victim.everything() == victim.before


@pytest.mark.parametrize("parent", [None, file(b"p"), link(b"p", b".")], ids=["none", "a file", "a link"])
@pytest.mark.parametrize("is_later", [False, True], ids=["at once", "later"])
def test_an_entry_without_its_directory(tmp_path: Path, parent: Entry | None, is_later: bool) -> None:
    forge = Forge()
    victim = Victim(tmp_path, forge.store)
    if is_later:
        forge.publish([file(b"good")])
        victim.kit.restore(victim.data)
        forge.publish([*([parent] if parent else []), file(b"p/q")])
    else:
        forge.publish([file(b"good"), *([parent] if parent else []), file(b"p/q")])
    # Not even where a stranger has made such a directory.
    put(victim.data, b"p", None)
    victim.refuses()
    victim.finds_damage()
    with pytest.raises(Corrupt):
        victim.kit.restore(victim.data, path=b"p/q")
    assert read_tree(victim.data).get(b"p/q") is None


def test_a_directory_taken_from_under_entries_that_stay(tmp_path: Path) -> None:
    forge = Forge()
    forge.publish([directory(b"d"), file(b"d/x")])
    forge.publish([file(b"d")])
    victim = Victim(tmp_path, forge.store)
    victim.refuses()
    victim.finds_damage()


UNSORTED: dict[str, list[list[Entry]]] = {
    "in a block": [[file(b"b"), file(b"a")]],
    "repeated in a block": [[file(b"a"), file(b"a")]],
    "between blocks": [[file(b"a"), file(b"z")], [file(b"m")]],
    "repeated between blocks": [[file(b"a"), file(b"m")], [file(b"m"), file(b"z")]],
    "last key": [[file(b"a"), file(b"m")]],
}


@pytest.mark.parametrize("blocks", UNSORTED.values(), ids=UNSORTED)
def test_unsorted_and_repeated_keys(tmp_path: Path, blocks: list[list[Entry]], request: pytest.FixtureRequest) -> None:
    forge = Forge()
    last = sort_key(b"", b"zz") if "last key" in request.node.name else None

    def tail(found: Tail) -> Tail:
        return found if last is None else msgspec.structs.replace(found, last_key=last)

    forge.publish(*blocks, tail=tail)
    victim = Victim(tmp_path, forge.store)
    victim.refuses()
    victim.finds_damage()


BIG = 1 << 40
COLUMNS: dict[str, dict[str, Any]] = {
    "chunk count": {"chunk_counts": [BIG]},
    "negative chunk count": {"chunk_counts": [-1]},
    "too many counts": {"chunk_counts": [1, 1]},
    "no counts": {"chunk_counts": []},
    "directory count": {"directory_counts": [BIG]},
    "directory counts that cancel out": {"directory_counts": [BIG, 1 - BIG]},
    "more directories": {"directories": [b"", b"x"], "directory_counts": [1]},
    "pack": {"packs": [BIG]},
    "negative pack": {"packs": [-1]},
    "offset": {"offset_gaps": [1 << 63]},
    "negative offset": {"offset_gaps": [-5]},
    "stored": {"stored": [BIG]},
    "stored nothing": {"stored": [0]},
    "plain": {"sizes": [BIG]},
    "negative size": {"sizes": [-1]},
    "size": {"sizes": [(1 << 64) - 1]},
    "codec": {"codecs": b"\x09"},
    "no codec": {"codecs": b""},
    "mode": {"modes": [1 << 63]},
    "time": {"mtime_deltas_ns": [(1 << 64) - 1]},
    "kinds": {"kinds": b"\x01\x01"},
    "extra for nobody": {"extras": [(99, (("x", b"y"),))], "names": []},
    "targets": {"targets": [b"x"]},
}


@pytest.mark.parametrize("columns", COLUMNS.values(), ids=COLUMNS)
def test_columns_that_claim_what_is_not_there(tmp_path: Path, columns: dict[str, Any]) -> None:
    forge = Forge()
    chunks, table = forge.chunks(b"x" * 1000)
    forge.publish([file(b"f", chunks)], table=table, columns=lambda found: msgspec.structs.replace(found, **columns))
    victim = Victim(tmp_path, forge.store)
    with bounded(32 << 20):
        victim.refuses()
    victim.finds_damage()


def block(**changes: Any) -> Callable[[Tail], Tail]:
    """A tail whose first block says something else."""
    return lambda tail: msgspec.structs.replace(tail, blocks=[msgspec.structs.replace(tail.blocks[0], **changes)])


def whole(**changes: Any) -> Callable[[Tail], Tail]:
    return lambda tail: msgspec.structs.replace(tail, **changes)


TAILS: dict[str, Callable[[Tail], Tail]] = {
    "plain bytes": block(plain_bytes=BIG),
    "plain bytes of a little more": block(plain_bytes=100),
    "stored bytes": block(stored_bytes=BIG),
    "negative stored bytes": block(stored_bytes=-1),
    "offset": block(offset=BIG),
    "entry count": block(entry_count=BIG),
    "no entries": block(entry_count=0),
    "hash count": block(hash_count=BIG),
    "negative hash count": block(hash_count=-1),
    "first hash": block(hash_first=7),
    "first key": block(first_key=b"a"),
    "digest": block(digest=b""),
    "level": whole(level=9),
    "seq": whole(seq_first=0),
    "last seq": whole(seq_last=1 << 63),
    "entries": whole(entry_count=BIG),
    "hashes": whole(hashes_offset=BIG),
    "pack with more slots than room": whole(packs=[(bytes(16), 1000, BIG, bytes(32))]),
    "pack's ulid": whole(packs=[(b"x", 1000, 1, bytes(32))]),
    "pack's digest": whole(packs=[(bytes(16), 1000, 1, b"")]),
    "pack's negative count": whole(packs=[(bytes(16), 1000, -1, bytes(32))]),
    "last key": whole(last_key=b""),
}


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_tails_that_claim_what_is_not_there(tmp_path: Path, tail: Callable[[Tail], Tail]) -> None:
    forge = Forge()
    chunks, table = forge.chunks(b"x" * 1000)
    forge.publish([file(b"f", chunks)], table=table, tail=tail)
    victim = Victim(tmp_path, forge.store)
    with bounded(32 << 20):
        victim.refuses()
    victim.finds_damage()


def ref(**changes: Any) -> Callable[[RunRef], RunRef]:
    return lambda found: msgspec.structs.replace(found, **changes)


REFS: dict[str, Callable[[RunRef], RunRef]] = {
    "tail": ref(tail_bytes=BIG, object_bytes=BIG),
    "object": ref(object_bytes=BIG),
    "object of a little more": lambda found: msgspec.structs.replace(found, object_bytes=found.object_bytes + 1),
    "negative": ref(object_bytes=-1, tail_bytes=-2),
    "nothing": ref(object_bytes=0, tail_bytes=0),
    "entries": ref(entry_count=BIG),
    "level": ref(level="../../x"),
    "another level": ref(level="diff2"),
    "ulid": ref(ulid=b"../../../escaped"[:15]),
    "digest": ref(tail_digest=b""),
    "last before first": ref(seq_last=0),
    "gap": ref(seq_first=2, seq_last=2),
    "time": ref(created_at_ns=(1 << 64) - 1),
}


@pytest.mark.parametrize("change", REFS.values(), ids=REFS)
def test_references_that_claim_what_is_not_there(tmp_path: Path, change: Callable[[RunRef], RunRef]) -> None:
    forge = Forge()
    forge.publish([file(b"f")], ref=change)
    victim = Victim(tmp_path, forge.store)
    with bounded(32 << 20):
        victim.refuses((Corrupt, Missing))


def test_a_gap_between_runs(tmp_path: Path) -> None:
    forge = Forge()
    for name in (b"a", b"b", b"c"):
        forge.publish([file(name)])
    forge.put_head(forge.manifest(3, runs=[forge.runs[0], forge.runs[2]]))
    victim = Victim(tmp_path, forge.store)
    victim.refuses()


MANIFESTS: dict[str, dict[str, Any]] = {
    "seq": {"seq": 7},
    "no runs": {"runs": [], "seq": 0},
    "state": {"tree_state": b""},
    "negative": {"file_count": -1},
    "count": {"entry_count": (1 << 64) - 1},
    "time": {"published_at_ns": (1 << 64) - 1},
    "parent": {"parent": b"x"},
}


@pytest.mark.parametrize("changes", MANIFESTS.values(), ids=MANIFESTS)
def test_impossible_manifests(tmp_path: Path, changes: dict[str, Any]) -> None:
    forge = Forge()
    forge.publish([file(b"f")])
    forge.put_head(forge.manifest(1, **changes))
    victim = Victim(tmp_path, forge.store)
    victim.refuses()
    with pytest.raises(Corrupt):
        victim.kit.publish(victim.outside)


def deep(payload: bytes) -> bytes:
    """The payload, an array, with a further member that is nested very deeply."""
    assert payload[0] & 0xF0 == 0x90
    return bytes([payload[0] + 1]) + payload[1:] + b"\x91" * 100_000 + b"\xc0"


def frame(version: int = 0, features: int = 0, payload: bytes = b"\xc0", length: int | None = None) -> bytes:
    body = struct.pack("<4sHHQI", HEAD_MAGIC, version, 0, features, len(payload) if length is None else length)
    body += payload
    return body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body))


def payload_of(manifest: Manifest, /, **changes: Any) -> bytes:
    head = HeadObject(ROOT, 0, encode_manifest(manifest), ["0"], [])
    return msgspec.msgpack.encode(msgspec.structs.replace(head, **changes))


HEADS: dict[str, tuple[Callable[[Manifest], bytes], type[BoxlinkError]]] = {
    "empty": (lambda _: b"", Corrupt),
    "garbage": (lambda _: os.urandom(200), Corrupt),
    "text": (lambda _: b"<html>not found</html>" * 10, Corrupt),
    "a manifest": (encode_manifest, Corrupt),
    "cut": (lambda manifest: frame(payload=payload_of(manifest))[:-1], Corrupt),
    "length": (lambda manifest: frame(payload=payload_of(manifest), length=1 << 31), Corrupt),
    "checksum": (lambda manifest: frame(payload=payload_of(manifest))[:-1] + b"?", Corrupt),
    "another dataset": (lambda manifest: frame(payload=payload_of(manifest, root="data/other")), Corrupt),
    "version 1": (lambda manifest: frame(1, payload=payload_of(manifest)), Unsupported),
    "feature": (lambda manifest: frame(features=1 << 31, payload=payload_of(manifest)), Unsupported),
    "not an array": (lambda _: frame(payload=b"\xc0"), Corrupt),
    "nested": (lambda manifest: pack_frame(HEAD_MAGIC, deep(payload_of(manifest))), Corrupt),
    "epoch": (lambda manifest: frame(payload=payload_of(manifest, epoch=(1 << 64) - 1)), Corrupt),
    "too large": (lambda _: bytes(3 << 20), Corrupt),
    "array of 4 billion": (lambda _: frame(payload=b"\xdd\xff\xff\xff\xff"), Corrupt),
    "manifest in it": (lambda manifest: frame(payload=payload_of(manifest, manifest=b"?" * 80)), Corrupt),
}


@pytest.mark.parametrize(("make", "kind"), HEADS.values(), ids=HEADS)
def test_heads(tmp_path: Path, make: Callable[[Manifest], bytes], kind: type[BoxlinkError]) -> None:
    forge = Forge()
    forge.publish([file(b"f")])
    forge.store.put(head_key(ROOT), make(forge.manifest(1)))
    victim = Victim(tmp_path, forge.store)
    with bounded(32 << 20):
        victim.refuses((kind,))
        with pytest.raises(kind):
            victim.kit.publish(victim.outside)


def test_compatible_features_and_further_members_are_ignored(tmp_path: Path) -> None:
    forge = Forge()
    forge.publish([file(b"f")])
    payload = payload_of(forge.manifest(1))
    payload = bytes([payload[0] + 1]) + payload[1:] + b"\xa3new"
    forge.store.put(head_key(ROOT), frame(features=1 << 32, payload=payload))
    victim = Victim(tmp_path, forge.store)
    victim.kit.restore(victim.data)
    assert read_tree(victim.data) == {b"f": b""}


def bomb(size: int) -> bytes:
    """A small zstd frame whose content is as long as it says: zeros."""
    return zstd.compress(bytes(size))


@pytest.mark.parametrize("claimed", [1000, 1 << 20, BIG])
def test_a_chunk_that_is_a_bomb(tmp_path: Path, claimed: int) -> None:
    """It says 1 GiB, or lies about that; what was promised is never exceeded."""
    forge = Forge()
    (chunk,), table = forge.chunks(bytes(64 << 20), codec=Codec.ZSTD)
    forge.publish(
        [file(b"f", (msgspec.structs.replace(chunk, plain_bytes=1000),))],
        table=table,
        columns=lambda found: msgspec.structs.replace(found, sizes=[claimed]),
    )
    victim = Victim(tmp_path, forge.store)
    with bounded(32 << 20):
        victim.refuses()


def test_a_block_that_is_a_bomb(tmp_path: Path) -> None:
    """The largest that is allowed costs what the format says, and no more."""
    forge = Forge()
    forge.publish(
        [file(b"f")],
        columns=lambda found: msgspec.structs.replace(found, names=[bytes(8 << 20)] * 3, kinds=bytes(1 << 20)),
    )
    victim = Victim(tmp_path, forge.store)
    with bounded(128 << 20):
        victim.refuses()


def test_a_tail_that_is_a_bomb(tmp_path: Path) -> None:
    forge = Forge()
    forge.publish([file(b"f")], tail=whole(last_key=bytes(300 << 20)))
    victim = Victim(tmp_path, forge.store)
    with bounded(64 << 20):
        victim.refuses()


def test_far_scattered_chunks_do_not_make_one_job_large() -> None:
    """Gaps are read too, so they count: a job stays near one range's bytes however small its chunks are."""
    pack = bytes(16)
    apart = 200 << 10
    refs = [ChunkRef(bytes(32), pack, number * apart, 100, 100, Codec.RAW) for number in range(2000)]
    pieces = [Piece(file(b"%04d" % number, (ref_,)), (ref_,), 0, is_whole=True) for number, ref_ in enumerate(refs)]
    plans = list(plan_window(pieces))
    assert max(plan.range_bytes for plan in plans) <= RANGE_BYTES_MAX + apart
    assert sum(len(plan.pieces) for plan in plans) == len(pieces)
    # And within one file, in whatever order its chunks lie.
    for chunks in (tuple(refs), tuple(reversed(refs)), tuple(refs[::2] + refs[1::2])):
        hashed = tuple(msgspec.structs.replace(chunk, hash=blake3(b"%d" % chunk.offset).digest()) for chunk in chunks)
        plans = list(plan_window(list(split_file(file(b"f", hashed), hashed))))
        assert max(plan.range_bytes for plan in plans) <= RANGE_BYTES_MAX + apart
        assert [chunk for plan in plans for piece in plan.pieces for chunk in piece.chunks] != []


@pytest.fixture
def deep_path(tmp_path: Path) -> Iterator[Path]:
    """A place whose content pytest itself could not remove."""
    yield tmp_path / "deep"
    subprocess.run(["rm", "-rf", tmp_path / "deep"], check=True)


def test_a_tree_deeper_than_pythons_stack(deep_path: Path) -> None:
    """No hostility at all: 1,100 directories in each other, published and restored."""
    kit = Kit(deep_path)
    depth = 1100
    top = os.open(kit.directory, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=top)
        below = os.open("d", os.O_RDONLY, dir_fd=top)
        os.close(top)
        top = below
    with os.fdopen(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=top), "wb") as opened:
        opened.write(b"deep")
    os.close(top)
    assert kit.publish().skipped == []
    done = kit.restore(deep_path / "out")
    assert (done.fetched_files, done.problems) == (1, [])
    assert kit.restore(deep_path / "out").fetched_files == 0
    assert kit.verify().damage == []
    path = b"/".join([b"d"] * depth)
    chain = Chain.of(StoreRuns(kit.store), ROOT, kit.dataset.read_head().manifest.runs)
    assert chain.lookup(sort_key(path, b"f")) is not None


# -- a stranger was here first


CONTENT: Content = {b"d": None, b"d/x": b"new", b"f": b"file", b"l": ("link", b"f")}


@pytest.fixture
def planted(tmp_path: Path) -> Victim:
    kit = Kit(tmp_path / "publisher")
    kit.write(CONTENT)
    kit.publish()
    assert isinstance(kit.store, MemoryStore)
    victim = Victim(tmp_path, kit.store)
    victim.data.mkdir()
    return victim


@pytest.mark.parametrize("is_later", [False, True], ids=["before", "after a restore"])
def test_symlinks_in_place_of_entries_are_replaced(planted: Victim, is_later: bool) -> None:
    if is_later:
        planted.kit.restore(planted.data)
        os.unlink(planted.data / "d/x")
        os.rmdir(planted.data / "d")
        for name in ("f", "l"):
            os.unlink(planted.data / name)
    os.symlink(planted.outside / "sub", planted.data / "d")
    os.symlink(planted.outside / "passwd", planted.data / "f")
    os.symlink(planted.outside / "passwd", planted.data / "l")
    done = planted.kit.restore(planted.data)
    assert done.problems == []
    assert planted.everything() == planted.before
    assert read_tree(planted.data) == CONTENT


def test_a_symlink_that_a_change_meets(planted: Victim, tmp_path: Path) -> None:
    """Only changes are looked at, and the directory that they go to was replaced: the next, full look mends it."""
    planted.kit.restore(planted.data)
    os.unlink(planted.data / "d/x")
    os.rmdir(planted.data / "d")
    os.symlink(planted.outside / "sub", planted.data / "d")
    publisher = Kit(tmp_path / "publisher", planted.kit.store)
    publisher.write({**CONTENT, b"d/x": b"newer", b"d/y": b"2"})
    publisher.publish()
    with pytest.raises(Corrupt):
        planted.kit.restore(planted.data, is_full=False)
    assert planted.everything() == planted.before
    assert planted.kit.restore(planted.data, is_full=False).problems == []
    assert planted.everything() == planted.before
    assert read_tree(planted.data) == {**CONTENT, b"d/x": b"newer", b"d/y": b"2"}


@pytest.mark.parametrize("name", ["", "run", "manifest", "tmp"])
def test_our_own_directories_are_no_symlinks(planted: Victim, name: str) -> None:
    if name:
        (planted.data / ".boxlink").mkdir()
    os.symlink(planted.outside / "sub", planted.data / ".boxlink" / name if name else planted.data / ".boxlink")
    with pytest.raises((Invalid, Corrupt)):
        planted.kit.restore(planted.data)
    assert planted.everything() == planted.before
    assert read_tree(planted.data) == {}


@pytest.mark.parametrize("name", ["lock", "writers", "state.json"])
def test_our_own_files_are_no_symlinks(planted: Victim, name: str) -> None:
    (planted.data / ".boxlink").mkdir()
    os.symlink(planted.outside / "passwd", planted.data / ".boxlink" / name)
    with contextlib.suppress(Invalid):
        planted.kit.restore(planted.data)
    assert planted.everything() == planted.before


@pytest.mark.parametrize("path", ["f", "d/x", "l", "d"])
def test_a_pipe_where_an_entry_belongs(planted: Victim, path: str) -> None:
    for is_later in (False, True):
        if is_later:
            planted.kit.restore(planted.data)
            if path == "d":
                os.unlink(planted.data / "d/x")
                os.rmdir(planted.data / "d")
            else:
                os.unlink(planted.data / path)
        elif path == "d/x":
            (planted.data / "d").mkdir()
        os.mkfifo(planted.data / path)
        assert planted.kit.restore(planted.data).problems == []
        assert read_tree(planted.data) == CONTENT


def test_a_pipe_where_our_state_belongs(planted: Victim) -> None:
    (planted.data / ".boxlink").mkdir()
    os.mkfifo(planted.data / ".boxlink/state.json")
    assert planted.kit.restore(planted.data).problems == []
    assert read_tree(planted.data) == CONTENT


def test_a_full_directory_where_a_file_belongs_is_told_and_kept(planted: Victim) -> None:
    put(planted.data, b"f/mine", b"1")
    done = planted.kit.restore(planted.data)
    assert [path for path, _ in done.problems] == [b"f"]
    assert read_tree(planted.data)[b"f/mine"] == b"1"


def test_names_of_ours_are_no_folders_of_a_dataset(tmp_path: Path) -> None:
    """What no reader would accept is not published."""
    from synclib.lazy.dataset import check_prefix

    for text in (".boxlink", "synch.down", "synch.x/y", "/.boxlink/run/", "a/../b", "..", "a//b"):
        with pytest.raises(Invalid):
            check_prefix(text)
    assert check_prefix("/a/.boxlink/") == b"a/.boxlink"


def test_forged_chains_are_right_where_nothing_is_wrong(tmp_path: Path) -> None:
    """The forge itself: what it makes without a lie restores and verifies."""
    forge = Forge()
    chunks, table = forge.chunks(b"one", b"two")
    forge.publish([directory(b"d"), file(b"f", chunks)], [link(b"l", b"f"), file(b"d/g", chunks[:1])], table=table)
    victim = Victim(tmp_path, forge.store)
    victim.kit.restore(victim.data)
    assert read_tree(victim.data) == {b"d": None, b"d/g": b"one", b"f": b"onetwo", b"l": ("link", b"f")}
    assert victim.kit.verify().damage == []
