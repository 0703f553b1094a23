"""Reading attachments: their index, and whether every byte of one is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from synclib.core.extent_map import decode_page
from synclib.core.extent_map import decode_tail as decode_map_tail
from synclib.core.manifest import Attachment
from synclib.core.stored_image import decode_image_tail, decode_piece
from synclib.core.wall_index import HEADER_BYTES, check_wall_header, decode_wall_tail, wall_pages
from synclib.errors import Corrupt, Unsupported
from synclib.store.base import Buffer

ReadRange = Callable[[int, int], Buffer]  # (start, stop) of the object
_READ_BYTES = 8 << 20


def check_attachment(item: Attachment, read: ReadRange) -> None:
    """Corrupt unless every piece or page of an image, a map or a wall index is what the manifest leads to."""
    tail_data = read(item.object_bytes - item.tail_bytes, item.object_bytes)
    if item.kind == "image":
        image = decode_image_tail(tail_data, item.object_bytes, item.tail_digest)
        places = [(info.offset, info.stored_bytes) for info in image.pieces]
        for index, stored in enumerate(_in_order(places, read)):
            decode_piece(image, index, stored)
    elif item.kind == "map":
        extents = decode_map_tail(tail_data, item.object_bytes, item.tail_digest)
        places = [(page.offset, page.stored_bytes) for page in extents.pages]
        for page, stored in zip(extents.pages, _in_order(places, read), strict=True):
            decode_page(page, stored)
    elif item.kind == "wall":
        wall = decode_wall_tail(tail_data, item.object_bytes, item.tail_digest)
        parts = _in_order([(0, HEADER_BYTES), *((info.offset, info.stored_bytes) for info in wall.pages)], read)
        check_wall_header(next(parts))
        for _ in wall_pages(wall, parts, is_strict=True):
            pass
    else:
        raise Unsupported(f"no attachment of the kind {item.kind!r} is known here")


def _in_order(places: list[tuple[int, int]], read: ReadRange) -> Iterator[memoryview]:
    """The bytes of neighbouring places, some MiB with each request."""
    first = 0
    while first < len(places):
        start, stop, after = places[first][0], places[first][0], first
        while after < len(places) and (after == first or stop - start < _READ_BYTES):
            stop = places[after][0] + places[after][1]
            after += 1
        view = memoryview(read(start, stop))
        if len(view) != stop - start:
            raise Corrupt("an attachment is shorter than its index says")
        yield from (view[offset - start : offset - start + size] for offset, size in places[first:after])
        first = after
