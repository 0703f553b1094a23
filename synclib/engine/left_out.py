"""What a replication leaves out: seqs of which not all is there."""

from __future__ import annotations

from dataclasses import dataclass

from synclib.clock import ulid_text
from synclib.core.manifest import Manifest
from synclib.core.names import ATTACHMENTS, pack_key
from synclib.engine.objects import list_attachments, list_packs, list_runs
from synclib.engine.reach import Reach
from synclib.engine.swept import Named, Presence, named
from synclib.lazy.dataset import Dataset, HeadState


@dataclass(frozen=True)
class LeftOut:
    """A seq that is not copied. ``is_damage``: something of it is lost that no collection takes."""

    seq: int
    why: str
    is_damage: bool = False


def lacking(
    reach: Reach, source: Dataset, target: Dataset, head: HeadState, every: list[Named]
) -> dict[bytes, LeftOut]:
    """Why manifests, by id, cannot be copied: not all that they name is there. Not the head's, which has to be."""
    present = {item.id for item in [*list_runs(source), *list_packs(source), *list_attachments(source)]}
    if named(reach, every) <= present:
        return {}
    copied = {item.id for item in [*list_packs(target), *list_attachments(target)]}
    presence = Presence(reach, every, present)
    swept = presence.swept()
    why = {}
    for name, manifest in every:
        # Of other kinds nobody here knows where they are; they are not copied either.
        unknown = {item.ulid for item in manifest.attachments if item.kind not in ATTACHMENTS}
        lacks = presence.lacks(name) - copied - unknown
        if not lacks or manifest == head.manifest:
            continue
        if not lacks.isdisjoint(head.head.condemned):
            why[name] = LeftOut(manifest.seq, "it is being collected here")
        elif name in swept:
            text = "what was its alone has been collected here; gc clears its manifest away"
            why[name] = LeftOut(manifest.seq, text)
        else:
            lost = _key_of(source, manifest, min(lacks))
            why[name] = LeftOut(manifest.seq, f"{lost} is lost", is_damage=True)
    return why


def _key_of(dataset: Dataset, manifest: Manifest, name: bytes) -> str:
    keys = {run.ulid: run.key(dataset.root) for run in manifest.runs}
    keys |= {item.ulid: item.key(dataset.root) for item in manifest.attachments}
    return keys.get(name) or pack_key(dataset.root, ulid_text(name))
