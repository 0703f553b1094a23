"""Traces: what a node read first, in order, from its start until it was ready. Replayed, they spare the next start most
of its waiting.

Normative table: docs/format/trace.md. What is touched is named by path and place in the file, so that a trace serves
later seqs too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import msgspec

from synclib.core import zstd
from synclib.core.frame import pack_frame, unpack_frame
from synclib.core.names import PATH_BYTES_MAX, check_directory
from synclib.errors import Corrupt

MAGIC = b"BXLF"
TOUCHES_MAX = 100_000
# How many of a dataset's traces are kept, and joined.
TRACES_KEPT = 3
# A start-up is over when nothing new was touched for so long, or after so long.
QUIET_S, START_UP_S_MAX = 30.0, 600.0
_PLAIN_MAX = 16 << 20
TRACE_BYTES_MAX = _PLAIN_MAX + (_PLAIN_MAX >> 7) + (1 << 10)
# seq, recorded at; touches, paths, length of the node's name, of all paths
_HEAD = struct.Struct("<QQIIII")
_NODE_BYTES_MAX = 256
_TOUCH_BYTES = 4 + 8 + 4 + 4
_SIZE_MAX = 1 << 63


class Touch(msgspec.Struct, frozen=True, gc=False):
    """Bytes of a file that were needed, ``at_ms`` after the start."""

    path: bytes
    offset: int
    length: int
    at_ms: int


class Trace(msgspec.Struct, frozen=True):
    """One start-up of one node at one seq; touches in their order."""

    seq: int
    node: str
    recorded_at_ns: int
    touches: Sequence[Touch]


def encode_trace(trace: Trace) -> bytes:
    """A trace's object; touches that would make it too large are left out, the last first."""
    touches = _fitting(trace.touches)
    numbers: dict[bytes, int] = {}
    files = [numbers.setdefault(touch.path, len(numbers)) for touch in touches]
    count, node, paths = len(touches), trace.node.encode(), b"".join(numbers)
    plain = b"".join(
        [
            _HEAD.pack(trace.seq, trace.recorded_at_ns, count, len(numbers), len(node), len(paths)),
            node,
            struct.pack(f"<{count}I", *files),
            struct.pack(f"<{count}Q", *[touch.offset for touch in touches]),
            struct.pack(f"<{count}I", *[touch.length for touch in touches]),
            struct.pack(f"<{count}I", *[touch.at_ms for touch in touches]),
            struct.pack(f"<{len(numbers)}H", *map(len, numbers)),
            paths,
        ]
    )
    return pack_frame(MAGIC, zstd.compress(plain))


def _fitting(touches: Sequence[Touch]) -> Sequence[Touch]:
    size = _HEAD.size + _NODE_BYTES_MAX
    seen: set[bytes] = set()
    for index, touch in enumerate(touches[:TOUCHES_MAX]):
        size += _TOUCH_BYTES
        if touch.path not in seen:
            seen.add(touch.path)
            size += 2 + len(touch.path)
        if size > _PLAIN_MAX:
            return touches[:index]
    return touches[:TOUCHES_MAX]


def decode_trace(data: bytes) -> Trace:
    """A trace, checked: anything but what :func:`encode_trace` writes is Corrupt."""
    stored = unpack_frame(MAGIC, data)
    plain_bytes = zstd.content_size(stored)
    if plain_bytes > _PLAIN_MAX:
        raise Corrupt(f"a trace of {plain_bytes} bytes is too large")
    plain = zstd.decompress(stored, plain_bytes)
    if len(plain) < _HEAD.size:
        raise Corrupt("a trace is too short")
    seq, at_ns, count, path_count, node_bytes, path_bytes = _HEAD.unpack_from(plain)
    size = _HEAD.size + node_bytes + count * _TOUCH_BYTES + path_count * 2 + path_bytes
    if count > TOUCHES_MAX or path_count > count or node_bytes > _NODE_BYTES_MAX or size != len(plain):
        raise Corrupt("a trace has not the length that its touches need")
    at = _HEAD.size + node_bytes
    columns: list[tuple[int, ...]] = []
    for letter, width in (("I", 4), ("Q", 8), ("I", 4), ("I", 4)):
        columns.append(struct.unpack_from(f"<{count}{letter}", plain, at))
        at += count * width
    lengths = struct.unpack_from(f"<{path_count}H", plain, at)
    paths = _paths(plain[at + 2 * path_count :], lengths)
    if any(file >= path_count for file in columns[0]):
        raise Corrupt("a trace names a path that it has not")
    if any(offset + length >= _SIZE_MAX for offset, length in zip(columns[1], columns[2], strict=True)):
        raise Corrupt("a trace names a place that no file has")
    try:
        node = plain[_HEAD.size : _HEAD.size + node_bytes].decode()
    except UnicodeDecodeError as error:
        raise Corrupt("a trace's node has no name") from error
    touches = [Touch(paths[file], *rest) for file, *rest in zip(*columns, strict=True)]
    return Trace(seq, node, at_ns, touches)


def _paths(data: bytes, lengths: Sequence[int]) -> list[bytes]:
    if sum(lengths) != len(data):
        raise Corrupt("the paths of a trace have not their lengths")
    found: list[bytes] = []
    at = 0
    for length in lengths:
        if not 0 < length <= PATH_BYTES_MAX:
            raise Corrupt("a path of a trace is too long, or empty")
        found.append(check_directory(data[at : at + length]))
        at += length
    return found


def union(traces: Iterable[Trace]) -> list[Touch]:
    """What any of them touched, each place once, in the order of when it was first needed in any."""
    found: dict[tuple[bytes, int], Touch] = {}
    for trace in traces:
        for touch in trace.touches:
            known = found.get((touch.path, touch.offset))
            if known is None:
                found[touch.path, touch.offset] = touch
            elif touch.at_ms < known.at_ms or touch.length > known.length:
                found[touch.path, touch.offset] = Touch(
                    touch.path, touch.offset, max(touch.length, known.length), min(touch.at_ms, known.at_ms)
                )
    return sorted(found.values(), key=lambda touch: (touch.at_ms, touch.path, touch.offset))


def is_over(now: float, first_at: float, last_at: float) -> bool:
    """Whether a start-up is over, from when something was touched first and when something new was last (seconds)."""
    return now - last_at >= QUIET_S or now - first_at >= START_UP_S_MAX
