"""The snapshots of a dataset: which there are, which can be believed, which may go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from synclib.core.manifest import Manifest
from synclib.core.names import check_dataset
from synclib.core.snapshot_tags import DATASET, IN_USE, STORE, SnapshotTags, owner_tags, parse_tags, store_tag
from synclib.core.volume_layout import Header, decode_header
from synclib.errors import Corrupt, Invalid, Missing, Unsupported
from synclib.lazy.dataset import Dataset
from synclib.volume.base import Snapshot, SnapshotState, VolumeDriver

_TRIED_MAX = 8  # snapshots that say they are newer and are not what they say


@dataclass(frozen=True)
class Known:
    """A snapshot and what its tags say."""

    snapshot: Snapshot
    tags: SnapshotTags

    @property
    def is_complete(self) -> bool:
        return self.tags.is_complete and self.snapshot.state is SnapshotState.COMPLETED


@dataclass(frozen=True)
class Confirmed:
    """A complete snapshot whose seq the store knows with the same digest."""

    known: Known
    manifest: Manifest

    @property
    def id(self) -> str:
        return self.known.snapshot.id


@dataclass
class Found:
    """``snapshots``: by seq, the newest first. ``refused``: what tags say that cannot be, and why, by id."""

    snapshots: list[Known] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def find(driver: VolumeDriver, store_url: str, dataset: str) -> Found:
    """All of a dataset of a store, complete or not: one call."""
    return _found(driver.snapshots(tags=owner_tags(store_tag(store_url), dataset)))


def find_all(driver: VolumeDriver, store_url: str) -> dict[str, Found]:
    """As :func:`find`, of all datasets of a store, by name; what is tagged as no dataset at all stands under an empty
    name, refused. One call."""
    by_name: dict[str, list[Snapshot]] = {}
    for snapshot in driver.snapshots(tags={STORE: store_tag(store_url)}):
        by_name.setdefault(_dataset_of(snapshot), []).append(snapshot)
    return {name: _found(snapshots) for name, snapshots in sorted(by_name.items())}


def _dataset_of(snapshot: Snapshot) -> str:
    try:
        return check_dataset(snapshot.tags.get(DATASET, ""))
    except Invalid:
        return ""


def _found(snapshots: Iterable[Snapshot]) -> Found:
    found = Found()
    for snapshot in snapshots:
        try:
            found.snapshots.append(Known(snapshot, parse_tags(snapshot.tags)))
        except Invalid as error:
            found.refused[snapshot.id] = error.message
    found.snapshots.sort(key=_age, reverse=True)
    return found


def _age(known: Known) -> tuple[int, int, str]:
    return known.tags.seq, known.snapshot.started_at_ns, known.snapshot.id


def newest_confirmed(dataset: Dataset, head: Manifest, found: Found) -> Confirmed | None:
    """The newest complete one that the dataset's history confirms: of the head's seq or before it, with the digest that
    the store has for that seq. What is refused is noted, by id."""
    tried = 0
    for known in found.snapshots:
        if not known.is_complete:
            continue
        if tried >= _TRIED_MAX:
            break
        if known.tags.seq > head.seq:
            found.refused[known.snapshot.id] = f"it says seq {known.tags.seq}, and the head is at {head.seq}"
            continue
        tried += 1
        try:
            manifest = head if known.tags.seq == head.seq else dataset.manifest_at(known.tags.seq)
        except Missing:
            found.refused[known.snapshot.id] = f"the store no longer has its seq {known.tags.seq}"
            continue
        if manifest.digest != known.tags.digest:
            found.refused[known.snapshot.id] = f"its digest is not that of seq {known.tags.seq} in the store"
            continue
        return Confirmed(known, manifest)
    return None


def check_header(data: bytes, root: str, seq: int, digest: str) -> Header:
    """The header of a volume whose newest record is of that seq; Corrupt where it is of another."""
    header = decode_header(data)
    record = header.record
    if record is None:
        raise Corrupt("neither slot of the volume holds a seq")
    if (record.root, record.seq, record.digest) != (root, seq, digest):
        raise Corrupt(f"the volume holds {record.root} seq {record.seq}, and is tagged as seq {seq} of {root}")
    return header


def header_of(driver: VolumeDriver, confirmed: Confirmed, root: str) -> Header | str:
    """What a snapshot's own header says; a text where it is not what it is tagged as."""
    try:
        data = driver.blocks().get(confirmed.id, 0)
        return check_header(data, root, confirmed.manifest.seq, confirmed.manifest.digest)
    except (Corrupt, Unsupported, Missing) as error:
        return error.message


def kept_because(
    found: Found, newest: Confirmed | None, keep_last: int | None, older_than_ns: int | None, now_ns: int
) -> dict[str, str]:
    """Why those of a dataset stay that do, by id; all others may go. The ``newest`` complete one stays, the last
    ``keep_last`` complete ones, those that are younger than ``older_than_ns``, and those that somebody needs. One that
    is not complete goes by its age only: it may be being made. With none confirmed none goes: a tag must not make the
    last good one go."""
    if newest is None:
        return {known.snapshot.id: "none is what the store confirms: it may be the last" for known in found.snapshots}
    trusted = [known for known in found.snapshots if known.is_complete and known.snapshot.id not in found.refused]
    last = {known.snapshot.id for known in trusted[: keep_last or 0]}
    kept: dict[str, str] = {}
    for known in found.snapshots:
        age_ns = now_ns - known.snapshot.started_at_ns
        if known.snapshot.id == newest.id:
            why = "the newest that the store confirms"
        elif known.snapshot.id in last:
            why = f"one of the last {keep_last}"
        elif known.tags.in_use:
            why = f"{known.tags.in_use} needs it (its tag {IN_USE})"
        elif older_than_ns is not None and age_ns < older_than_ns:
            why = "not old enough"
        elif not known.is_complete and older_than_ns is None:
            why = "not complete: it may be being made, and goes by its age alone"
        else:
            continue
        kept[known.snapshot.id] = why
    return kept
