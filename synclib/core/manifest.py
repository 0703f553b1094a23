"""Manifest (the live runs of one seq) and head (the one mutable object). Normative table: docs/format/manifest.md."""

from __future__ import annotations

import msgspec
from blake3 import blake3

from synclib.clock import ulid_text
from synclib.core.entry import ADDRESS_FIRST, ADDRESS_MAX, HASH_BYTES, ULID_BYTES
from synclib.core.frame import DECODE_ERRORS, pack_frame, unpack_frame
from synclib.core.names import LEVELS, attachment_key, run_key
from synclib.core.tail import TAIL_STORED_MAX
from synclib.core.treehash import STATE_BYTES, TreeHash
from synclib.errors import Corrupt

MANIFEST_MAGIC = b"BXLM"
HEAD_MAGIC = b"BXLH"
MANIFEST_BYTES_MAX = 1 << 20
HEAD_BYTES_MAX = 4 << 20
RUNS_MAX = 4096
ATTACHMENTS_MAX = 64
# How many commits a head remembers, so that a publisher whose answer was lost recognises its own.
RECENT_COMMITS = 64
# How many objects a head condemns at most: 256 KB of it.
CONDEMNED_MAX = 1 << 14
# How many former manifests a head holds at most, and how many bytes of them. From so many, or so many bytes, on whoever
# is about to add one makes objects of them first.
FORMER_MAX = 64
FORMER_BYTES_MAX = 1 << 20
_FORMER_FULL = 8
_FORMER_FULL_BYTES = 64 << 10


class RunRef(msgspec.Struct, array_like=True, frozen=True):
    """A live run: where it is and what it must be."""

    level: str
    seq_first: int
    seq_last: int
    ulid: bytes
    object_bytes: int
    tail_bytes: int  # the last bytes of the object that open it
    tail_digest: bytes  # BLAKE3-256 of those bytes
    entry_count: int
    tombstone_count: int
    created_at_ns: int

    def key(self, root: str) -> str:
        return run_key(root, self.level, self.seq_first, self.seq_last, ulid_text(self.ulid))

    @property
    def file_name(self) -> str:
        """The last component of its key: unlike any other run's, so copies are kept under it."""
        return self.key("").rpartition("/")[2]


class Attachment(msgspec.Struct, array_like=True, frozen=True):
    """A further immutable object, made from a run of the chain: it stands for the seqs up to the run's last one. It is
    named for as long as that run is."""

    kind: str  # of names.ATTACHMENTS; what a reader does not know it passes over
    ulid: bytes
    object_bytes: int
    tail_bytes: int  # the last bytes of the object that open it
    tail_digest: bytes  # BLAKE3-256 of those bytes
    run: bytes  # ULID of the run

    def key(self, root: str) -> str:
        return attachment_key(root, self.kind, ulid_text(self.ulid))


class Manifest(msgspec.Struct, array_like=True, frozen=True):
    """What one seq consists of. ``runs`` is the chain: contiguous, oldest first."""

    seq: int
    tree_state: bytes
    entry_count: int  # files, directories and symlinks
    file_count: int
    plain_bytes: int  # sum of the files' sizes
    runs: list[RunRef]
    attachments: list[Attachment]
    published_at_ns: int
    publisher: str  # name of the node
    parent: bytes = b""  # BLAKE3-256 of the manifest before it; empty for the first
    # The dataset's address space is given up to here, in units of 4 KiB; it never falls (docs/format/address.md).
    address_end: int = ADDRESS_FIRST

    @property
    def digest(self) -> str:
        """The digest of the tree (I4), as shown to people."""
        return TreeHash(self.tree_state, self.entry_count).hexdigest()


EMPTY = Manifest(0, bytes(STATE_BYTES), 0, 0, 0, [], [], 0, "")


class Head(msgspec.Struct, array_like=True, frozen=True):
    """The commit point of a dataset: it holds the newest manifest whole."""

    root: str  # the key prefix it belongs to: a head copied elsewhere is refused
    epoch: int
    manifest: bytes  # an encoded manifest
    commits: list[str]  # the newest last: ULIDs of those who wrote this head
    condemned: list[bytes]  # what a collector will sweep: ULIDs of packs and runs, ids of manifests
    condemned_at_seq: int = 0
    former: list[bytes] = []  # encoded manifests that were the head's, and need not be objects yet: the oldest first

    @property
    def is_full(self) -> bool:
        """Whether it is time to make objects of the former manifests."""
        return len(self.former) >= _FORMER_FULL or sum(map(len, self.former)) >= _FORMER_FULL_BYTES


