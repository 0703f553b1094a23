"""What is tagged on a snapshot: of which store and dataset it is, and of which seq. Whoever may tag may write anything
there, so what is read is parsed strictly, and then still only a hint: the store and the volume's own header decide.

    boxlink:store, boxlink:dataset     whose it is
    boxlink:seq, boxlink:digest        what it holds
    boxlink:making                     a token of the command that makes it, so that the same one again finds it
    boxlink:complete                   1, put last: all of it is there
    boxlink:in-use                     whoever needs it writes anything here; then it is not pruned
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from blake3 import blake3

from synclib.core.names import check_dataset
from synclib.errors import BoxlinkError, Invalid

STORE, DATASET, SEQ, DIGEST = "boxlink:store", "boxlink:dataset", "boxlink:seq", "boxlink:digest"
MAKING, COMPLETE, IN_USE, NODE = "boxlink:making", "boxlink:complete", "boxlink:in-use", "boxlink:node"
_VALUE_CHARACTERS_MAX = 255
_SEQ = re.compile(r"[1-9][0-9]{0,17}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SAFE_URL = re.compile(r"[A-Za-z0-9 +=._:/@-]+")


class SnapshotTags(msgspec.Struct, frozen=True):
    """What a snapshot says of itself."""

    store: str
    dataset: str
    seq: int
    digest: str
    making: str = ""
    is_complete: bool = False
    in_use: str = ""

    def as_dict(self) -> dict[str, str]:
        """Without what is said last."""
        return {
            **owner_tags(self.store, self.dataset),
            SEQ: str(self.seq),
            DIGEST: self.digest,
            MAKING: self.making,
        }


def store_tag(url: str) -> str:
    """A store's URL as a tag holds it; a hash where a tag cannot."""
    if len(url) <= _VALUE_CHARACTERS_MAX and _SAFE_URL.fullmatch(url):
        return url
    return f"blake3:{blake3(url.encode()).hexdigest()}"


def owner_tags(store: str, dataset: str) -> dict[str, str]:
    """The tags that all snapshots of a dataset of a store have. ``store``: of :func:`store_tag`."""
    return {STORE: store, DATASET: dataset}


def parse_tags(tags: Mapping[str, str]) -> SnapshotTags:
    """Invalid, by name, for what no snapshot of ours says."""
    dataset, seq, digest = (tags.get(name, "") for name in (DATASET, SEQ, DIGEST))
    try:
        check_dataset(dataset)
    except BoxlinkError as error:
        raise Invalid(f"the tag {DATASET} is {dataset[:80]!r}: no dataset is called so") from error
    if not _SEQ.fullmatch(seq):
        raise Invalid(f"the tag {SEQ} is {seq[:80]!r}, which is no seq")
    if not _DIGEST.fullmatch(digest):
        raise Invalid(f"the tag {DIGEST} is {digest[:80]!r}, which is no digest")
    complete = tags.get(COMPLETE, "")
    if complete not in ("", "1"):
        raise Invalid(f"the tag {COMPLETE} is {complete[:80]!r}: only 1 is ever written")
    return SnapshotTags(
        tags.get(STORE, "")[:_VALUE_CHARACTERS_MAX],
        dataset,
        int(seq),
        digest,
        tags.get(MAKING, "")[:_VALUE_CHARACTERS_MAX],
        complete == "1",
        tags.get(IN_USE, "")[:_VALUE_CHARACTERS_MAX],
    )


def token_of(*words: object) -> str:
    """The same words, the same token: 64 hex digits. What is made with one is made once."""
    return blake3("\0".join(map(str, words)).encode()).hexdigest()
