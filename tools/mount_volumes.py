"""The volumes that mounts of this machine start from. The driver is opened when the first one is asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from synclib.core.manifest import Manifest
from synclib.engine.host import Host
from synclib.engine.mount import Prepared
from synclib.errors import BoxlinkError
from synclib.lazy.dataset import Dataset

if TYPE_CHECKING:
    from synclib.volume.base import VolumeDriver


class VolumesHere:
    """``zone``, ``node``: of this machine, as the driver knows them."""

    def __init__(self, host: Host, open_driver: Callable[[], VolumeDriver], zone: str, node: str) -> None:
        self._host, self._open_driver, self._zone, self._node = host, open_driver, zone, node

    @functools.cached_property
    def _driver(self) -> VolumeDriver:
        return self._open_driver()

    def add(self, prepared: Prepared, dataset: Dataset, manifest: Manifest) -> Prepared:
        """With a volume, or why there is none."""
        from synclib.engine.snapshot_start import with_volume

        try:
            driver = self._driver
        except BoxlinkError as error:
            return msgspec.structs.replace(prepared, why_no_volume=error.message)
        return with_volume(prepared, dataset, self._host, manifest, driver, self._zone, self._node)

    def attached_again(self, prepared: Prepared) -> Prepared:
        from synclib.engine.snapshot_start import attached_again

        try:
            return attached_again(prepared, self._host, self._driver, self._node)
        except BoxlinkError as error:
            return msgspec.structs.replace(prepared, volume=None, why_no_volume=error.message)

    def release(self, dataset: Dataset) -> bool:
        """Detach and delete those of a dataset; whether all are gone."""
        from synclib.core.snapshot_tags import store_tag
        from synclib.engine.node_volume import release_volumes

        try:
            return not release_volumes(self._driver, store_tag(dataset.store.url), dataset.name, self._node)
        except BoxlinkError:
            return False
