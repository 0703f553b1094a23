from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synclib import errors
from synclib.core.markers import Active, parse_active, parse_down
from synclib.core.registration import parse_proxy_key, parse_registration
from synclib.errors import BoxlinkError, Corrupt, Invalid


def test_active_words() -> None:
    assert parse_active("") == Active()
    assert parse_active(" lazy\nseq=7 from=snapshot ") == Active(mode="lazy", seq=7, source="snapshot")
    for bad in ("fast", "seq=", "seq=x", "seq=0", "seq=-1", "from=moon"):
        with pytest.raises(Invalid):
            parse_active(bad)


def test_down_is_checked() -> None:
    good = '{"dataset":"covers","seq":3,"digest":"%s","mode":"eager","reason":"","at":"2026-11-24T00:00:00Z"}' % (
        "a" * 64
    )
    assert parse_down(good).seq == 3
    for bad in ("", "{}", "null", good.replace("3", '"x"'), good.replace("aaaa", "zzzz")):
        with pytest.raises(Corrupt):
            parse_down(bad)


def test_registration_json_and_slide_line() -> None:
    found = parse_registration(
        b'{"v":1,"handles":["/tiles/*"],"cache":"365d","state":"draining","lease_s":5,"later":1}'
    )
    assert (found.handles, found.cache_seconds, found.state, found.lease_s) == (["/tiles/*"], 31536000, "draining", 5)
    for line in (b"I handle '/tiles/*'. Cache for 365d", "I handle \u2018/tiles/*\u2019.  Cache for 365d\n".encode()):
        slide = parse_registration(line)
        assert (slide.handles, slide.cache_seconds, slide.state) == (["/tiles/*"], 31536000, "active")
    assert parse_registration(b"I handle '/a'.").cache_seconds is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{}",
        b"\xff",
        b"hello",
        b'{"handles":[]}',
        b'{"handles":["tiles"]}',
        b'{"handles":["/a b"]}',
        b'{"handles":["/a"],"v":2}',
        b'{"handles":["/a"],"state":"gone"}',
        b'{"handles":["/a"],"lease_s":0}',
        b'{"handles":["/a"],"cache":"forever"}',
        b'{"handles":["/a\\r\\nX: y"]}',
        b'{"handles":["/a"]' + b" " * 20000 + b"}",
    ],
)
def test_bad_registrations(data: bytes) -> None:
    with pytest.raises(Corrupt):
        parse_registration(data)


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_corrupt(data: bytes) -> None:
    with contextlib.suppress(Corrupt):
        parse_registration(data)


def test_proxy_keys() -> None:
    address, port = parse_proxy_key("proxy/10.11.23.58.p80")
    assert (str(address), port) == ("10.11.23.58", 80)
    assert str(parse_proxy_key("proxy/::1.p8080")[0]) == "::1"
    for bad in (
        "proxy/a.p80",
        "proxy/1.2.3.4",
        "proxy/1.2.3.4.p0",
        "proxy/1.2.3.4.p080",
        "proxy/1.2.3.4.p99999",
        "proxy/1.2.3.p1",
    ):
        with pytest.raises(Corrupt):
            parse_proxy_key(bad)


def test_every_kind_of_error_has_its_own_exit_code() -> None:
    kinds = {error.kind: error.exit_code for error in _tree(BoxlinkError)}
    assert kinds == {
        "invalid": 2, "partial": 3, "missing": 10, "unavailable": 11, "fenced": 12, "conflict": 13, "corrupt": 20,
        "unsupported": 21, "full": 22, "interrupted": 130,
    }  # fmt: skip
    shown = errors.Missing("gone", hint="look", key="k").as_dict()
    assert shown == {"kind": "missing", "message": "gone", "hint": "look", "key": "k"}


def _tree(error: type[BoxlinkError]) -> list[type[BoxlinkError]]:
    found: list[type[BoxlinkError]] = []
    for child in error.__subclasses__():
        found += [child, *_tree(child)]
    return found
