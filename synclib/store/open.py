"""The one place that turns a URL into a store, with retry and metering around it."""

from __future__ import annotations

from collections.abc import Mapping

from synclib.errors import Invalid
from synclib.store.base import Store
from synclib.store.meter import Meter, MeteredStore


def open_store(url: str, s3: Mapping[str, str | None]) -> tuple[Store, Meter]:
    """The store at ``url``; ``s3`` may hold ``endpoint``, ``region`` and ``profile``."""
    meter = Meter()
    return MeteredStore(_open(url, s3), meter), meter


def _open(url: str, s3: Mapping[str, str | None]) -> Store:
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "memory":
        from synclib.store.memory import MemoryStore

        return MemoryStore(rest)
    raise Invalid(f"{url!r} names no store", hint="use file:///DIR or s3://BUCKET/PREFIX")
