"""Manifests that came late: of which a collection has swept all else that was theirs alone.

They were written by one who was asleep for longer than a lease, or whose write was long under way. Nothing can be had
of them any more. One that lacks anything but exactly that is damaged, which is never a reason to delete.
"""

from __future__ import annotations

from collections.abc import Iterable

from synclib.core.manifest import Manifest
from synclib.engine.reach import Reach

Named = tuple[bytes, Manifest]  # a manifest and its id


class Presence:
    """A history beside what there is of it. ``present``: the runs and packs, listed after the manifests were."""

    def __init__(self, reach: Reach, every: Iterable[Named], present: set[bytes]) -> None:
        self._present = present
        self._named = {item[0]: named(reach, [item]) for item in every}
        self._whole = {name for name, own in self._named.items() if own <= present}

    def lacks(self, name: bytes) -> set[bytes]:
        return self._named[name] - self._present

    def swept(self) -> set[bytes]:
        """Those that lack exactly what a collection takes: one beside all others, or several together, which may lack
        the same, beside all others."""
        lacking = self._named.keys() - self._whole
        alone = {name for name in lacking if self._is_rest_gone(name, self._named.keys() - {name})}
        together = set(lacking)
        while damaged := {name for name in together if not self._is_rest_gone(name, self._named.keys() - together)}:
            together -= damaged
        return alone | together

    def _is_rest_gone(self, name: bytes, others: Iterable[bytes]) -> bool:
        own, shared = self._named[name], set().union(*(self._named[other] for other in others))
        return own & shared <= self._present and self._present.isdisjoint(own - shared)


def named(reach: Reach, manifests: Iterable[Named]) -> set[bytes]:
    """The runs and packs that manifests name, there or not."""
    manifests = list(manifests)
    return reach.closure(manifests, may_lack=True) - {name for name, _ in manifests}
