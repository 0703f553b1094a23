"""The image and the map of a seq, made ready here: what a lazy mount needs before the first read.

Where the manifest names those of the chain's snap, they are fetched, and the diffs since are laid over them: a small
image whole, of a large one what is needed. Else both are made from the chain. What is here are files of a cache: named
by the seq's digest, written whole, and checked before they are used again.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec
import xxhash
from blake3 import blake3

from synclib.clock import ulid_text
from synclib.core.erofs import BLOCK_BYTES, ImageBuilder
from synclib.core.extent_map import encode_map
from synclib.core.frame import DECODE_ERRORS
from synclib.core.image_patch import ImagePatch, NotPatchableError
from synclib.core.manifest import Attachment, Manifest, RunRef
from synclib.disk.atomic import TEMPORARY, write_atomic
from synclib.disk.faults import disk_errors
from synclib.errors import Corrupt, Missing, Unsupported
from synclib.lazy.base_image import BaseImage
from synclib.lazy.chain import Chain
from synclib.lazy.extent_rows import ExtentRows
from synclib.lazy.maps import read_map_tail
from synclib.lazy.mirror import Mirror
from synclib.lazy.run_cache import RunCache
from synclib.lazy.served_image import ServedImage, write_patch
from synclib.store.base import Store

# Up to this an image is brought here whole, so that no lookup ever waits for the store.
WHOLE_IMAGE_BYTES = 64 << 20
_READ_BYTES = 1 << 20
_UNUSED_S = 3600.0
_KINDS = ("image", "patch", "map", "json", "hydrated", "image-object", "map-object")


class SnapMetadata(msgspec.Struct, frozen=True):
    """The attachments of a chain's snap."""

    image: Attachment
    map: Attachment


class Metadata(msgspec.Struct, frozen=True):
    """Where a seq's metadata are. Paths are empty for what there is not.

    ``image``: the whole image. Without it ``patch`` lies over that of ``snap``. ``map``: of all extents, or, with
    ``snap``, of those that the diffs since name. ``left_out``: how many entries have attributes that the image cannot
    hold. ``made``: where they are from, and why.
    """

    image: str
    patch: str
    map: str
    snap: SnapMetadata | None
    left_out: int
    made: str

    def stems(self) -> set[str]:
        """What the names of the files begin with that are needed."""
        own = {os.path.basename(path).partition(".")[0] for path in (self.image, self.patch, self.map) if path}
        return own | ({ulid_text(item.ulid) for item in (self.snap.image, self.snap.map)} if self.snap else set())


class _Record(msgspec.Struct, frozen=True):
    """What the files must be: length and XXH3-128, as hex, by path. ``check``: the same of both of these."""

    metadata: Metadata
    files: dict[str, tuple[int, str]]
    check: str


@dataclass(frozen=True)
class Sources:
    """Where metadata come from and go to. ``executor``: threads for what is asked for side by side."""

    store: Store
    root: str
    runs: RunCache
    directory: Path
    executor: Executor

    def mirror(self, item: Attachment) -> Mirror:
        """What is here of an attachment."""
        path = self.directory / f"{ulid_text(item.ulid)}.{item.kind}-object"
        return Mirror(path, self.store, item.key(self.root), item.object_bytes)


def metadata_of(manifest: Manifest, sources: Sources) -> Metadata:
    """The metadata of a seq, from what is here where that is whole."""
    stem = _stem(sources.directory, manifest.digest, manifest.address_end)
    record = _read_record(Path(f"{stem}.json"))
    if record is not None and all(_is_whole(path, wanted) for path, wanted in record.files.items()):
        return record.metadata
    with disk_errors():
        sources.directory.mkdir(parents=True, exist_ok=True)
        found = _made(manifest, sources, stem)
        _record(stem, found)
    return found


