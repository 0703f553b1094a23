"""What the verbs that deal with volumes share: the driver, prices, ages."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from synclib.errors import Invalid
from tools.cli_context import Context

if TYPE_CHECKING:
    from synclib.engine.host import Host
    from synclib.volume.base import VolumeDriver
    from tools.mount_volumes import VolumesHere

F = TypeVar("F", bound=Callable[..., Any])
# List prices of us-east-1 in dollars: gp3 a GB and month; a put of EBS direct a thousand.
VOLUME_USD_GIB_MONTH = 0.08
PUT_USD_THOUSAND = 0.006
_AGE = re.compile(r"([0-9]{1,6})([hdw])")
_AGE_S = {"h": 3600, "d": 86400, "w": 7 * 86400}


def driver_options(function: F) -> F:
    """``--driver`` and ``--pool``."""
    function = click.option(
        "--pool",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Where the local driver keeps its images (else beside this machine's state).",
    )(function)
    return click.option(
        "--driver",
        "driver_name",
        type=click.Choice(["ebs", "local"]),
        help="Whose volumes: EBS, or images on this machine (by default with a file:// store).",
    )(function)


def open_driver(context: Context, host: Host, name: str | None, pool: Path | None) -> VolumeDriver:
    """The driver that is asked for, on the command line or in ``boxlink.toml``; else that of the store's kind."""
    settings = context.settings.volume if context.settings is not None else None
    if settings is not None and pool is None and settings.pool is not None and (name or settings.driver) != "ebs":
        pool = Path(settings.pool)
    name = name or default_driver(context)
    if name == "local":
        from synclib.volume.local import LocalDriver

        return LocalDriver(pool or host.state / "volumes", host.clock)
    if pool is not None:
        raise Invalid("--pool is of the local driver", hint="--driver local")
    return _open_ebs(context, host)


def default_driver(context: Context) -> str:
    """Which driver is meant where no option names one."""
    settings = context.settings.volume if context.settings is not None else None
    if settings is not None and settings.driver is not None:
        return settings.driver
    return "ebs" if context.url.startswith("s3:") else "local"


def _open_ebs(context: Context, host: Host) -> VolumeDriver:
    """The region and profile are those of the store; boto3 finds the credentials."""
    import importlib

    settings = context.s3_settings()
    ebs = importlib.import_module("synclib.volume.ebs")
    driver: VolumeDriver = ebs.open_ebs(
        host.clock, host.entropy, region=settings["region"], profile=settings["profile"]
    )
    return driver


def volumes_here(context: Context, host: Host, name: str | None, pool: Path | None) -> VolumesHere:
    """What datasets that start from a snapshot are given their volumes by."""
    from tools.mount_volumes import VolumesHere

    return VolumesHere(host, lambda: open_driver(context, host, name, pool), lambda driver: this_machine(host, driver))


def this_machine(host: Host, driver: VolumeDriver) -> tuple[str, str]:
    """(name, zone) of this machine, as a driver knows it. Unavailable where it does not."""
    if driver.name != "ebs":
        return host.node, "local"
    from tools.instance import ENDPOINT, instance_and_zone

    return instance_and_zone(os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or ENDPOINT)


def note_copies(context: Context, driver: VolumeDriver) -> None:
    """Say why what was made is a copy, which takes its time and its place on the disk."""
    if driver.why_copies:
        context.note(f"boxlink: images are copied whole here: {driver.why_copies}")


class Age(click.ParamType):  # type: ignore[type-arg] # generic in some versions of click alone
    """An age: 12h, 30d, 8w; nanoseconds."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = _AGE.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is no age: write 12h, 30d or 8w", param, ctx)
        return int(found[1]) * _AGE_S[found[2]] * 1_000_000_000


def check_price(context: Context, text: str, is_agreed: bool) -> None:
    """Say what something costs before it is paid for; Invalid where nobody agrees."""
    import sys

    context.note(f"boxlink: {text}")
    if is_agreed:
        return
    if context.is_json or not sys.stdin.isatty():
        raise Invalid(f"not done without a yes: {text}", hint="--yes")
    if not click.confirm("go on?", err=True):
        raise Invalid("not done", hint="--yes, or answer y")
