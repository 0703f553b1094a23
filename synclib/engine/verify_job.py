"""The part of verifying that runs in worker processes: one pack, its structure or every byte."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from synclib.clock import ulid_text
from synclib.core import names
from synclib.core.entry import ChunkRef
from synclib.core.pack import HEADER_BYTES, PackInfo, decode_chunk, parse_header, parse_tail
from synclib.engine.host import Connect, connect_once
from synclib.errors import Corrupt, Missing
from synclib.store.base import Store
from synclib.store.meter import Meter

_RANGE_BYTES = 16 << 20


@dataclass(frozen=True)
class VerifyJob:
    """A pack as a run describes it: ``pack`` is PackInfo.as_tuple."""

    connect: Connect
    root: str
    pack: tuple[bytes, int, int, bytes]
    is_data: bool


@dataclass
class PackCheck:
    """What was read of a pack, and what is wrong with it; empty when nothing is."""

    ulid: bytes
    read_bytes: int = 0
    damage: str = ""
    meter: Meter = field(default_factory=Meter)


def run_verify_job(job: VerifyJob) -> PackCheck:
    """In a worker process: with this process's own connection to the store."""
    store, meter = connect_once(job.connect)
    check = check_pack(job, store)
    check.meter.add(meter.take())
    return check


def check_pack(job: VerifyJob, store: Store) -> PackCheck:
    info = PackInfo(*job.pack)
    check = PackCheck(info.ulid)
    try:
        _check(store, names.pack_key(job.root, ulid_text(info.ulid)), info, check, is_data=job.is_data)
    except (Corrupt, Missing) as error:
        check.damage = error.message
    return check


def _check(store: Store, key: str, info: PackInfo, check: PackCheck, *, is_data: bool) -> None:
    """Corrupt unless header, length and slot table, and, if asked, each chunk are right."""
    tail = store.get_suffix(key, info.tail_bytes)
    check.read_bytes += len(tail.data)
    if tail.size != info.object_bytes:
        raise Corrupt(f"it has {tail.size} bytes, a run says {info.object_bytes}")
    # Twice, and not kept: a pack may have some hundred thousand slots.
    count = sum(1 for _ in parse_tail(info.ulid, tail.data, tail.size, info.slots_digest))
    if count != info.slot_count:
        raise Corrupt(f"it has {count} slots, a run says {info.slot_count}")
    (header,) = store.get_ranges(key, [(0, HEADER_BYTES)])
    if parse_header(header) != info.ulid:
        raise Corrupt("it is another pack under this name")
    if is_data:
        for group in _groups(parse_tail(info.ulid, tail.data, tail.size, info.slots_digest)):
            start, stop = group[0].offset, group[-1].offset + group[-1].stored_bytes
            data = memoryview(store.get_ranges(key, [(start, stop)])[0])
            check.read_bytes += len(data)
            for chunk in group:
                decode_chunk(chunk, data[chunk.offset - start : chunk.offset - start + chunk.stored_bytes])


def _groups(chunks: Iterable[ChunkRef]) -> Iterator[list[ChunkRef]]:
    """Neighbouring chunks of at most one range's bytes."""
    group: list[ChunkRef] = []
    size = 0
    for chunk in chunks:
        if group and size + chunk.stored_bytes > _RANGE_BYTES:
            yield group
            group, size = [], 0
        group.append(chunk)
        size += chunk.stored_bytes
    if group:
        yield group
