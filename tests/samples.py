"""Small, fixed objects of every kind: the sources of the golden files."""

from __future__ import annotations

import msgspec
from blake3 import blake3

from synclib.core.entry import Codec, Entry, Kind
from synclib.core.erofs import ImageBuilder
from synclib.core.extent_map import Extent, encode_map
from synclib.core.manifest import Attachment, Head, Manifest, RunRef, encode_head, encode_manifest, manifest_digest
from synclib.core.pack import PackBuilder, PackInfo
from synclib.core.run import PackTable
from synclib.core.runfile import RunBuilder
from synclib.core.stored_image import PIECE_BYTES, encode_image
from synclib.core.trace import Touch, Trace, encode_trace
from synclib.core.treehash import TreeHash
from synclib.core.volume_layout import Header, Layout, SlotRecord, encode_header
from synclib.core.wall_index import WallIndexBuilder

ULID = bytes.fromhex("0199b0a0c0de00112233445566778899")
TIME_NS = 1_790_000_000_123_456_789


def sample_pack() -> tuple[bytes, PackInfo, list[Entry]]:
    """A pack with two chunks, and the entries that use them."""
    builder = PackBuilder(ULID)
    text, noise = b"boxlink " * 20, bytes(range(256))
    from synclib.core import zstd

    first = builder.add(blake3(text).digest(), text, zstd.compress(text), Codec.ZSTD)
    second = builder.add(blake3(noise).digest(), noise, noise, Codec.RAW)
    data, info = builder.finish()
    entries = [
        Entry(b"", b"a", Kind.DIRECTORY, 0o755),
        Entry(b"", b"empty", Kind.FILE, 0o644, -1),
        Entry(b"", b"link", Kind.SYMLINK, 0o777, TIME_NS, target=b"a/two"),
        Entry(b"a", b"gone", Kind.TOMBSTONE),
        Entry(b"a", b"one\xff", Kind.FILE, 0o600, TIME_NS, first.plain_bytes, (first,), address=2),
        Entry(b"a", b"two", Kind.FILE, 0o644, TIME_NS, 416, (second, first), is_racy=True, address=1),
    ]
    return bytes(data), info, entries


def sample_run() -> tuple[bytes, RunRef, list[Entry]]:
    _, info, entries = sample_pack()
    table = PackTable()
    table.add(info)
    builder = RunBuilder("diff1", 2, 2, table)
    for entry in entries:
        builder.add(entry)
    parts = builder.finish()
    return b"".join(parts.read()), parts.ref(ULID, TIME_NS), entries


WALL_PATHS = (b"a.jpg", b"a/one\xff.JPEG", b"b/\xc3\xa9.webp")


def sample_manifest() -> tuple[bytes, Manifest]:
    _, ref, entries = sample_run()
    tree = TreeHash()
    for entry in entries:
        if entry.kind != Kind.TOMBSTONE:
            tree.add(entry)
    snap = msgspec.structs.replace(ref, level="snap", seq_first=1, seq_last=1)
    attachments = [Attachment("image", bytes(range(16)), 1000, 100, bytes(32), ref.ulid)]
    manifest = Manifest(
        2, tree.state_bytes(), tree.count, 3, 576, [snap, ref], attachments, TIME_NS, "node-1", address_end=3
    )
    return encode_manifest(manifest), manifest


def sample_head() -> tuple[bytes, Head]:
    encoded, _ = sample_manifest()
    head = Head("data/covers", 1, encoded, ["01J0000000000000000000000A"], [])
    return encode_head(head), head


def sample_map() -> tuple[bytes, list[Extent]]:
    """A map of the sample's chunks."""
    chunks = sample_pack()[2][-1].chunks
    extents = [Extent(4096 * (index + 1), chunk) for index, chunk in enumerate(chunks)]
    return b"".join(encode_map(extents)), extents


def sample_stored_image() -> bytes:
    """The image as an object."""
    image = sample_image()
    pieces = [image[at : at + PIECE_BYTES] for at in range(0, len(image), PIECE_BYTES)]
    return b"".join(encode_image(pieces, 5, 1, [(8192, 12288)]))


def sample_wall() -> bytes:
    """The index of a wall of three pictures."""
    builder = WallIndexBuilder()
    return b"".join([*(builder.add(path) for path in WALL_PATHS), builder.finish()])


def sample_image() -> bytes:
    """An EROFS image of the sample's tree."""
    entries = [entry for entry in sample_pack()[2] if entry.kind != Kind.TOMBSTONE]
    builder = ImageBuilder(3, ULID)
    writes = list(builder.build(entries))
    image = bytearray(builder.image_bytes)
    for at, data in writes:
        image[at : at + len(data)] = data
    return bytes(image)


def sample_trace() -> tuple[bytes, Trace]:
    """A start-up that read two files of the sample's tree, one of them twice."""
    touches = [Touch(b"a/two", 0, 256, 3), Touch(b"a/one\xff", 0, 160, 40), Touch(b"a/two", 256, 160, 1200)]
    trace = Trace(2, "node-1", TIME_NS, touches)
    return encode_trace(trace), trace


def sample_volume_header() -> tuple[bytes, Header]:
    """The header of a volume that holds the sample's seq, and one before it."""
    image, extents = sample_image(), sample_map()[0]
    hashes = blake3(image).digest(), blake3(extents).digest()
    manifest = sample_manifest()[1]
    newest = SlotRecord(2, "data/covers", 2, manifest.digest, 3, len(image), hashes[0], len(extents), hashes[1])
    former = msgspec.structs.replace(newest, generation=1, seq=1, digest="ab" * 32)
    header = Header(Layout(64 << 20), (former, newest))
    return encode_header(header), header


def all_samples() -> dict[str, bytes]:
    return {
        "pack": sample_pack()[0],
        "run": sample_run()[0],
        "manifest": sample_manifest()[0],
        "head": sample_head()[0],
        "map": sample_map()[0],
        "image": sample_image(),
        "stored-image": sample_stored_image(),
        "wall": sample_wall(),
        "trace": sample_trace()[0],
        "volume-header": sample_volume_header()[0],
    }


__all__ = ["all_samples", "manifest_digest"]
