"""What a volume of a seq must be, read back from its blocks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

from blake3 import blake3

from synclib.core.snapshot_tags import COMPLETE
from synclib.core.volume_layout import BLOCK_BYTES, Header, decode_header
from synclib.engine.snapshots import find
from synclib.lazy.chain import Chain
from synclib.lazy.entry_extents import extents_of
from synclib.lazy.maps import file_map
from synclib.lazy.run_reader import StoreRuns
from synclib.volume.base import SnapshotState, VolumeDriver
from tests.kit import Kit

Read = Callable[[int, int], bytes]  # (offset in the volume, length)


def reader(driver: VolumeDriver, snapshot_id: str) -> Read:
    blocks = driver.blocks()

    def read(offset: int, length: int) -> bytes:
        first, last = offset // BLOCK_BYTES, (offset + max(length, 1) - 1) // BLOCK_BYTES
        data = b"".join(blocks.get(snapshot_id, index) for index in range(first, last + 1))
        at = offset - first * BLOCK_BYTES
        return data[at : at + length]

    return read


def check_volume(kit: Kit, read: Read, seq: int) -> Header:
    """The newest record is of the seq, the slot is whole, and every extent of the seq stands in the blob."""
    manifest = kit.dataset.manifest_at(seq)
    header = decode_header(read(0, BLOCK_BYTES))
    record = header.record
    assert record is not None
    assert header.newest is not None
    assert (record.seq, record.digest, record.root) == (seq, manifest.digest, kit.dataset.root)
    assert record.address_end == manifest.address_end
    slot = header.layout.slot(header.newest)
    image = read(slot, record.image_bytes)
    extents = read(slot + record.map_offset, record.map_bytes)
    assert blake3(image).digest() == record.image_hash
    assert blake3(extents).digest() == record.map_hash
    chain = Chain.of(StoreRuns(kit.store), kit.dataset.root, manifest.runs)
    wanted = {extent.position: extent for entry in chain.entries() for extent in extents_of(entry)}
    with tempfile.TemporaryFile() as file:
        file.write(extents)
        file.flush()
        held = [extent for page in file_map(file).walk() for extent in page]
    assert {extent.position: extent for extent in held} == wanted
    for extent in held:
        plain = read(header.layout.blob + extent.position, extent.chunk.plain_bytes)
        assert blake3(plain).digest() == extent.chunk.hash, extent
    return header


def complete_ones(kit: Kit, driver: VolumeDriver) -> list[str]:
    """Their ids, the newest first; each must be what its tags say."""
    found = [
        known for known in find(driver, kit.store.url, "covers").snapshots if known.snapshot.tags.get(COMPLETE) == "1"
    ]
    for known in found:
        assert known.snapshot.state is SnapshotState.COMPLETED
        check_volume(kit, reader(driver, known.snapshot.id), known.tags.seq)
    return [known.snapshot.id for known in found]
