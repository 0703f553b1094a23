"""Tags of a dataset: set, listed, taken away."""

from __future__ import annotations

import contextlib

from synclib.core.manifest import Head
from synclib.core.names import dataset_root, tag_key, tag_prefix
from synclib.core.tag import TAG_BYTES_MAX, Tag, decode_tag, encode_tag
from synclib.engine.head_swap import update_head
from synclib.engine.host import Host
from synclib.errors import BoxlinkError, Corrupt, Missing
from synclib.lazy.dataset import Dataset, HeadState


def set_tag(dataset: Dataset, host: Host, name: str, seq: int | None) -> Tag:
    """Give a seq (None: the newest) a name; it moves if it named another. Missing for a seq that is being collected.

    It counts by a compare-and-swap of the head after it is written: a collector that has not seen it has to look again
    before it condemns.
    """
    key = tag_key(dataset.root, name)
    manifest = dataset.manifest_at(seq)
    dataset.check_condemned(dataset.read_head(), manifest)
    tag = Tag(1, manifest.seq, manifest.digest, host.clock.wall_ns())
    dataset.store.put(key, encode_tag(tag))

    def confirm(state: HeadState) -> Head:
        dataset.check_condemned(state, manifest)
        return state.head

    try:
        update_head(dataset, host, confirm)
    except Missing:
        dataset.store.delete(key)
        raise
    return tag


def tags(dataset: Dataset) -> dict[str, Tag]:
    """All tags by name; one that is taken away meanwhile is none."""
    prefix = tag_prefix(dataset.root)
    found: dict[str, Tag] = {}
    for info in dataset.store.list(prefix):
        with contextlib.suppress(Missing):
            found[info.key.removeprefix(prefix)] = _read(dataset, info.key)
    return found


def _read(dataset: Dataset, key: str) -> Tag:
    try:
        found = dataset.store.get(key, size_max=TAG_BYTES_MAX)
        assert found is not None
        return decode_tag(found.data)
    except BoxlinkError as error:
        error.key = error.key or key
        error.hint = error.hint or _hint_of_damage(dataset, key.rpartition("/")[2])
        raise


def _hint_of_damage(dataset: Dataset, name: str) -> str:
    """A release's tags are those of channels: no verb but theirs writes them."""
    if dataset.root != dataset_root(dataset.name):
        return "see who may write to the store; take that object away"
    return f"boxlink tag {dataset.name} {name} --delete"


def read_tag(dataset: Dataset, name: str) -> Tag:
    """A tag; Missing when there is none of that name."""
    try:
        return _read(dataset, tag_key(dataset.root, name))
    except Missing as error:
        error.message = f"{dataset.name} has no tag {name}"
        error.hint = f"boxlink tag {dataset.name} lists them"
        raise


def delete_tag(dataset: Dataset, name: str) -> Tag | None:
    """Take a tag away; returns what it was, None where it could not be read."""
    try:
        tag: Tag | None = read_tag(dataset, name)
    except Corrupt:
        tag = None
    dataset.store.delete(tag_key(dataset.root, name))
    return tag
