"""Every codec: what is written is read back; anything else raises Corrupt or Unsupported, never another error."""

from __future__ import annotations

import contextlib
import itertools
import struct

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from synclib.core import block, pack, run, zstd
from synclib.core.block import decode_block
from synclib.core.bloom import build_bloom, may_hold
from synclib.core.entry import ChunkRef, Codec, Entry
from synclib.core.manifest import decode_head, decode_manifest
from synclib.core.names import is_reserved, sort_key, split_path
from synclib.core.pack import PackBuilder, PackInfo, decode_chunk, encode_chunk
from synclib.core.run import PackTable, Tail, decode_tail
from synclib.core.runfile import RunBuilder
from synclib.core.tail import FOOTER_BYTES, tail_bytes
from synclib.core.treehash import TreeHash
from synclib.core.wall_index import MAGIC as WALL_MAGIC
from synclib.core.wall_index import (
    PAGE_PLAIN_MAX,
    WallIndexBuilder,
    WallPage,
    decode_wall_page,
    decode_wall_tail,
    wall_pages,
)
from synclib.errors import Corrupt, Unsupported
from tests.samples import WALL_PATHS, all_samples, sample_head, sample_manifest, sample_pack, sample_run
from tests.strategies import PACKS, sorted_entries


def table_of_all_packs() -> PackTable:
    table = PackTable()
    for ulid in PACKS:
        table.add(PackInfo(ulid, 1000, 10, bytes(32)))
    return table


def read_run(data: bytes, tail: Tail) -> list[Entry]:
    found: list[Entry] = []
    for info in tail.blocks:
        hashes_at = tail.hashes_offset + info.hash_first * 32
        stored = data[info.offset : info.offset + info.stored_bytes]
        packs = [row[0] for row in tail.packs]
        decoded = decode_block(info, packs, stored, data[hashes_at : hashes_at + info.hash_count * 32])
        assert [entry.key for entry in decoded.entries()] == decoded.keys
        found += decoded.entries()
    return found


@given(sorted_entries(max_size=80), st.booleans())
def test_run_round_trip(entries: list[Entry], small_blocks: bool) -> None:
    target, run_target = block.BLOCK_PLAIN_TARGET, 300
    import synclib.core.runfile as runfile

    runfile.BLOCK_PLAIN_TARGET = run_target if small_blocks else target
    try:
        builder = RunBuilder("diff2", 3, 9, table_of_all_packs())
        for entry in entries:
            builder.add(entry)
        parts = builder.finish()
    finally:
        runfile.BLOCK_PLAIN_TARGET = target
    data = b"".join(parts.read())
    ref = parts.ref(bytes(16), 1)
    assert len(data) == ref.object_bytes
    tail = decode_tail(data[-ref.tail_bytes :], len(data), ref.tail_digest)
    run.check_header(data, tail)
    assert (tail.seq_first, tail.seq_last) == (3, 9)
    assert read_run(data, tail) == entries
    assert all(may_hold(tail.bloom, entry.key) for entry in entries)
    parts.close()


@given(st.binary(max_size=5000), st.booleans())
def test_chunk_round_trip(plain: bytes, repeat: bool) -> None:
    plain = plain * 50 if repeat else plain
    if not plain:
        return
    stored, codec = encode_chunk(plain)
    chunk = ChunkRef(blake3(plain).digest(), bytes(16), 32, len(stored), len(plain), codec)
    assert decode_chunk(chunk, stored) == plain


@given(st.lists(st.binary(min_size=1, max_size=100), max_size=20))
def test_pack_round_trip(pieces: list[bytes]) -> None:
    builder = PackBuilder(PACKS[1])
    refs = [builder.add(blake3(piece).digest(), piece, piece, Codec.RAW) for piece in pieces]
    data, info = builder.finish()
    assert pack.parse_header(bytes(data)) == PACKS[1]
    tail = bytes(data[-info.tail_bytes :])
    assert list(pack.parse_tail(PACKS[1], tail, len(data), info.slots_digest)) == refs


def parse(kind: str, data: bytes) -> None:
    """Read an object of a kind whole, without help from a digest above it."""
    if kind == "head":
        decode_head(data, "data/covers")
    elif kind == "manifest":
        decode_manifest(data)
    elif kind == "pack":
        ulid = pack.parse_header(data)
        list(pack.parse_tail(ulid, data, len(data)))
    elif kind == "wall":
        parse_wall(data)
    else:
        _, ref, _ = sample_run()
        read_run(data, decode_tail(data[-ref.tail_bytes :], len(data)))