def are_files_here(metadata: Metadata, digest: str, address_end: int, directory: Path) -> bool:
    """Whether the files that it names are here, and what was noted of them when they were made: a cache may be deleted
    at any time, and a power cut may take what is in a file."""
    record = _read_record(Path(f"{_stem(directory, digest, address_end)}.json"))
    noted = {} if record is None else record.files
    named = [path for path in (metadata.image, metadata.patch, metadata.map) if path]
    return all(_is_whole(path, noted[path]) if path in noted else os.path.exists(path) for path in named)


def settle(metadata: Metadata, image: ServedImage) -> str:
    """Bring a served image here whole, for the mounts to come; its path."""
    path = settled_image(metadata)
    stem = Path(path).with_suffix("")
    with disk_errors():
        with _writing(stem, "image") as file:
            for position in range(0, image.image_bytes, _READ_BYTES):
                file.write(image.read(position, min(_READ_BYTES, image.image_bytes - position)))
        _record(stem, settled_metadata(metadata))
    return path


def settled_image(metadata: Metadata) -> str:
    """Where :func:`settle` brings a served image."""
    return os.fspath(Path(metadata.patch).with_suffix(".image"))


def settled_metadata(metadata: Metadata) -> Metadata:
    return msgspec.structs.replace(metadata, image=settled_image(metadata), patch="")


def snap_metadata(manifest: Manifest) -> SnapMetadata | None:
    """The attachments of the chain's snap; None where it has none."""
    own = {item.kind: item for item in manifest.attachments if item.run == manifest.runs[0].ulid}
    return SnapMetadata(own["image"], own["map"]) if own.keys() >= {"image", "map"} else None


def prune(directory: Path, used: set[str], now_s: float) -> None:
    """Remove the files of what nobody uses: ``used`` are stems. What is younger than an hour may be about to be used,
    and stays."""
    for path in directory.iterdir():
        stem, _, kind = path.name.partition(".")
        is_ours = kind.partition(".")[0] in _KINDS
        if is_ours and stem not in used and now_s - path.stat().st_mtime > _UNUSED_S:
            path.unlink(missing_ok=True)


def _stem(directory: Path, digest: str, address_end: int) -> Path:
    return directory / f"{digest[:32]}-{address_end}"


def _made(manifest: Manifest, sources: Sources, stem: Path) -> Metadata:
    snap = snap_metadata(manifest)
    why = "the dataset has none"
    if snap is not None:
        try:
            return _laid(manifest, snap, sources, stem)
        except NotPatchableError:
            why = "hard links have changed since those of the snap were made"
        except (Corrupt, Missing, Unsupported) as error:
            why = f"those of the snap cannot be used: {error.key or ''} {error.message}"
    _fill(sources, manifest.runs)
    chain = Chain.of(sources.runs, sources.root, manifest.runs)
    with _writing(stem, "image") as image, _writing(stem, "map") as extents:
        left_out = _build(manifest, chain, image, extents)
    return Metadata(f"{stem}.image", "", f"{stem}.map", None, left_out, f"made here: {why}")


def _build(manifest: Manifest, chain: Chain, image: IO[bytes], extents: IO[bytes]) -> int:
    """Write both from the chain; how many entries have attributes that were left out."""
    builder = ImageBuilder(manifest.address_end, _identity(manifest))
    with ExtentRows() as rows:
        for at, data in builder.build(rows.noting(chain.entries())):
            image.seek(at)
            image.write(data)
        image.truncate(builder.image_bytes)
        extents.writelines(encode_map(rows.sorted()))
    return builder.left.xattrs


