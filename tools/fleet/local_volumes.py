"""The volumes of a node of this machine."""

from __future__ import annotations

from synclib.core.snapshot_tags import store_tag
from synclib.engine.host import Host
from synclib.engine.node_volume import release_ended
from synclib.volume.base import VolumeDriver
from tools.cli_context import Context
from tools.cli_snapshot import default_driver
from tools.fleet.node_file import LocalNode


def volumes_of(context: Context, host: Host, node: LocalNode) -> VolumeDriver | None:
    """As the node itself finds its driver: by the settings, for it got none of a command's options. None where they are
    not this machine's images."""
    if default_driver(context) != "local":
        return None
    from synclib.volume.local import LocalDriver

    pool = None if context.settings is None else context.settings.volume.pool
    return LocalDriver(node.directory / (pool or "state/boxlink/volumes"), host.clock)


def release_volumes(driver: VolumeDriver | None, store_url: str, node: LocalNode) -> list[str]:
    """Let those of a node that has ended go; which are not gone yet."""
    if driver is None:
        return []
    left = release_ended(driver, store_tag(store_url), lambda names: names & {node.node})
    return [f"volume {each}" for each in left]
