"""The volumes that mounts of this machine start from. The driver is opened when the first one is asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from synclib.core.manifest import Manifest
from synclib.engine.host import Host
from synclib.engine.mount import Prepared, VolumeRef
from synclib.errors import BoxlinkError
from synclib.lazy.dataset import Dataset

if TYPE_CHECKING:
    from synclib.volume.base import VolumeDriver


class VolumesHere:
    """``place``: (name, zone) of this machine, as a driver knows it; an Unavailable where it does not."""

    def __init__(
        self, host: Host, open_driver: Callable[[], VolumeDriver], place: Callable[[VolumeDriver], tuple[str, str]]
    ) -> None:
        self._host, self._open_driver, self._place = host, open_driver, place

    @functools.cached_property
    def _driver(self) -> VolumeDriver:
        return self._open_driver()

    @functools.cached_property
    def _here(self) -> tuple[str, str]:
        return self._place(self._driver)

    def add(self, prepared: Prepared, dataset: Dataset, manifest: Manifest) -> Prepared:
        """With a volume, or why there is none."""
        from synclib.engine.snapshot_start import with_volume

        try:
            driver, (node, zone) = self._driver, self._here
        except BoxlinkError as error:
            return msgspec.structs.replace(prepared, why_no_volume=error.message)
        return with_volume(prepared, dataset, self._host, manifest, driver, zone, node)

    def attached_again(self, prepared: Prepared) -> Prepared:
        from synclib.engine.snapshot_start import attached_again

        try:
            return attached_again(prepared, self._host, self._driver, self._here[0])
        except BoxlinkError as error:
            return msgspec.structs.replace(prepared, volume=None, why_no_volume=error.message)

    def swap(
        self,
        prepared: Prepared,
        dataset: Dataset,
        manifest: Manifest,
        snapshot: str,
        former: VolumeRef | None,
        let_go: Callable[[], None],
    ) -> Prepared:
        """With a volume of this snapshot in the place of the former one."""
        from synclib.engine.volume_swap import swap_volume

        driver, (node, zone) = self._driver, self._here
        return swap_volume(prepared, dataset, self._host, manifest, driver, zone, node, snapshot, former, let_go)

    def former_again(self, dataset: Dataset, former: VolumeRef) -> VolumeRef | None:
        """The volume that was let go for another, attached again; None where it is gone."""
        from synclib.engine.volume_swap import former_again

        return former_again(self._driver, self._host, dataset, self._here[0], former)

    def release(self, dataset: Dataset, kept: str) -> bool:
        """Detach and delete those of a dataset, but for ``kept``; whether all are gone."""
        from synclib.core.snapshot_tags import store_tag
        from synclib.engine.node_volume import release_volumes

        try:
            return not release_volumes(
                self._driver, self._host, store_tag(dataset.store.url), dataset.name, self._here[0], kept
            )
        except BoxlinkError:
            return False
