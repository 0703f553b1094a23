"""A publish with the stat cache gives exactly what one without it gives, whatever happened to directory and cache."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from synclib.core.entry import Entry
from synclib.disk.stat_cache import StatCache, pack_rows, unpack_rows
from synclib.lazy.chain import Chain
from synclib.lazy.run_reader import StoreRuns
from tests.kit import Content, Kit

NAMES = [b"a", b"b", b"d", b"d/x", b"d/y", b"d/e", b"d/e/z", b"d!", b"d!/x", b"\xff"]
VALUES = [b"", b"1", b"22" * 40, ("link", b"a"), ("link", b"b"), None]
DAMAGE = ["none", "removed", "flipped", "truncated", "emptied"]
TREES = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VALUES), max_size=8)

STEPS = st.tuples(TREES, st.sampled_from(DAMAGE), st.integers(0, 10_000), st.booleans())


def as_tree(content: Content) -> Content:
    """The part of a content that is a tree."""
    tree: Content = {}
    for path, value in sorted(content.items()):
        parts = path.split(b"/")
        parents = [b"/".join(parts[:depth]) for depth in range(1, len(parts))]
        if all(tree.get(parent, None) is None for parent in parents):
            tree.update(dict.fromkeys(parents))
            tree[path] = value
    return tree


def damage(place: Path, how: str, number: int) -> None:
    for path in (place / "state/base").glob("*.stat"):
        data = bytearray(path.read_bytes())
        if how == "removed":
            path.unlink()
        elif how == "flipped":
            data[number % len(data)] ^= 1 << number % 8
            path.write_bytes(data)
        elif how == "truncated":
            path.write_bytes(data[: number % len(data)])
        elif how == "emptied":
            path.write_bytes(b"")


def entries(kit: Kit) -> list[tuple[object, ...]]:
    """All that the head says, but for where bytes are stored."""
    chain = Chain.of(StoreRuns(kit.store), kit.dataset.root, kit.dataset.read_head_or_empty().manifest.runs)
    return [_said(entry) for entry in chain.entries()]


def _said(entry: Entry) -> tuple[object, ...]:
    hashes = tuple(chunk.hash for chunk in entry.chunks)
    return entry.path, entry.kind, entry.mode, entry.mtime_ns, entry.size, hashes, entry.target, entry.extra


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(TREES, st.sampled_from(DAMAGE), st.integers(0, 10_000), st.booleans()), min_size=2, max_size=5)
)
def test_with_and_without_the_cache_it_is_the_same(steps: list[tuple[Content, str, int, bool]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        with_cache, without = Kit(Path(name) / "1"), Kit(Path(name) / "2", seed=2)
        for content, how, number, is_old in steps:
            tree = as_tree(content)
            with_cache.write(tree)
            top = os.fsencode(with_cache.directory)
            for place, _, files in os.walk(top):
                for file in files:
                    # Old enough to be believed, or not.
                    os.utime(os.path.join(place, file), (1, 1 if is_old else 1 << 33), follow_symlinks=False)
            shutil.rmtree(without.directory)
            shutil.copytree(with_cache.directory, without.directory, symlinks=True)
            damage(with_cache.place, how, number)
            damage(without.place, "removed", 0)
            one, two = with_cache.publish(allow_delete=True), without.publish(allow_delete=True)
            # A cache knows that a young file was read since.
            assert replace(one, read_bytes=0, meter=two.meter) == replace(two, read_bytes=0)
            assert entries(with_cache) == entries(without)


ROWS = st.lists(
    st.tuples(
        st.binary(min_size=1, max_size=8),
        st.integers(1, 0o177777),
        st.integers(-(1 << 63), (1 << 63) - 1),
        st.integers(0, 1 << 40),
        st.binary(max_size=4),
        st.lists(st.tuples(st.text(max_size=3), st.binary(max_size=3)), max_size=2).map(tuple),
    ),
    max_size=4,
)


@given(ROWS)
def test_rows_round_trip(rows: list[object]) -> None:
    packed = pack_rows(rows)  # type: ignore[arg-type]
    assert packed is not None
    assert unpack_rows(packed) == rows


DIRECTORIES = [b"", b"a", b"a/b", b"a!", b"c", b"c/d", b"c/d/e"]


@settings(deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from(DIRECTORIES), st.binary(max_size=2).map(lambda data: data * 90_000))),
    st.integers(0, 2),
)
def test_a_cache_gives_back_what_was_recorded(states: list[dict[bytes, bytes]], gap: int) -> None:
    """Over generations, of which some know other directories than the one before; blocks are copied in between."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "x.stat"
        before: dict[bytes, bytes] = {}
        identity = bytes(32)
        for number, state in enumerate(states):
            cache = StatCache(path, identity)
            for directory in sorted(state, key=lambda found: found.replace(b"/", b"\0")):
                taken = cache.take(directory)
                assert taken == before.get(directory)
                cache.record(directory, state[directory], is_same=taken == state[directory])
            identity = bytes(31) + bytes([number // (gap + 1)])
            cache.finish(identity, [])
            before = state
            assert [found.name for found in Path(name).iterdir()] == ["x.stat"]
        other = StatCache(path, b"\xff" * 32)
        assert not other.is_believed
        other.close()
