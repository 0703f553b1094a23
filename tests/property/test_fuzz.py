"""Hostile bytes with right checksums: what is inside a frame is changed and everything around it made to fit again.

Whatever comes, a decoder answers with a value or with Corrupt or Unsupported: no other error, no hang, and no more
memory than a small multiple of what it was given.
"""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synclib.core import pack, zstd
from synclib.core.block import BLOCK_DIGEST_BYTES, BlockInfo, decode_block, encode_block
from synclib.core.frame import pack_frame, unpack_frame
from synclib.core.lease import Lease, decode_lease, encode_lease
from synclib.core.manifest import HEAD_MAGIC, MANIFEST_MAGIC, decode_head, decode_manifest
from synclib.core.run import Tail, decode_tail, encode_tail
from synclib.core.tag import Tag, decode_tag, encode_tag
from synclib.core.tail import FOOTER_BYTES
from synclib.errors import Corrupt, Unsupported
from tests.samples import sample_head, sample_manifest, sample_pack, sample_run
from tests.strategies import sorted_entries

# What a decoder may need for objects of a few KB: far below what a length in them could claim.
MEMORY_MAX = 8 << 20


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A change of some bytes: flips, cuts, repeats, and numbers that MessagePack reads as large."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["flip", "cut", "repeat", "huge", "insert"]),
                st.integers(0, 1 << 30),
                st.binary(min_size=1, max_size=9),
            ),
            min_size=1,
            max_size=4,
        )
    )

    def mutate(data: bytes) -> bytes:
        for how, place, extra in steps:
            at = place % (len(data) + 1)
            if how == "flip" and at < len(data):
                data = data[:at] + bytes([data[at] ^ (extra[0] or 1)]) + data[at + 1 :]
            elif how == "cut":
                data = data[:at] + data[at + len(extra) :]
            elif how == "repeat":
                data = data[:at] + data[max(0, at - 50) : at] * 3 + data[at:]
            elif how == "huge":
                data = data[:at] + b"\xcf" + b"\xff" * 8 + data[at + 1 :]
            else:
                data = data[:at] + extra + data[at:]
        return data

    return mutate


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    tracemalloc.start()
    try:
        with contextlib.suppress(Corrupt, Unsupported):
            yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY_MAX
    finally:
        tracemalloc.stop()


@given(mutations())
def test_head_and_manifest_inside_right_frames(mutate: Callable[[bytes], bytes]) -> None:
    manifest = sample_manifest()[0]
    with bounded():
        decode_manifest(pack_frame(MANIFEST_MAGIC, mutate(unpack_frame(MANIFEST_MAGIC, manifest))))
    head = sample_head()[0]
    with bounded():
        decode_head(pack_frame(HEAD_MAGIC, mutate(unpack_frame(HEAD_MAGIC, head))), "data/covers")


@given(mutations())
def test_the_tail_of_a_run_with_right_digests(mutate: Callable[[bytes], bytes]) -> None:
    data, ref, _ = sample_run()
    tail = decode_tail(data[-ref.tail_bytes :], len(data))
    good = encode_tail(tail, len(data) - ref.tail_bytes)
    plain = zstd.decompress(good[:-FOOTER_BYTES], int.from_bytes(good[-52:-48], "little"))
    stored = zstd.compress(mutate(plain))
    offset = len(data) - ref.tail_bytes
    footer = bytearray(good[-FOOTER_BYTES:])
    footer[8:12] = len(stored).to_bytes(4, "little")
    footer[12:16] = len(mutate(plain)).to_bytes(4, "little")
    footer[16:48] = blake3(stored).digest()
    forged = stored + bytes(footer)
    with bounded():
        assert isinstance(decode_tail(forged, offset + len(forged)), Tail)


@given(sorted_entries(max_size=8), mutations())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_block_with_right_digests(entries: list, mutate: Callable[[bytes], bytes]) -> None:  # type: ignore[type-arg]
    good = encode_block(entries)
    plain = mutate(zstd.decompress(good.stored, good.plain_bytes))
    stored = zstd.compress(plain)
    info = BlockInfo(
        entries[0].key,
        0,
        len(stored),
        len(plain),
        len(entries),
        sum(entry.kind == 4 for entry in entries),
        0,
        len(good.hashes) // 32,
        list(range(len(good.packs))),
        blake3(stored).digest(BLOCK_DIGEST_BYTES),
        blake3(good.hashes).digest(BLOCK_DIGEST_BYTES),
    )
    with bounded():
        block = decode_block(info, good.packs, stored, good.hashes)
        found = list(block.entries())
        # What is let through is at least a table: sorted, and of names that stay in their directory.
        assert [entry.key for entry in found] == sorted({entry.key for entry in found})
        assert all(entry.name not in (b".", b"..") and b"/" not in entry.name for entry in found)
        assert all(entry.size == sum(chunk.plain_bytes for chunk in entry.chunks) for entry in found)


@given(mutations())
def test_a_packs_slots_with_right_digests(mutate: Callable[[bytes], bytes]) -> None:
    data, info, _ = sample_pack()
    tail = data[-info.tail_bytes :]
    slots = mutate(tail[: -pack.FOOTER_BYTES])
    footer = bytearray(tail[-pack.FOOTER_BYTES :])
    footer[8:12] = (len(slots) // pack.SLOT_BYTES).to_bytes(4, "little")
    footer[16:48] = blake3(slots).digest()
    forged = data[: -info.tail_bytes] + slots + bytes(footer)
    with bounded():
        chunks = list(pack.parse_tail(info.ulid, forged, len(forged)))
        assert all(chunk.offset + chunk.stored_bytes <= len(forged) for chunk in chunks)


@given(mutations())
def test_leases_and_tags(mutate: Callable[[bytes], bytes]) -> None:
    with bounded():
        good = unpack_frame(b"BXLL", encode_lease(Lease(1, "n1", [1, 2], 3)))
        decode_lease(pack_frame(b"BXLL", mutate(good)))
    with bounded():
        decode_tag(pack_frame(b"BXLT", mutate(unpack_frame(b"BXLT", encode_tag(Tag(1, 2, "0" * 64, 3))))))


@pytest.mark.parametrize("claimed", [0, 1, 1 << 20, (1 << 32) - 1])
def test_a_frame_that_claims_another_length_costs_nothing(claimed: int) -> None:
    """A bomb: a few bytes that say they are four gigabytes."""
    stored = zstd.compress(bytes(1 << 26))
    tracemalloc.start()
    try:
        with pytest.raises(Corrupt):
            zstd.decompress(stored, min(claimed, 1 << 25))
        assert tracemalloc.get_traced_memory()[1] < MEMORY_MAX
    finally:
        tracemalloc.stop()


def test_deep_nesting_is_no_recursion_error() -> None:
    deep = b"\x91" * 100_000
    for decode in (
        lambda: decode_manifest(pack_frame(MANIFEST_MAGIC, deep)),
        lambda: decode_head(pack_frame(HEAD_MAGIC, deep), "data/covers"),
        lambda: decode_lease(pack_frame(b"BXLL", b"[" * 100_000)),
        lambda: decode_tag(pack_frame(b"BXLT", b'{"v":' * 100_000)),
    ):
        with pytest.raises((Corrupt, Unsupported)):
            decode()