def _laid(manifest: Manifest, snap: SnapMetadata, sources: Sources, stem: Path) -> Metadata:
    """The snap's metadata with the diffs laid over them. All that is fetched is asked for at once: one round trip while
    the image is small."""
    diffs = manifest.runs[1:]
    mirrors = [sources.mirror(item) for item in (snap.image, snap.map)]
    try:
        index = sources.executor.submit(read_map_tail, snap.map, mirrors[1])
        runs = [sources.executor.submit(sources.runs.fill, sources.root, [run]) for run in diffs]
        base = BaseImage(snap.image, mirrors[0], sources.executor)
        index.result()
        for run in runs:
            run.result()
        patch = ImagePatch(base.read, base.tail.image_bytes)
        map_path = ""
        if diffs:
            map_path = f"{stem}.map"
            with _writing(stem, "map") as extents:
                _apply(Chain.of(sources.runs, sources.root, diffs), patch, base, extents, sources.executor)
        inode_count = base.tail.inode_count + manifest.entry_count - manifest.runs[0].entry_count
        patch.seal(inode_count, manifest.address_end, _identity(manifest))
        is_whole = patch.image_bytes <= WHOLE_IMAGE_BYTES
        kind = "image" if is_whole else "patch"
        with _writing(stem, kind) as file:
            if is_whole:
                write_whole(base, patch, file)
            else:
                write_patch(patch, file)
    finally:
        for mirror in mirrors:
            mirror.close()
    left_out = base.tail.left_out + patch.left_out
    paths = {"image": "", "patch": "", kind: f"{stem}.{kind}"}
    return Metadata(paths["image"], paths["patch"], map_path, snap, left_out, "fetched")


def _apply(chain: Chain, patch: ImagePatch, base: BaseImage, extents: IO[bytes], executor: Executor) -> None:
    """Lay diffs over the image; their extents become a map."""
    if not base.is_here:
        _look_ahead(chain, base, executor)
    with ExtentRows() as rows:
        live = (entry for entry, _ in chain.merged())
        patch.apply(rows.noting(live))
        extents.writelines(encode_map(rows.sorted()))


def _look_ahead(chain: Chain, base: BaseImage, executor: Executor) -> None:
    """Look for all directories that the diffs change, side by side: each level of each is a round trip."""
    directories = dict.fromkeys(entry.directory for entry, _ in chain.merged())
    for _ in executor.map(lambda path: ImagePatch(base.read, base.tail.image_bytes).look(path), directories):
        pass


def write_whole(base: BaseImage, patch: ImagePatch, file: IO[bytes]) -> None:
    """The image as it is when it is changed."""
    file.writelines(base.whole())
    for number, block in patch.blocks.items():
        file.seek(number * BLOCK_BYTES)
        file.write(block)
    file.truncate(patch.image_bytes)


def _identity(manifest: Manifest) -> bytes:
    return blake3(manifest.digest.encode()).digest(16)


def _fill(sources: Sources, runs: list[RunRef]) -> None:
    for waited in [sources.executor.submit(sources.runs.fill, sources.root, [run]) for run in runs]:
        waited.result()


@contextlib.contextmanager
def _writing(stem: Path, suffix: str) -> Iterator[IO[bytes]]:
    """A file beside the one that it becomes when all went well."""
    path = Path(f"{stem}.{suffix}")
    file = tempfile.NamedTemporaryFile("w+b", prefix=f"{path.name}.", suffix=TEMPORARY, dir=path.parent, delete=False)  # noqa: SIM115
    try:
        with file:
            yield file
        os.rename(file.name, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file.name)


def _record(stem: Path, found: Metadata) -> None:
    """No fsync of the files: those that a power cut took are not what the record says, and are made again."""
    files = {path: _measured(Path(path)) for path in (found.image, found.patch, found.map) if path}
    write_atomic(Path(f"{stem}.json"), msgspec.json.encode(_Record(found, files, _check_of(found, files))))


def _read_record(path: Path) -> _Record | None:
    """None where there is none, or a damaged one: then all is made again."""
    try:
        record = msgspec.json.decode(path.read_bytes(), type=_Record)
    except (FileNotFoundError, *DECODE_ERRORS):
        return None
    return record if record.check == _check_of(record.metadata, record.files) else None


def _check_of(metadata: Metadata, files: dict[str, tuple[int, str]]) -> str:
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode((metadata, files)))


def _is_whole(path: str, wanted: tuple[int, str]) -> bool:
    try:
        return _measured(Path(path)) == wanted
    except FileNotFoundError:
        return False


def _measured(path: Path) -> tuple[int, str]:
    """Length and XXH3-128 of a file."""
    digest, length = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
            length += len(piece)
    return length, digest.hexdigest()
