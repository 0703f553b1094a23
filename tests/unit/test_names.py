from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synclib.core import names
from synclib.core.names import sort_key
from synclib.errors import Corrupt, Invalid
from tests.strategies import directories
from tests.strategies import names as entry_names


@pytest.mark.parametrize("name", ["covers", "a", "map-2026.11", "_x", "A" * 128])
def test_dataset_names_that_are_taken(name: str) -> None:
    assert names.dataset_root(name) == f"data/{name}"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "a..b", "log", "a\n", "a\0", "é", "-a", ".a", "A" * 129, "a b", "synch.up"]
)
def test_dataset_names_that_are_refused(name: str) -> None:
    with pytest.raises(Invalid):
        names.dataset_root(name)


def test_keys_build_and_parse() -> None:
    root = names.dataset_root("covers")
    digest, ulid = "ab" * 32, "01J0000000000000000000000A"
    key = names.manifest_key(root, 7, digest)
    assert key == f"data/covers/manifest/{7:020}-{digest}"
    assert names.parse_manifest_key(root, key) == (7, digest)
    key = names.run_key(root, "diff1", 3, 4, ulid)
    assert names.parse_run_key(root, key) == names.RunName("diff1", 3, 4, ulid)
    assert names.parse_log_key(names.log_key("n1", "sync-1.log", 12)) == ("n1", "sync-1.log", 12)
    assert names.proxy_key("10.11.23.58", 80) == "proxy/10.11.23.58.p80"


@pytest.mark.parametrize("key", ["data/covers/manifest/7-ab", "data/covers/manifest/x", "data/covers/manifest/"])
def test_foreign_manifest_keys_are_corrupt(key: str) -> None:
    with pytest.raises(Corrupt):
        names.parse_manifest_key("data/covers", key)


@pytest.mark.parametrize("component", [b"", b".", b"..", b"a/b", b"a\0", b"x" * 256])
def test_components_that_would_leave_their_directory(component: bytes) -> None:
    with pytest.raises(Corrupt):
        names.check_component(component)


@pytest.mark.parametrize("path", [b"/", b"/a", b"a/", b"a//b", b"../a", b"a/..", b"."])
def test_directories_that_are_not_clean(path: bytes) -> None:
    with pytest.raises(Corrupt):
        names.check_directory(path)


@given(st.lists(st.tuples(directories, entry_names), unique=True, max_size=30))
def test_order_is_that_of_a_depth_first_walk(pairs: list[tuple[bytes, bytes]]) -> None:
    """A directory's own entries, by name, then each child directory whole, by name."""

    def walk(level: list[tuple[tuple[bytes, ...], bytes]], depth: int) -> list[tuple[tuple[bytes, ...], bytes]]:
        own = sorted((item for item in level if len(item[0]) == depth), key=lambda item: item[1])
        deeper = sorted({item[0][depth] for item in level if len(item[0]) > depth})
        for child in deeper:
            own += walk([item for item in level if len(item[0]) > depth and item[0][depth] == child], depth + 1)
        return own

    split = [(tuple(directory.split(b"/")) if directory else (), name) for directory, name in pairs]
    expected = [(b"/".join(directory), name) for directory, name in walk(split, 0)]
    assert sorted(pairs, key=lambda pair: sort_key(*pair)) == expected


@pytest.mark.parametrize(
    ("directory", "name", "expected"),
    [
        (b"", b".boxlink", True),
        (b".boxlink", b"state.json", True),
        (b".boxlink/run", b"x", True),
        (b"", b"synch.down", True),
        (b"synch.x/y", b"z", True),
        (b"a", b".boxlink", False),
        (b"a/.boxlink", b"x", False),
        (b".boxlinks", b"x", False),
        (b"", b"synch", False),
    ],
)
def test_what_is_ours_is_ours_with_all_below_it(directory: bytes, name: bytes, expected: bool) -> None:
    assert names.is_reserved(directory, name) is expected
