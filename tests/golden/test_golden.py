"""Objects of format version 0, byte for byte. A difference is a change of format: say so in changelog.d/.

The version is 0 until lazy mounts stand; until then these files may be made anew: python -m tests.golden.make
"""

from __future__ import annotations

from pathlib import Path

import pytest

from synclib.core.extent_map import MAGIC, decode_page, decode_tail
from synclib.core.manifest import decode_head, decode_manifest
from synclib.core.pack import parse_header, parse_tail
from synclib.core.stored_image import MAGIC as IMAGE_MAGIC
from synclib.core.stored_image import decode_image_tail, decode_piece
from synclib.core.tail import FOOTER_BYTES, tail_bytes
from synclib.core.trace import decode_trace
from synclib.core.volume_layout import decode_header
from tests.samples import all_samples, sample_manifest, sample_map, sample_pack, sample_trace, sample_volume_header

HERE = Path(__file__).parent


@pytest.mark.parametrize("kind", sorted(all_samples()))
def test_writers_still_write_the_same_bytes(kind: str) -> None:
    assert all_samples()[kind] == (HERE / f"v0.{kind}").read_bytes()


def test_golden_objects_still_read() -> None:
    assert decode_manifest((HERE / "v0.manifest").read_bytes()) == sample_manifest()[1]
    head, manifest = decode_head((HERE / "v0.head").read_bytes(), "data/covers")
    assert (head.epoch, manifest.seq) == (1, 2)
    found = (HERE / "v0.map").read_bytes()
    tail = decode_tail(found[-tail_bytes(MAGIC, "map", found[-FOOTER_BYTES:]) :], len(found))
    (info,) = tail.pages
    page = decode_page(info, found[info.offset : info.offset + info.stored_bytes])
    assert [page.extent(index) for index in range(len(page))] == sample_map()[1]
    stored = (HERE / "v0.stored-image").read_bytes()
    image = decode_image_tail(stored[-tail_bytes(IMAGE_MAGIC, "image", stored[-FOOTER_BYTES:]) :], len(stored))
    pieces = [stored[piece.offset : piece.offset + piece.stored_bytes] for piece in image.pieces]
    plain = b"".join(decode_piece(image, index, piece) for index, piece in enumerate(pieces))
    assert plain == (HERE / "v0.image").read_bytes()
    assert decode_header((HERE / "v0.volume-header").read_bytes()) == sample_volume_header()[1]
    assert decode_trace((HERE / "v0.trace").read_bytes()) == sample_trace()[1]
    data = (HERE / "v0.pack").read_bytes()
    _, info, entries = sample_pack()
    assert next(iter(parse_tail(parse_header(data), data, len(data), info.slots_digest))) == entries[4].chunks[0]
