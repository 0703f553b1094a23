"""Metadata made once by a publisher, so that no node has to make it: image, map and wall index of a chain's snap.

They are attachments of the manifest for as long as the chain has that snap; diffs after it are laid over them by
whoever uses them. Where there are none, a node makes them from the chain. So this may be left out, and fail, at any
time.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec
from blake3 import blake3

from synclib.core.entry import Entry
from synclib.core.erofs import ImageBuilder
from synclib.core.extent_map import MAGIC as MAP_MAGIC
from synclib.core.extent_map import encode_map
from synclib.core.manifest import Attachment, Head, Manifest, RunRef, encode_manifest
from synclib.core.names import ATTACHMENTS
from synclib.core.stored_image import MAGIC as IMAGE_MAGIC
from synclib.core.stored_image import PIECE_BYTES, encode_image
from synclib.core.tail import FOOTER_BYTES, tail_bytes
from synclib.core.wall_index import MAGIC as WALL_MAGIC
from synclib.core.wall_index import WallIndexBuilder, is_picture
from synclib.disk.faults import disk_errors
from synclib.engine.head_swap import update_head
from synclib.engine.host import Host, Progress
from synclib.engine.lease import Holder, Moved, intent
from synclib.errors import BoxlinkError
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import Dataset, HeadState
from synclib.lazy.extent_rows import ExtentRows
from synclib.lazy.run_cache import RunCache

# Below this a node makes the metadata from the chain as soon as it could fetch it: some 40 ms.
ENTRIES_MIN = 4096
_MAGICS = {"image": IMAGE_MAGIC, "map": MAP_MAGIC, "wall": WALL_MAGIC}


@dataclass
class AttachResult:
    """What was made; nothing where none was due."""

    manifest: Manifest
    attachments: list[Attachment] = field(default_factory=list)
    run: RunRef | None = None  # that it is, or in a dry run would be, made from


def snap_without(manifest: Manifest, entries_min: int = ENTRIES_MIN) -> RunRef | None:
    """The snap of a chain that has no metadata, and is large enough for it."""
    snap = manifest.runs[0]
    kinds = {item.kind for item in manifest.attachments if item.run == snap.ulid}
    return None if snap.entry_count < entries_min or kinds.issuperset(ATTACHMENTS) else snap


def attach(
    dataset: Dataset,
    host: Host,
    progress: Progress,
    *,
    entries_min: int = ENTRIES_MIN,
    is_dry_run: bool = False,
    head: HeadState | None = None,
) -> AttachResult:
    """Make what is due. ``head``: one that was just read or written."""
    head = head or dataset.read_head()
    result = AttachResult(head.manifest, run=snap_without(head.manifest, entries_min))
    if result.run is None or is_dry_run:
        return result
    holder = intent(dataset, host)
    try:
        holder.take(head, head.manifest.seq)
        made = _make(dataset, host, head.manifest, result.run, holder, progress)
        tried: set[str] = set()
        state = update_head(dataset, host, lambda state: _with(state, made), holder.check, tried)
        if state is None:
            # A compaction has replaced the snap meanwhile: the next one is asked for again.
            for item in made if not tried else ():
                with contextlib.suppress(BoxlinkError):
                    dataset.store.delete(item.key(dataset.root))
            return result
        return AttachResult(state.manifest, made, result.run)
    except Moved:
        return result
    finally:
        holder.end()


def _with(state: HeadState, made: list[Attachment]) -> Head | None:
    """The head with the attachments; None when it no longer has the run, or has others by now."""
    manifest = state.manifest
    snap = snap_without(manifest, 0)
    if snap is None or snap.ulid != made[0].run:
        return None
    kept = [item for item in manifest.attachments if item.run != snap.ulid or item.kind not in ATTACHMENTS]
    manifest = msgspec.structs.replace(manifest, attachments=[*kept, *made])
    return msgspec.structs.replace(state.head, manifest=encode_manifest(manifest))


def _make(
    dataset: Dataset, host: Host, manifest: Manifest, run: RunRef, holder: Holder, progress: Progress
) -> list[Attachment]:
    cache = RunCache(host.dataset_cache(dataset.store.url, dataset.root) / "run", dataset.store)
    with cache.in_use(), disk_errors(), tempfile.TemporaryDirectory() as scratch:
        cache.fill(dataset.root, [run])
        chain = Chain.of(cache, dataset.root, [run])
        files = {kind: Path(scratch) / kind for kind in ATTACHMENTS}
        with files["image"].open("wb") as image, files["map"].open("wb") as extents, files["wall"].open("wb") as wall:
            identity = blake3(run.tail_digest).digest(16)
            entries = _pictures_noted(_told(chain.entries(), progress, run.entry_count), wall)
            build_metadata(entries, manifest, identity, image, extents)
        made = [_described(kind, path, holder.mint(), run) for kind, path in files.items()]
        for item in made:
            dataset.store.put(item.key(dataset.root), files[item.kind])
    return made


def build_metadata(
    entries: Iterable[Entry], manifest: Manifest, identity: bytes, image: IO[bytes], extents: IO[bytes]
) -> None:
    """Write both objects."""
    builder = ImageBuilder(manifest.address_end, identity)
    with ExtentRows() as rows, tempfile.TemporaryFile() as plain:
        for at, data in builder.build(rows.noting(entries)):
            plain.seek(at)
            plain.write(data)
        plain.truncate(builder.image_bytes)
        plain.seek(0)
        pieces = iter(lambda: plain.read(PIECE_BYTES), b"")
        image.writelines(encode_image(pieces, builder.inode_count, builder.left.xattrs, builder.wide))
        extents.writelines(encode_map(rows.sorted()))


def _pictures_noted(entries: Iterable[Entry], wall: IO[bytes]) -> Iterable[Entry]:
    """The entries as they come; the index of those that are pictures is written."""
    builder = WallIndexBuilder()
    for entry in entries:
        if is_picture(entry):
            wall.write(builder.add(entry.path))
        yield entry
    wall.write(builder.finish())


def _told(entries: Iterable[Entry], progress: Progress, total: int) -> Iterable[Entry]:
    for number, entry in enumerate(entries, 1):
        yield entry
        if not number % 10_000 or number == total:
            progress("image", number, total)


def _described(kind: str, path: Path, ulid: bytes, run: RunRef) -> Attachment:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(size - FOOTER_BYTES)
        length = tail_bytes(_MAGICS[kind], kind, file.read())
        file.seek(size - length)
        return Attachment(kind, ulid, size, length, blake3(file.read()).digest(), run.ulid)
