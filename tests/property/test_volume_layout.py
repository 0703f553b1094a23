"""The header of a volume: what is written is read back, the newest whole record holds, hostile bytes are refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synclib.core.entry import ADDRESS_MAX
from synclib.core.volume_layout import (
    BLOCK_BYTES,
    HEADER_BYTES,
    SECTOR_BYTES,
    SLOT_BYTES_MIN,
    Header,
    Layout,
    SlotRecord,
    decode_header,
    encode_header,
    encode_record,
    layout_for,
    record_offset,
)
from synclib.errors import Corrupt, Unsupported
from synclib.volume import base
from tests.samples import sample_volume_header

MIB = 1 << 20
hashes = st.binary(min_size=32, max_size=32)
roots = st.sampled_from(["data/covers", "data/a", "release/web", "data/" + "x" * 128])
records = st.builds(
    SlotRecord,
    st.integers(1, (1 << 63) - 1),
    roots,
    st.integers(1, (1 << 63) - 1),
    hashes.map(bytes.hex),
    st.integers(1, ADDRESS_MAX),
    st.integers(1, 16 * MIB),
    hashes,
    st.integers(1, 16 * MIB),
    hashes,
)
layouts = st.sampled_from([32 * MIB, SLOT_BYTES_MIN, 1 << 30]).map(Layout)
headers = st.builds(Header, layouts, st.tuples(st.none() | records, st.none() | records))


def test_a_block_is_what_the_drivers_call_one() -> None:
    assert BLOCK_BYTES == base.BLOCK_BYTES


@given(headers, st.binary(max_size=9))
def test_round_trip(header: Header, further: bytes) -> None:
    data = encode_header(header)
    assert len(data) == HEADER_BYTES
    assert decode_header(data + further) == header


@given(headers, records)
def test_the_next_seq_takes_the_slot_that_is_not_the_newest(header: Header, record: SlotRecord) -> None:
    newest = header.record
    record = msgspec.structs.replace(record, generation=header.next_generation())
    after = header.with_record(record)
    assert after.record == record
    assert newest is None or newest in after.records


@given(headers, st.data())
def test_a_torn_record_leaves_the_other_one(header: Header, data: st.DataObject) -> None:
    encoded = bytearray(encode_header(header))
    slot = data.draw(st.integers(0, 1))
    at = record_offset(slot) + data.draw(st.integers(0, SECTOR_BYTES - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    try:
        found = decode_header(encoded)
    except Unsupported:
        return  # it says that it is newer
    assert found.records[slot] is None
    assert found.records[1 - slot] == header.records[1 - slot]


@given(headers, records, st.integers(1, SECTOR_BYTES - 1))
def test_a_write_that_stopped_half_way_is_no_record(header: Header, record: SlotRecord, written: int) -> None:
    encoded = bytearray(encode_header(header))
    at, new = record_offset(header.next_slot()), encode_record(record)
    encoded[at : at + written] = new[:written]
    found = decode_header(encoded)
    before = header.records[header.next_slot()]
    assert found.records[header.next_slot()] in (None, before, record)
    assert found.record in (header.record, before, record) or header.record is None


@given(headers, st.integers(0, SECTOR_BYTES - 1), st.integers(1, 255))
def test_a_torn_header_is_refused(header: Header, at: int, flip: int) -> None:
    encoded = bytearray(encode_header(header))
    encoded[at] ^= flip
    with pytest.raises((Corrupt, Unsupported)):
        decode_header(encoded)


@given(st.binary(max_size=HEADER_BYTES + 10))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises((Corrupt, Unsupported)):
        decode_header(data)


IMPOSSIBLE = {
    "root outside": {"root": "data/../x"},
    "root of nothing": {"root": "proxy/x"},
    "no generation": {"generation": 0},
    "no seq": {"seq": 0},
    "image beyond the slot": {"image_bytes": 1 << 40},
    "map beyond the slot": {"map_bytes": 64 * MIB},
    "no map": {"map_bytes": 0},
    "address beyond all": {"address_end": ADDRESS_MAX + 1},
    "no address": {"address_end": 0},
}


@pytest.mark.parametrize("name", sorted(IMPOSSIBLE))
def test_a_record_with_a_right_checksum_may_still_be_impossible(name: str) -> None:
    header = sample_volume_header()[1]
    former, newest = header.records
    assert newest is not None
    hostile = Header(header.layout, (former, msgspec.structs.replace(newest, **IMPOSSIBLE[name])))
    assert decode_header(encode_header(hostile)).record == former


@pytest.mark.parametrize("slot_bytes", [0, 1, BLOCK_BYTES + 4096, 1 << 40])
def test_slots_that_cannot_be_are_refused(slot_bytes: int) -> None:
    with pytest.raises(Corrupt):
        decode_header(encode_header(Header(Layout(slot_bytes), (None, None))))


@given(st.integers(1, 1 << 30), st.integers(1, 1 << 30))
def test_slots_have_room_to_grow(image_bytes: int, map_bytes: int) -> None:
    layout = layout_for(image_bytes, map_bytes)
    assert layout.slot_bytes >= min(4 * (image_bytes + map_bytes), 1 << 36)
    assert layout.slot_bytes % BLOCK_BYTES == 0
