"""The direct snapshot of 180 GB of which one hundredth changed, on the stand-in's clock.

    python -m tests.aws.direct_snapshot --files 1800

A benchmark and no test. The dataset is synthetic: files of 100 MB, all of chunks of one real pack, so that 180 GB are a
small store; the runs that name them are real. The snapshot before stands in the stand-in as if it had been made there,
with a header, slots and every block that it would have. Then a hundredth of the files gets new content, and
`create_direct` makes the next snapshot over the wire: boto3, signed requests, checksums. Its pace is kept on the
stand-in's clock, and refused there where it is too fast.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from synclib.clock import SeededEntropy, ulid_text
from synclib.core.entry import ADDRESS_FIRST, ADDRESS_UNIT, ChunkRef, Codec, Entry, Kind, address_units
from synclib.core.manifest import Head, Manifest, RunRef, encode_head, encode_manifest, manifest_digest
from synclib.core.names import head_key, manifest_key, pack_key
from synclib.core.pack import PackBuilder
from synclib.core.run import PackTable
from synclib.core.runfile import RunBuilder
from synclib.core.snapshot_tags import COMPLETE, SnapshotTags, store_tag
from synclib.core.treehash import STATE_BYTES
from synclib.core.volume_layout import BLOCK_BYTES, Header, decode_header, layout_for
from synclib.core.volume_plan import size_gib
from synclib.engine.host import Host, no_progress
from synclib.engine.snapshot_direct import Created, create_direct
from synclib.engine.volume_content import header_block, plan_for, seq_files
from synclib.lazy.dataset import STORE_KEY, Dataset
from synclib.store.base import Store
from synclib.store.memory import MemoryStore
from synclib.store.meter import Meter, MeteredStore
from synclib.volume.ebs import EbsDriver
from tests.aws.clients import client
from tests.aws.site import Block
from tests.aws.standin import Standin, running_standin

ROOT = "data/covers"
CHUNK_BYTES, CHUNKS_PER_FILE, TEMPLATES = 1_000_000, 100, 32
TIME_NS = 1_700_000_000_000_000_000


class Synthetic:
    """``file_count`` files at seq 1; at seq 2 every hundredth has new content. The digest is not that of the tree:
    nobody hashes 180 GB."""

    def __init__(self, store: Store, file_count: int, scratch: Path) -> None:
        self._store, self._scratch = store, scratch
        self._ulids = itertools.count(1)
        self._address = ADDRESS_FIRST
        self.chunks: list[tuple[ChunkRef, bytes]] = []
        self._table = PackTable()
        self._make_pack()
        snap = self._run("snap", 1, range(file_count), shift=0)
        end = self._address
        self.fresh_first = end * ADDRESS_UNIT
        diff = self._run("diff1", 2, range(0, file_count, 100), shift=1)
        self.fresh_stop = self._address * ADDRESS_UNIT
        self.first = self._manifest(1, file_count, [snap], end)
        self.second = self._manifest(2, file_count, [snap, diff], self._address)
        store.put(STORE_KEY, b"{}")
        self.show(self.first)

    def show(self, manifest: Manifest) -> None:
        """Let the head be at it."""
        data = encode_manifest(manifest)
        self._store.put(manifest_key(ROOT, manifest.seq, manifest_digest(data)), data)
        self._store.put(head_key(ROOT), encode_head(Head(ROOT, 0, data, ["0"], [])))

    def fresh_byte(self, position: int) -> int:
        """What seq 2 has at a place of the address space from ``fresh_first`` on."""
        at = (position - self.fresh_first) % (address_units(CHUNK_BYTES * CHUNKS_PER_FILE) * ADDRESS_UNIT)
        chunk, inside = divmod(at, CHUNK_BYTES)
        return self.chunks[(chunk + 1) % TEMPLATES][1][inside] if chunk < CHUNKS_PER_FILE else 0

    def _ulid(self) -> bytes:
        return next(self._ulids).to_bytes(16, "big")

    def _make_pack(self) -> None:
        builder = PackBuilder(self._ulid())
        for number in range(TEMPLATES):
            data = blake3(b"chunk %d" % number).digest(CHUNK_BYTES)
            self.chunks.append((builder.add(blake3(data).digest(), data, data, Codec.RAW), data))
        packed, info = builder.finish()
        self._store.put(pack_key(ROOT, ulid_text(info.ulid)), packed)
        self._table.add(info)

    def _run(self, level: str, seq: int, numbers: range, shift: int) -> RunRef:
        builder = RunBuilder(level, seq, seq, self._table)
        size = CHUNK_BYTES * CHUNKS_PER_FILE
        refs = tuple(self.chunks[(number + shift) % TEMPLATES][0] for number in range(CHUNKS_PER_FILE))
        for number in numbers:
            builder.add(
                Entry(b"", b"%05d" % number, Kind.FILE, 0o644, TIME_NS + seq, size, refs, address=self._address)
            )
            self._address += address_units(size)
        parts = builder.finish()
        ref = parts.ref(self._ulid(), TIME_NS)
        path = self._scratch / "run"
        with path.open("wb") as file:
            file.writelines(parts.read())
        parts.close()
        self._store.put(ref.key(ROOT), path)
        path.unlink()
        return ref

    def _manifest(self, seq: int, files: int, runs: list[RunRef], address_end: int) -> Manifest:
        size = files * CHUNK_BYTES * CHUNKS_PER_FILE
        return Manifest(seq, bytes(STATE_BYTES), files, files, size, runs, [], TIME_NS, "n1", address_end=address_end)


@dataclass(frozen=True)
class Measured:
    """``clock_s``: on the stand-in's clock; ``wall_s``: on ours; ``puts_s``: on the stand-in's, until all was put."""

    done: Created
    parent_blocks: int
    clock_s: float
    puts_s: float
    wall_s: float
    requests: dict[str, int]
    store_requests: dict[str, int]
    store_bytes: int
    throttled: int
    instances: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1800, help="of 100 MB each")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="boxlink-direct-") as name, running_standin(Path(name)) as standin:
        found = measure(Path(name), standin, arguments.files)
    done = found.done
    print(f"dataset                    {arguments.files * CHUNK_BYTES * CHUNKS_PER_FILE / 1e9:.0f} GB")
    print(f"blocks before              {found.parent_blocks:,}")
    print(f"blocks that changed        {done.blocks:,}, {done.zero_blocks:,} of them to zeros")
    print(f"puts                       {found.requests['PutSnapshotBlock']:,}, {found.throttled} refused as too fast")
    print(
        f"on the stand-in's clock    {found.puts_s:.1f} s until all was put, {found.clock_s:.1f} s until it is complete"
    )
    print(
        f"on this machine's clock    {found.wall_s:.1f} s, most of it the stand-in's and boto3's own work in one Python"
    )
    print(f"read from the store        {found.store_bytes / 1e9:.2f} GB, {found.store_requests}")
    print(f"instances and volumes      {found.instances}")


def measure(place: Path, standin: Standin, file_count: int) -> Measured:
    meter = Meter()
    store = MeteredStore(MemoryStore(), meter)
    made = Synthetic(store, file_count, place)
    clock = standin.clock
    driver = EbsDriver(client(standin, "ec2"), client(standin, "ebs"), clock, SeededEntropy(1))
    host = Host("publisher", clock, SeededEntropy(2), place / "state", place / "cache")
    dataset = Dataset(store, ROOT)
    parent_blocks = _stand_before(dataset, host, driver, standin, made.first)
    made.show(made.second)
    before, read = dict(meter.requests), meter.bytes_down
    standin.requests.clear()
    started, wall = clock.monotonic(), time.monotonic()
    done = create_direct(dataset, host, driver, no_progress)
    clock_s, wall_s = clock.monotonic() - started, time.monotonic() - wall
    requests = dict(standin.requests)
    assert (done.is_new, done.parent_seq, done.why_full) == (True, 1, "")
    assert done.put_blocks == done.blocks, "nothing but what changed was put"
    with standin.locked():
        record = standin.snapshots.records[done.snapshot_id]
        puts_s = record.put_at - started
        _check(made, standin, record.written, done)
    return Measured(
        done,
        parent_blocks,
        clock_s,
        puts_s,
        wall_s,
        requests,
        {verb: count - before.get(verb, 0) for verb, count in meter.requests.items() if count != before.get(verb, 0)},
        meter.bytes_down - read,
        requests["PutSnapshotBlock"] - done.put_blocks,
        sum(resource.kind != "snapshot" for resource in standin.resources()),
    )


def _stand_before(dataset: Dataset, host: Host, driver: EbsDriver, standin: Standin, first: Manifest) -> int:
    """A complete snapshot of the first seq. Its blocks are all there; what the blob's hold is not asked for, so one
    block stands for all. How many it has."""
    with seq_files(dataset, host, first) as files:
        record = files.record(1)
        empty = Header(layout_for(record.image_bytes, record.map_bytes), (None, None))
        plan, header = plan_for(dataset, host, files, empty, None)
        tags = SnapshotTags(store_tag(dataset.store.url), dataset.name, 1, first.digest, "before")
        gib = size_gib(header.layout, first.address_end)
        blocks = driver.blocks()
        begun = blocks.start(size_gib=gib, parent_id="", token="before", tags=tags.as_dict())
        with standin.locked():
            held = standin.snapshots.records[begun.id]
            some = standin.site.blocks.add(bytes([1]) * BLOCK_BYTES)
            held.written.update((plan.blob_first + index, some) for index in plan.blob)
            for index in plan.slot:
                held.written[index] = standin.site.blocks.add(files.slot_block(plan, index))
            held.written[0] = standin.site.blocks.add(header_block(header))
            count = len(held.written)
            digests = b"".join(block.digest for _, block in sorted(held.written.items()))
        blocks.complete(begun.id, changed_count=count, checksum=hashlib.sha256(digests).digest())
        standin.clock.advance(3600)
        driver.tag(begun.id, {COMPLETE: "1"})
        assert count == len(plan)
        return count


def _check(made: Synthetic, standin: Standin, written: Mapping[int, Block], done: Created) -> None:
    """What was put is what seq 2 has there: some bytes of every block that is all new content, and as many zeros as
    were said."""
    header = decode_header(standin.site.blocks.read(written[0]))
    fresh = range(-(-made.fresh_first // BLOCK_BYTES), made.fresh_stop // BLOCK_BYTES)
    blob_first = header.layout.blob // BLOCK_BYTES
    for index in fresh:
        data = standin.site.blocks.read(written[blob_first + index])
        for at in (0, 12_345, BLOCK_BYTES - 1):
            assert data[at] == made.fresh_byte(index * BLOCK_BYTES + at), (index, at)
    assert len(fresh) > 100
    assert sum(not any(standin.site.blocks.read(block)) for block in written.values()) == done.zero_blocks


if __name__ == "__main__":
    main()
