"""Which blocks a change touches, against the plainest way to say it; and tags, which anybody may have written."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synclib.core.entry import ChunkRef, Entry, Kind
from synclib.core.extent_map import Extent
from synclib.core.snapshot_tags import COMPLETE, DATASET, DIGEST, SEQ, STORE, parse_tags, store_tag, token_of
from synclib.core.volume_layout import BLOCK_BYTES, Layout, SlotRecord
from synclib.core.volume_plan import BlockSet, Changes, groups, plan_of, size_gib, zero_blocks
from synclib.errors import Invalid

UNITS = BLOCK_BYTES // 4096
MIB = 1 << 20
spans = st.tuples(st.integers(0, 40 * BLOCK_BYTES), st.integers(0, 3 * BLOCK_BYTES))


def file_at(address: int, size: int) -> Entry:
    chunk = ChunkRef(bytes(32), bytes(16), 0, size, size, 0)
    return Entry(b"", b"f", Kind.FILE, size=size, chunks=(chunk,) if size else (), address=address if size else 0)


files = st.none() | st.builds(file_at, st.integers(1, 40 * UNITS), st.integers(0, MIB))


def blocks_of(entry: Entry | None) -> set[int]:
    if entry is None or not entry.chunks:
        return set()
    start = entry.address * 4096
    return {at // BLOCK_BYTES for at in range(start, start + entry.size, 4096)} | {
        (start + entry.size - 1) // BLOCK_BYTES
    }


@given(st.lists(spans, max_size=20))
def test_a_set_of_blocks_is_a_set(ranges: list[tuple[int, int]]) -> None:
    found, wanted = BlockSet(), set()
    for start, length in ranges:
        found.add_range(start, start + length)
        wanted |= {at // BLOCK_BYTES for at in range(start, start + length)[:: BLOCK_BYTES // 2]}
        if length:
            wanted.add((start + length - 1) // BLOCK_BYTES)
    assert list(found) == sorted(wanted)
    assert len(found) == len(wanted)
    assert all(index in found for index in wanted)
    assert 10_000 not in found


@given(st.lists(st.tuples(files, files), max_size=10), st.lists(files, max_size=4))
def test_what_changes_is_built_and_what_is_empty_is_zeros(
    paths: list[tuple[Entry | None, Entry | None]], others: list[Entry | None]
) -> None:
    changes = Changes()
    for before, after in paths:
        changes.note(before, after)
    fresh = {b for before, after in paths if at(before) != at(after) for b in blocks_of(after)}
    left = {b for before, after in paths if at(before) != at(after) for b in blocks_of(before)}
    live = [entry for entry in (*others, *(after for _, after in paths)) if entry is not None]

    def overlapping(start: int, stop: int) -> list[Extent]:
        found = [Extent(entry.address * 4096, chunk) for entry in live for chunk in entry.chunks]
        return [extent for extent in found if extent.position < stop and extent.stop > start]

    assert list(changes.fresh) == sorted(fresh)
    held = {block for entry in live for block in blocks_of(entry)}
    assert set(zero_blocks(changes, overlapping)) == left - fresh - held


def at(entry: Entry | None) -> tuple[int, int]:
    return (entry.address, entry.size) if entry is not None and entry.chunks else (0, 0)


@given(st.sets(st.integers(0, 300)), st.integers(1, 9))
def test_groups_are_neighbours(blocks: set[int], count_max: int) -> None:
    found = list(groups(sorted(blocks), count_max))
    assert [index for group in found for index in group] == sorted(blocks)
    for group in found:
        assert len(group) <= count_max
        assert group == list(range(group[0], group[-1] + 1))


def test_a_plan_counts_all_that_is_put() -> None:
    layout, changes = Layout(64 * MIB), Changes()
    changes.note(None, file_at(UNITS, 2 * BLOCK_BYTES))
    record = SlotRecord(1, "data/a", 1, "ab" * 32, 4 * UNITS, BLOCK_BYTES + 1, bytes(32), 10, bytes(32))
    plan = plan_of(layout, record, 1, changes, [7])
    assert list(plan.slot) == [129, 130, 131]
    assert (plan.image_blocks, plan.blob_first) == (2, 257)
    assert plan.zeros == [264]
    assert len(plan) == 1 + 3 + 1 + 2


def test_a_volume_has_room_for_all_and_never_shrinks() -> None:
    layout = Layout(64 * MIB)
    assert size_gib(layout, 1) == 1
    assert size_gib(layout, (1 << 30) // 4096) == 2
    assert size_gib(layout, 1, 500) == 500


GOOD = {STORE: "s3://b/p", DATASET: "covers", SEQ: "12", DIGEST: "0f" * 32, COMPLETE: "1"}


def test_good_tags_are_read() -> None:
    found = parse_tags(GOOD)
    assert (found.store, found.dataset, found.seq, found.digest, found.is_complete) == (
        "s3://b/p",
        "covers",
        12,
        "0f" * 32,
        True,
    )
    assert parse_tags({**GOOD, **found.as_dict()}) == found
    assert not parse_tags(found.as_dict()).is_complete


@given(st.dictionaries(st.sampled_from([*GOOD, "other"]), st.text(max_size=300)))
def test_any_tags_are_read_or_refused_by_name(tags: dict[str, str]) -> None:
    with contextlib.suppress(Invalid):
        found = parse_tags({**GOOD, **tags})
        assert found.seq > 0
        assert len(found.store) <= 255


@pytest.mark.parametrize("seq", ["0", "-1", "01", "1_0", "١", " 1", "1" * 19, ""])
def test_odd_seqs_are_refused(seq: str) -> None:
    with pytest.raises(Invalid, match=SEQ):
        parse_tags({**GOOD, SEQ: seq})


def test_a_stores_tag_fits() -> None:
    assert store_tag("s3://bucket/some prefix") == "s3://bucket/some prefix"
    for url in ("file:///" + "x" * 300, "file:///%C3%A4", "file:///a\n"):
        assert store_tag(url).startswith("blake3:")
        assert len(store_tag(url)) <= 255


def test_tokens_tell_words_apart() -> None:
    assert token_of("a", "bc") != token_of("ab", "c")
    assert token_of("a", 1) == token_of("a", 1)