_manifest_decoder = msgspec.msgpack.Decoder(Manifest)
_head_decoder = msgspec.msgpack.Decoder(Head)


def encode_manifest(manifest: Manifest) -> bytes:
    return pack_frame(MANIFEST_MAGIC, msgspec.msgpack.encode(manifest))


def manifest_digest(encoded: bytes) -> str:
    """64 hex digits that name a manifest object."""
    return blake3(encoded).hexdigest()


def manifest_id(digest: str) -> bytes:
    """16 bytes that name a manifest beside the ULIDs of runs and packs."""
    return bytes.fromhex(digest)[:ULID_BYTES]


def decode_manifest(data: bytes, digest: str | None = None) -> Manifest:
    """A checked manifest; ``digest`` is what its key or its parent says of its bytes."""
    if digest is not None and manifest_digest(data) != digest:
        raise Corrupt("a manifest does not have the digest that names it")
    try:
        manifest = _manifest_decoder.decode(unpack_frame(MANIFEST_MAGIC, data))
    except DECODE_ERRORS as error:
        raise Corrupt(f"a manifest does not decode: {error}") from error
    _check_attachments(manifest)
    return _check_manifest(manifest)


def _check_attachments(manifest: Manifest) -> None:
    runs = {run.ulid for run in manifest.runs}
    for item in manifest.attachments:
        if (
            len(item.ulid) != ULID_BYTES
            or len(item.tail_digest) != HASH_BYTES
            or not 0 < item.tail_bytes <= min(item.object_bytes, TAIL_STORED_MAX)
            or not _is_number(item.object_bytes)
            or item.run not in runs
        ):
            raise Corrupt("an attachment of a manifest is impossible")
    if len(manifest.attachments) > ATTACHMENTS_MAX:
        raise Corrupt("a manifest has too many attachments")


def _check_manifest(manifest: Manifest) -> Manifest:
    seq_next = 1
    for run in manifest.runs:
        if (
            run.level not in LEVELS
            or run.seq_first != seq_next
            or run.seq_last < run.seq_first
            or len(run.ulid) != ULID_BYTES
            or len(run.tail_digest) != HASH_BYTES
            or not 0 < run.tail_bytes <= min(run.object_bytes, TAIL_STORED_MAX)
            or not all(map(_is_number, (run.seq_last, run.object_bytes, run.entry_count, run.tombstone_count)))
            or not _is_number(run.created_at_ns)
        ):
            raise Corrupt("a manifest's chain is not contiguous")
        seq_next = run.seq_last + 1
    if (
        not manifest.runs
        or len(manifest.runs) > RUNS_MAX
        or manifest.seq != seq_next - 1
        or len(manifest.tree_state) != STATE_BYTES
        or not all(map(_is_number, (manifest.entry_count, manifest.file_count, manifest.plain_bytes)))
        or not _is_number(manifest.published_at_ns)
        or len(manifest.parent) not in (0, HASH_BYTES)
        or not ADDRESS_FIRST <= manifest.address_end <= ADDRESS_MAX
    ):
        raise Corrupt("a manifest is impossible")
    return manifest


def _is_number(number: int) -> bool:
    """A count, a length or a time: nothing that overflows where it is added to."""
    return 0 <= number < 1 << 63


def encode_head(head: Head) -> bytes:
    return pack_frame(HEAD_MAGIC, msgspec.msgpack.encode(head))


def decode_head(data: bytes, root: str) -> tuple[Head, Manifest]:
    """A checked head of the dataset at ``root``, and the manifest in it."""
    try:
        head = _head_decoder.decode(unpack_frame(HEAD_MAGIC, data))
    except DECODE_ERRORS as error:
        raise Corrupt(f"the head does not decode: {error}") from error
    if not all(map(_is_number, (head.epoch, head.condemned_at_seq))) or any(
        len(name) != ULID_BYTES for name in head.condemned
    ):
        raise Corrupt("the head is impossible")
    if head.root != root:
        raise Corrupt(f"the head says that it belongs to {head.root!r}")
    manifest = decode_manifest(head.manifest)
    if len(head.former) > FORMER_MAX or any(former.seq > manifest.seq for _, former in former_manifests(head)):
        raise Corrupt("the head holds former manifests that are impossible")
    return head, manifest


def former_manifests(head: Head) -> list[tuple[bytes, Manifest]]:
    """(id, manifest) of each former one that the head holds."""
    return [(manifest_id(manifest_digest(data)), decode_manifest(data)) for data in head.former]
