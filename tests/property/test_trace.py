"""Traces: what is written is read again; hostile ones give an error; a union has each place once, at its earliest."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synclib.core import zstd
from synclib.core.frame import pack_frame, unpack_frame
from synclib.core.trace import MAGIC, TOUCHES_MAX, TRACE_BYTES_MAX, Touch, Trace, decode_trace, encode_trace, union
from synclib.errors import Corrupt
from tests.property.test_fuzz import bounded, mutations
from tests.samples import sample_trace

_PATHS = st.lists(st.binary(min_size=1, max_size=20).map(lambda name: name.hex().encode()), min_size=1, max_size=3)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    number = st.integers(0, (1 << 32) - 1)
    touches = draw(
        st.lists(st.builds(Touch, _PATHS.map(b"/".join), st.integers(0, 1 << 60), number, number), max_size=30)
    )
    return Trace(draw(st.integers(0, 1 << 60)), draw(st.text("node-1é", max_size=20)), 1 << 60, touches)


@given(traces())
def test_a_trace_is_read_as_it_was_written(trace: Trace) -> None:
    assert decode_trace(encode_trace(trace)) == trace


@given(mutations())
def test_a_hostile_trace_is_an_error_at_most(mutate: Callable[[bytes], bytes]) -> None:
    stored = unpack_frame(MAGIC, sample_trace()[0])
    plain = zstd.decompress(stored, zstd.content_size(stored))
    with bounded():
        decode_trace(pack_frame(MAGIC, zstd.compress(mutate(plain))))
    with bounded():
        decode_trace(pack_frame(MAGIC, mutate(stored)))


@pytest.mark.parametrize("path", [b"../up", b"/top", b"a//b", b"a/./b", b"nul\0"])
def test_a_path_that_would_leave_the_dataset_is_refused(path: bytes) -> None:
    with pytest.raises(Corrupt):
        decode_trace(encode_trace(Trace(1, "n", 1, [Touch(path, 0, 1, 0)])))


def test_what_is_too_much_is_cut_at_its_end() -> None:
    many = [Touch(b"%d" % number, 0, 1, number) for number in range(TOUCHES_MAX + 5)]
    assert decode_trace(encode_trace(Trace(1, "n", 1, many))).touches == many[:TOUCHES_MAX]
    # Names that zstd cannot make shorter.
    long = [Touch(b"/".join([os.urandom(100).hex().encode()] * 20), 0, 1, number) for number in range(9000)]
    data = encode_trace(Trace(1, "n", 1, long))
    kept = decode_trace(data).touches
    assert len(data) <= TRACE_BYTES_MAX
    assert 1000 < len(kept) < 9000
    assert kept == long[: len(kept)]


@given(st.lists(traces(), max_size=3))
def test_a_union_has_each_place_once_at_its_earliest(found: list[Trace]) -> None:
    joined = union(found)
    places = [(touch.path, touch.offset) for trace in found for touch in trace.touches]
    assert sorted((touch.path, touch.offset) for touch in joined) == sorted(set(places))
    assert [touch.at_ms for touch in joined] == sorted(touch.at_ms for touch in joined)
    for touch in joined:
        same = [
            other
            for trace in found
            for other in trace.touches
            if (other.path, other.offset) == (touch.path, touch.offset)
        ]
        assert touch.at_ms == min(other.at_ms for other in same)
        assert touch.length == max(other.length for other in same)