def parse_wall(data: bytes, digest: bytes | None = None, *, is_strict: bool = True) -> list[bytes]:
    """The paths of a wall index, as ``boxlink verify`` reads it."""
    length = tail_bytes(WALL_MAGIC, "wall", data[-FOOTER_BYTES:])
    tail = decode_wall_tail(data[-length:], len(data), digest)
    paths: list[bytes] = []
    stored = (data[page.offset : page.offset + page.stored_bytes] for page in tail.pages)
    for lengths, joined in wall_pages(tail, stored, is_strict=is_strict):
        at = 0
        for size in lengths:
            paths.append(joined[at : at + size])
            at += size
    return paths


NAME = st.binary(min_size=1, max_size=255).filter(
    lambda name: not {0, 47} & set(name) and name not in (b".", b"..") and not is_reserved(b"", name)
)


def wall_of(paths: list[bytes]) -> bytes:
    builder = WallIndexBuilder()
    data = b"".join([*(builder.add(path) for path in paths), builder.finish()])
    assert builder.path_count == len(paths)
    return data


@given(st.lists(st.lists(NAME, min_size=1, max_size=4).map(b"/".join), max_size=20), st.integers(1, 400))
def test_wall_index_round_trip(some: list[bytes], times: int) -> None:
    paths = {b"%05d/%b" % (number, path) for number in range(times - 1) for path in some} | set(some)  # many pages
    paths_in_order = sorted(paths, key=lambda path: sort_key(*split_path(path)))
    assert parse_wall(wall_of(paths_in_order)) == paths_in_order


GOOD_PATHS = [b"a.jpg", b"b.jpg", b"a/a.jpg", b"a/b.jpg", b"a/b/a.jpg", b"ab/a.jpg"]


@pytest.mark.parametrize("at", range(len(GOOD_PATHS)))
@pytest.mark.parametrize(
    "odd",
    [
        b"../../etc/passwd.jpg", b"/etc/x.jpg", b"a//b.jpg", b"/", b"a/", b"a/./b.jpg", b".", b"..", b"a/..",
        b"a\0b.jpg", b"synch.jpg", b"synch.d/a.jpg", b".boxlink/a.jpg", b"a/" + b"n" * 256, b"n" * 256,
    ],
)  # fmt: skip
def test_a_wall_index_with_a_path_that_no_dataset_has_is_corrupt(odd: bytes, at: int) -> None:
    assert parse_wall(wall_of(GOOD_PATHS)) == GOOD_PATHS
    with pytest.raises(Corrupt):
        parse_wall(wall_of([*GOOD_PATHS[:at], odd, *GOOD_PATHS[at:]]))


@pytest.mark.parametrize("at", range(len(GOOD_PATHS)))
@pytest.mark.parametrize(
    "odd", [b"../../etc/passwd.jpg", b"a//b.jpg", b"a/./b.jpg", b"..", b"a/..", b"a\0b", b"synch.jpg"]
)
def test_a_wall_index_whose_path_leads_out_of_its_dataset_is_corrupt_for_every_reader(odd: bytes, at: int) -> None:
    with pytest.raises(Corrupt):
        parse_wall(wall_of([*GOOD_PATHS[:at], odd, *GOOD_PATHS[at:]]), is_strict=False)


def test_a_wall_index_that_is_not_in_order_is_corrupt() -> None:
    for first, second in itertools.combinations(range(len(GOOD_PATHS)), 2):
        paths = list(GOOD_PATHS)
        paths[first], paths[second] = paths[second], paths[first]
        with pytest.raises(Corrupt):
            parse_wall(wall_of(paths))
    for twice in range(len(GOOD_PATHS)):
        with pytest.raises(Corrupt):
            parse_wall(wall_of([*GOOD_PATHS[: twice + 1], *GOOD_PATHS[twice:]]))
    # Also from one page to the next.
    many = [b"%07d/%b" % (number, b"x" * 200) for number in range(6000)]
    assert parse_wall(wall_of(many)) == many
    page = PAGE_PLAIN_MAX // (208 + 2)
    for at in range(page - 3, page + 3):
        with pytest.raises(Corrupt):
            parse_wall(wall_of([*many[:at], many[at - 1], *many[at:]]))


def test_names_that_are_nearly_ours_or_odd_are_covers() -> None:
    paths = [b"..a.jpg", b".jpg", b"a.synch.jpg", b".boxlinks/a.jpg", b"...", b"a/synch.a.jpg", b"a/.boxlink.jpg"]
    paths.sort(key=lambda path: sort_key(*split_path(path)))
    assert parse_wall(wall_of(paths)) == paths


def test_the_golden_wall() -> None:
    assert parse_wall(all_samples()["wall"]) == list(WALL_PATHS)


