"""The envelope of the small objects (head, manifest): magic, version, feature bits, payload, checksum.

Normative table: docs/format/frame.md. The checksum tells damage from disagreement; it is no proof of origin.
"""

from __future__ import annotations

import struct

import msgspec
import xxhash

from synclib.errors import Corrupt, Unsupported

VERSION = 0
# What decoding hostile MessagePack or JSON may raise: text that is no UTF-8 is a ValueError of its own.
DECODE_ERRORS = (msgspec.MsgspecError, RecursionError, ValueError, OverflowError)
_HEADER = struct.Struct("<4sHHQI")
_TRAILER = struct.Struct("<Q")
OVERHEAD_BYTES = _HEADER.size + _TRAILER.size


def check_version(magic: bytes, found: bytes, version: int, features: int) -> None:
    """Refuse foreign objects and those that need a newer reader.

    Feature bits 0-31 are incompatible (unknown ones refuse), 32-63 compatible (unknown ones are ignored).
    """
    if found != magic:
        raise Corrupt(f"it begins with {found!r}, not with {magic!r}: this is no boxlink object of that kind")
    if version > VERSION:
        raise Unsupported(f"format version {version} is newer than {VERSION}", hint="upgrade boxlink")
    if features & 0xFFFFFFFF:
        raise Unsupported(
            f"it needs features {features & 0xFFFFFFFF:#x} that this version lacks", hint="upgrade boxlink"
        )


def pack_frame(magic: bytes, payload: bytes) -> bytes:
    body = _HEADER.pack(magic, VERSION, 0, 0, len(payload)) + payload
    return body + _TRAILER.pack(xxhash.xxh3_64_intdigest(body))


def unpack_frame(magic: bytes, data: bytes) -> bytes:
    """The payload of a frame; Corrupt or Unsupported for anything else."""
    if len(data) < OVERHEAD_BYTES:
        raise Corrupt(f"{len(data)} bytes are too few for a {magic.decode()} object")
    found, version, _, features, length = _HEADER.unpack_from(data)
    check_version(magic, found, version, features)
    if length != len(data) - OVERHEAD_BYTES:
        raise Corrupt(f"its payload should have {length} bytes, {len(data) - OVERHEAD_BYTES} are there")
    if _TRAILER.unpack_from(data, len(data) - _TRAILER.size)[0] != xxhash.xxh3_64_intdigest(data[: -_TRAILER.size]):
        raise Corrupt("its checksum does not match: the object is damaged")
    return data[_HEADER.size : -_TRAILER.size]
