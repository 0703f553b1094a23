"""The paths of a seq's pictures from the wall index of its chain's snap, and what the diffs since change of them: no
listing, and no entry of the snap is read."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from synclib.core.entry import Kind
from synclib.core.manifest import Attachment, Manifest
from synclib.core.wall_index import (
    HEADER_BYTES,
    WallTail,
    check_wall_header,
    check_wall_page,
    decode_wall_tail,
    is_picture,
    wall_pages,
)
from synclib.errors import BoxlinkError, Corrupt
from synclib.lazy.chain import Chain
from synclib.lazy.run_reader import RangeSource

_RANGE_BYTES = 4 << 20


def wall_index_of(manifest: Manifest) -> Attachment | None:
    """That of the chain's snap; None where it has none."""
    run = manifest.runs[0].ulid if manifest.runs else b""
    return next((item for item in manifest.attachments if item.kind == "wall" and item.run == run), None)


def read_wall_index(item: Attachment, root: str, source: RangeSource) -> Iterator[tuple[array[int], bytes]]:
    """(lengths, paths one after the other) of its pages, each verified. The object is fetched whole, in ranges side by
    side: one round trip."""
    key = item.key(root)
    try:
        try:
            tail, stored = _fetch(item, key, source)
        except Corrupt:
            # Perhaps only a local copy is damaged.
            if not source.drop(key):
                raise
            tail, stored = _fetch(item, key, source)
        yield from wall_pages(tail, iter(stored))
    except BoxlinkError as error:
        error.key = error.key or key
        raise


def _fetch(item: Attachment, key: str, source: RangeSource) -> tuple[WallTail, list[memoryview]]:
    """The index of its pages, and their stored bytes; they have their digests."""
    places = [(at, min(at + _RANGE_BYTES, item.object_bytes)) for at in range(0, item.object_bytes, _RANGE_BYTES)]
    data = b"".join(
        map(bytes, (part for parts in source.get_many([(key, [place]) for place in places]) for part in parts))
    )
    if len(data) != item.object_bytes:
        raise Corrupt("it is shorter than the manifest says")
    tail = decode_wall_tail(data[len(data) - item.tail_bytes :], item.object_bytes, item.tail_digest)
    view = memoryview(data)
    check_wall_header(view[:HEADER_BYTES])
    stored = [view[page.offset : page.offset + page.stored_bytes] for page in tail.pages]
    for page, part in zip(tail.pages, stored, strict=True):
        check_wall_page(page, part)
    return tail, stored


def changed_pictures(diffs: Chain) -> Iterator[tuple[bytes, bool]]:
    """(path, whether a picture is there now) of every path that the diffs name, in order. Of those that are no picture
    some never were one."""
    for entry, _ in diffs.merged(with_hashes=False):
        yield entry.path, entry.kind != Kind.TOMBSTONE and is_picture(entry)