def test_every_flipped_byte_of_a_wall_is_seen() -> None:
    good = all_samples()["wall"]
    length = tail_bytes(WALL_MAGIC, "wall", good[-FOOTER_BYTES:])
    digest = blake3(good[-length:]).digest()
    assert parse_wall(good, digest) == list(WALL_PATHS)
    for position in range(16, len(good)):  # after the header
        bad = good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]
        with pytest.raises((Corrupt, Unsupported)):
            parse_wall(bad, digest)


def test_pages_of_a_wall_that_lie_are_refused() -> None:
    """With every digest right: a publisher that writes nonsense."""
    plain = struct.pack("<I2H", 2, 3, 5) + b"abcdefgh"
    for count, text in (
        (2, plain[:-1]), (2, plain + b"x"), (3, plain), (1, plain), (2, struct.pack("<I2H", 3, 3, 5) + b"abcdefgh"),
        (2, struct.pack("<I2H", 2, 0, 8) + b"abcdefgh"), (1, struct.pack("<IH", 1, 5000) + bytes(5000)),
    ):  # fmt: skip
        stored = zstd.compress(text)
        page = WallPage(16, len(stored), len(text), count, blake3(stored).digest(16))
        with pytest.raises(Corrupt):
            decode_wall_page(page, stored)
    stored = zstd.compress(plain)
    lengths, joined = decode_wall_page(WallPage(16, len(stored), len(plain), 2, blake3(stored).digest(16)), stored)
    assert (lengths.tolist(), joined) == ([3, 5], b"abcdefgh")


@pytest.mark.parametrize("kind", ["head", "manifest", "pack", "run", "wall"])
@given(st.data())
def test_damaged_objects_raise_the_right_kind(kind: str, data: st.DataObject) -> None:
    good = all_samples()[kind]
    parse(kind, good)
    how = data.draw(st.sampled_from(["flip", "cut", "garbage", "insert"]))
    position = data.draw(st.integers(0, len(good) - 1))
    if how == "flip":
        bad = good[:position] + bytes([good[position] ^ 1 << data.draw(st.integers(0, 7))]) + good[position + 1 :]
    elif how == "cut":
        bad = good[:position]
    elif how == "insert":
        bad = good[:position] + data.draw(st.binary(min_size=1, max_size=9)) + good[position:]
    else:
        bad = data.draw(st.binary(max_size=300))
    with contextlib.suppress(Corrupt, Unsupported):
        parse(kind, bad)


def test_every_flipped_bit_of_head_and_manifest_is_seen() -> None:
    for kind in ("head", "manifest"):
        good = all_samples()[kind]
        for position in range(len(good)):
            with pytest.raises((Corrupt, Unsupported)):
                parse(kind, good[:position] + bytes([good[position] ^ 16]) + good[position + 1 :])


def test_chunk_with_another_hash_is_corrupt() -> None:
    data, _, entries = sample_pack()
    chunk = entries[4].chunks[0]
    stored = data[chunk.offset : chunk.offset + chunk.stored_bytes]
    assert decode_chunk(chunk, stored) == b"boxlink " * 20
    for bad in (stored[:-1], stored + b"x", bytes([stored[0] ^ 1]) + stored[1:], b""):
        with pytest.raises(Corrupt):
            decode_chunk(chunk, bad)


def test_zstd_bomb_is_refused_before_it_is_unpacked() -> None:
    from synclib.core import zstd

    bomb = zstd.compress(bytes(200 << 20))
    with pytest.raises(Corrupt, match="claims"):
        zstd.decompress(bomb, 1000)


def test_a_head_copied_from_another_dataset_is_refused() -> None:
    with pytest.raises(Corrupt, match="belongs to"):
        decode_head(sample_head()[0], "data/other")


@given(sorted_entries(max_size=12), st.randoms(use_true_random=False))
def test_digest_does_not_depend_on_order_and_is_incremental(entries: list[Entry], random: object) -> None:
    forward, backward = TreeHash(), TreeHash()
    for entry in entries:
        forward.add(entry)
    for entry in reversed(entries):
        backward.add(entry)
    assert forward.hexdigest() == backward.hexdigest()
    again = TreeHash(forward.state_bytes(), forward.count)
    again.remove(entries[0])
    again.add(entries[0])
    assert again.hexdigest() == forward.hexdigest()
    again.remove(entries[0])
    assert again.hexdigest() != forward.hexdigest()


def test_manifest_round_trip() -> None:
    encoded, manifest = sample_manifest()
    assert decode_manifest(encoded) == manifest
    assert decode_head(*[sample_head()[0], "data/covers"])[1] == manifest


def test_bloom_lets_few_other_keys_pass() -> None:
    keys = [b"a\0\0%d" % number for number in range(3000)]
    bloom = build_bloom(keys, len(keys))
    assert len(bloom) == 3750
    assert all(may_hold(bloom, key) for key in keys)
    assert sum(may_hold(bloom, b"b\0\0%d" % number) for number in range(10_000)) < 250
