"""Which extras an entry may have."""

from __future__ import annotations

import pytest

from synclib.core.entry import check_extra
from synclib.errors import Corrupt

GROUP, OWNER = bytes(16), bytes(8)
GOOD: list[tuple[tuple[str, bytes], ...]] = [
    (("hardlink", GROUP), ("owner", OWNER), ("xattr.user.a", b"1")),
    (("owner", OWNER), ("xattr.user.é", b"")),
    (("owner", OWNER),),
    (("xattr.security.capability", bytes(20)), ("xattr.user." + "n" * 250, bytes(64 << 10))),
    (("of a later version", b"\0"),),
    tuple((f"xattr.user.{number}", b"") for number in range(1024)),
]
BAD: list[tuple[tuple[str, bytes], ...]] = [
    (("hardlink", b"short"),),
    (("owner", bytes(7)),),
    (("owner", OWNER), ("owner", OWNER)),
    (("", b""),),
    (("a\0b", b""),),
    (("xattr.", b""),),
    (("xattr.user", b""),),
    (("xattr.user.", b""),),
    (("xattr.user." + "n" * 251, b""),),
    (("xattr.user.a", bytes((64 << 10) + 1)),),
    (("n" * 70_000, b""),),
    tuple((f"xattr.user.{number}", b"") for number in range(1025)),
    tuple((f"xattr.user.{number}", bytes(64 << 10)) for number in range(17)),
]


@pytest.mark.parametrize("extra", GOOD)
def test_possible(extra: tuple[tuple[str, bytes], ...]) -> None:
    check_extra(extra)


@pytest.mark.parametrize("extra", BAD)
def test_impossible(extra: tuple[tuple[str, bytes], ...]) -> None:
    with pytest.raises(Corrupt):
        check_extra(extra)
