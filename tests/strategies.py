"""Hypothesis strategies for the values of the formats."""

from __future__ import annotations

from hypothesis import strategies as st

from synclib.core.entry import ChunkRef, Codec, Entry, Kind
from synclib.core.names import is_reserved

names = st.one_of(
    st.binary(min_size=1, max_size=12).map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"_")),
    st.sampled_from([b"a", b"a!", b"b", b"covers.jpg", "é".encode(), b"\xff\xfe", b"x" * 255]),
).filter(lambda name: name not in (b".", b".."))
directories = st.lists(names, max_size=3).map(b"/".join).filter(lambda path: not is_reserved(b"", path.split(b"/")[0]))
PACKS = [bytes([number]) * 16 for number in range(3)]


@st.composite
def chunks(draw: st.DrawFn) -> ChunkRef:
    plain = draw(st.integers(1, 1 << 20))
    codec = draw(st.sampled_from(list(Codec)))
    stored = plain if codec == Codec.RAW else draw(st.integers(1, plain))
    return ChunkRef(
        draw(st.binary(min_size=32, max_size=32)),
        draw(st.sampled_from(PACKS)),
        draw(st.integers(0, 1 << 33)),
        stored,
        plain,
        codec,
    )


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    directory, name = draw(directories), draw(names)
    if is_reserved(directory, name):
        name = b"_" + name[1:]
    kind = draw(st.sampled_from(list(Kind)))
    mtime = draw(st.integers(-(1 << 62), 1 << 62))
    extra = draw(st.sampled_from([(), (("user.a", b"1"),)]))
    mode = draw(st.integers(0, 0o7777))
    if kind == Kind.FILE:
        parts = tuple(draw(st.lists(chunks(), max_size=3)))
        size = sum(part.plain_bytes for part in parts)
        address = draw(st.integers(0, 1 << 40)) if size else 0
        return Entry(directory, name, kind, mode, mtime, size, parts, b"", extra, draw(st.booleans()), address)
    target = draw(st.binary(min_size=1, max_size=40)).replace(b"\0", b"_") if kind == Kind.SYMLINK else b""
    return Entry(directory, name, kind, mode, mtime, target=target, extra=extra)


def sorted_entries(min_size: int = 1, max_size: int = 40) -> st.SearchStrategy[list[Entry]]:
    return st.lists(entries(), min_size=min_size, max_size=max_size, unique_by=lambda entry: entry.key).map(
        lambda found: sorted(found, key=lambda entry: entry.key)
    )
