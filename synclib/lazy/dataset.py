"""A dataset in a store: its head, and the manifest of any seq."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from synclib.core import names
from synclib.core.manifest import (
    EMPTY,
    HEAD_BYTES_MAX,
    MANIFEST_BYTES_MAX,
    Head,
    Manifest,
    decode_head,
    decode_manifest,
    encode_manifest,
    former_manifests,
    manifest_digest,
    manifest_id,
)
from synclib.errors import BoxlinkError, Corrupt, Invalid, Missing
from synclib.lazy.lost_head import PUT_BACK, what_is_there
from synclib.store.base import Fetched, Store

STORE_KEY = "boxlink.json"  # what `boxlink init` leaves in a store


@dataclass(frozen=True, slots=True)
class HeadState:
    """A head as it was read: ``etag`` is what the next compare-and-swap names. No etag: there was none yet."""

    head: Head
    manifest: Manifest
    etag: str | None


class HeadLost(Corrupt):
    """A dataset has a history, but no head."""


def _with(text: str, more: str) -> str:
    return f"{text}; {more}" if more else text


class Dataset:
    """One dataset (or release) of a store; safe between threads."""

    def __init__(self, store: Store, root: str) -> None:
        self.store = store
        self.root = root
        kind, _, self.name = root.partition("/")
        self._is_release = kind == "release"

    @property
    def title(self) -> str:
        """Its name for a person: a release may be called as a dataset is."""
        return f"release {self.name}" if self._is_release else self.name

    @property
    def listing(self) -> str:
        """The command that lists its seqs."""
        return f"boxlink release ls {self.name}" if self._is_release else f"boxlink log {self.name}"

    def read_head(self) -> HeadState:
        """The head now; Missing when nothing was ever published."""
        found = self.read_head_since(None)
        assert found is not None
        return found

    def read_head_since(self, etag: str | None) -> HeadState | None:
        """The head now, or None when it still has ``etag`` (a conditional GET: no body)."""
        return self._read_head(etag, is_empty_enough=False)

    def _read_head(self, etag: str | None, *, is_empty_enough: bool) -> HeadState | None:
        """``is_empty_enough``: where the first head comes at this very moment it is Missing still."""
        key = names.head_key(self.root)
        try:
            fetched = self.store.get(key, size_max=HEAD_BYTES_MAX, if_none_match=etag)
        except Missing as error:
            self._check_store(error)
            if not self._has_history() or (is_empty_enough and self._head_with_history()):
                raise Missing(
                    f"{self.title} has never been published here",
                    hint=f"boxlink release publish {self.name} DIR"
                    if self._is_release
                    else f"boxlink publish {self.name} DIR",
                    dataset=self.name,
                    key=key,
                ) from error
            fetched = self._head_with_history()
        if fetched is None:
            return None
        try:
            head, manifest = decode_head(fetched.data, self.root)
        except BoxlinkError as error:
            error.key, error.dataset = key, self.name
            if isinstance(error, Corrupt):
                error.message = _with(f"the head is damaged: {error.message}", what_is_there(self))
                error.hint = error.hint or PUT_BACK
            raise
        return HeadState(head, manifest, fetched.etag)

    def read_head_or_empty(self) -> HeadState:
        """The head now; before the first publish an empty one of seq 0, whose store must have been initialised."""
        try:
            found = self._read_head(None, is_empty_enough=True)
            assert found is not None
            return found
        except Missing as error:
            if error.dataset != self.name:
                raise
            return HeadState(Head(self.root, 0, b"", [], []), EMPTY, None)

    def _check_store(self, cause: Missing) -> None:
        try:
            self.store.get(STORE_KEY, size_max=1 << 16)
        except Missing:
            raise Missing(
                f"{self.store.url} is no boxlink store yet",
                hint=f"boxlink init --store {self.store.url}",
                key=STORE_KEY,
            ) from cause

    def _has_history(self) -> bool:
        """Whether there are manifests: then a publish without a head would begin a second history over the first."""
        try:
            return next(iter(self.store.list(names.manifest_prefix(self.root))), None) is not None
        except Invalid:
            # Not everyone may list.
            return False

    def _head_with_history(self) -> Fetched | None:
        """The head of a dataset that has manifests, which was not there a moment ago: the first one may just have come,
        and its manifest after it. HeadLost where it is gone."""
        try:
            return self.store.get(names.head_key(self.root), size_max=HEAD_BYTES_MAX)
        except Missing as error:
            raise HeadLost(
                _with(f"the head of {self.name} is gone, its history is there", what_is_there(self)),
                hint=PUT_BACK,
                dataset=self.name,
                key=names.head_key(self.root),
            ) from error

    def manifest_at(self, seq: int | None) -> Manifest:
        """The manifest of a seq (None: the newest): from the head, else by one listing."""
        state = self.read_head()
        if seq is None or seq == state.manifest.seq:
            return state.manifest
        if not 0 < seq < state.manifest.seq:
            raise Missing(
                f"{self.title} has no seq {seq}; its head is at {state.manifest.seq}",
                hint=f"{self.listing} lists them",
                dataset=self.name,
            )
        # Nothing that such a one names is ever condemned.
        former = [manifest for _, manifest in former_manifests(state.head) if manifest.seq == seq]
        if former:
            return min(former, key=preference)
        # A compaction leaves a further manifest of the same seq: the shortest chain is the best.
        found = list(self._manifest_objects(names.manifest_prefix(self.root, seq)))
        if found:
            return min(found, key=preference)
        raise Missing(
            f"{self.title} no longer has seq {seq}", hint=f"{self.listing} lists what is kept", dataset=self.name
        )

    def _manifest_objects(self, prefix: str) -> Iterator[Manifest]:
        for info in self.store.list(prefix):
            # A collector may take one that a compaction has replaced, between the listing and this.
            with contextlib.suppress(Missing):
                yield self.read_manifest_object(info.key)

    def check_condemned(self, head: HeadState, manifest: Manifest) -> None:
        """Missing for a seq that a collector has condemned: it may be gone at any moment."""
        condemned = set(head.head.condemned)
        named = {manifest_id(manifest_digest(encode_manifest(manifest))), *(run.ulid for run in manifest.runs)}
        if manifest.seq != head.manifest.seq and not named.isdisjoint(condemned):
            raise Missing(
                f"{self.title} seq {manifest.seq} is being collected",
                hint=f"{self.listing} lists what is kept",
                dataset=self.name,
            )

    def read_manifest_object(self, key: str) -> Manifest:
        """The manifest at a key of ``manifest/``."""
        try:
            found_seq, digest = names.parse_manifest_key(self.root, key)
            fetched = self.store.get(key, size_max=MANIFEST_BYTES_MAX)
            assert fetched is not None
            manifest = decode_manifest(fetched.data, digest)
            if manifest.seq != found_seq:
                raise Corrupt(f"a manifest named {found_seq} says that it is of seq {manifest.seq}")
        except BoxlinkError as error:
            error.key, error.dataset = key, self.name
            raise
        return manifest

    def manifest_at_time(self, at_ns: int) -> Manifest:
        """The newest manifest that was published at or before a wall time."""
        state = self.read_head()
        newest = state.manifest
        if newest.published_at_ns <= at_ns:
            return newest
        kept = self.seqs(state)[:-1]
        first, last = 0, len(kept) - 1
        found: Manifest | None = None
        while first <= last:
            middle = (first + last) // 2
            manifest = self.manifest_at(kept[middle])
            if manifest.published_at_ns <= at_ns:
                found, first = manifest, middle + 1
            else:
                last = middle - 1
        if found is None:
            raise Missing(
                f"{self.title} has no seq of that time",
                hint=f"{self.listing} lists what is kept",
                dataset=self.name,
            )
        return found

    def seqs(self, head: HeadState) -> list[int]:
        """All seqs that stand, the head's last."""
        in_head = {head.manifest.seq, *(manifest.seq for _, manifest in former_manifests(head.head))}
        return sorted(in_head | {seq for seq, _ in self.manifests() if seq < head.manifest.seq})

    def manifests(self) -> list[tuple[int, str]]:
        """(seq, key) of all manifest objects, oldest first. The newest seqs may stand in the head only."""
        prefix = names.manifest_prefix(self.root)
        return [(names.parse_manifest_key(self.root, info.key)[0], info.key) for info in self.store.list(prefix)]


def preference(manifest: Manifest) -> tuple[int, bytes, int]:
    """Orders the manifests of one seq, the best first: the shortest chain, of those the one with the newest run, with
    most attachments."""
    newest = max(run.ulid for run in manifest.runs)
    return len(manifest.runs), bytes(255 - byte for byte in newest), -len(manifest.attachments)


def check_prefix(text: str) -> bytes:
    """A folder inside a dataset as people write it, as its clean bytes; empty for the root."""
    path = b"" if text == "." else text.strip("/").encode("utf-8", "surrogateescape")
    try:
        names.check_directory(path)
    except Corrupt as error:
        raise Invalid(f"{text!r} is no path inside a dataset: {error.message}") from error
    if names.is_reserved(b"", path.partition(b"/")[0]):
        raise Invalid(f"{text!r} is no path inside a dataset: synch.* and .boxlink are boxlink's own")
    return path
