"""What lies in a store under a dataset: its objects by their 16-byte ids."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from synclib.clock import ulid_from_text
from synclib.core.manifest import manifest_id
from synclib.core.names import (
    ATTACHMENTS,
    attachment_prefix,
    manifest_prefix,
    pack_prefix,
    parse_manifest_key,
    parse_run_key,
    parse_ulid_key,
    run_prefix,
)
from synclib.errors import Corrupt
from synclib.lazy.dataset import Dataset


@dataclass(frozen=True, slots=True)
class StoredObject:
    """``kind``: 0 manifest, 1 run, 2 pack, 3 attachment: the order in which a collector deletes, so that nothing is
    left that names what is gone."""

    kind: int
    id: bytes
    key: str
    size: int


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except Corrupt as error:
        error.hint = error.hint or "it is not boxlink's: move it out of the store, then run this again"
        raise


def list_manifests(dataset: Dataset) -> Iterator[StoredObject]:
    for info in dataset.store.list(manifest_prefix(dataset.root)):
        with _explained():
            _, digest = parse_manifest_key(dataset.root, info.key)
        yield StoredObject(0, manifest_id(digest), info.key, info.size)


def list_runs(dataset: Dataset) -> Iterator[StoredObject]:
    for info in dataset.store.list(run_prefix(dataset.root)):
        with _explained():
            ulid = parse_run_key(dataset.root, info.key).ulid
        yield StoredObject(1, ulid_from_text(ulid), info.key, info.size)


def list_packs(dataset: Dataset) -> Iterator[StoredObject]:
    prefix = pack_prefix(dataset.root)
    for info in dataset.store.list(prefix):
        with _explained():
            ulid = parse_ulid_key(prefix, info.key)
        yield StoredObject(2, ulid_from_text(ulid), info.key, info.size)


def list_attachments(dataset: Dataset) -> Iterator[StoredObject]:
    for kind in ATTACHMENTS:
        prefix = attachment_prefix(dataset.root, kind)
        for info in dataset.store.list(prefix):
            with _explained():
                ulid = parse_ulid_key(prefix, info.key)
            yield StoredObject(3, ulid_from_text(ulid), info.key, info.size)
