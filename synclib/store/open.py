"""The one place that turns a URL into a store, with retry and metering around it."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from synclib.clock import Clock, Entropy, SystemClock, SystemEntropy
from synclib.errors import Invalid
from synclib.store.base import Store
from synclib.store.file import FileStore
from synclib.store.memory import MemoryStore
from synclib.store.meter import Meter, MeteredStore


def open_store(
    url: str, s3: Mapping[str, str | None], *, clock: Clock | None = None, entropy: Entropy | None = None
) -> tuple[Store, Meter]:
    """The store at ``url``; ``s3`` may hold ``endpoint``, ``region`` and ``profile``."""
    meter = Meter()
    return MeteredStore(_open(url, s3, clock or SystemClock(), entropy or SystemEntropy()), meter), meter


def create_store(url: str) -> None:
    """Make what a store at ``url`` stands in: the directory of ``file://``. No error when it is there."""
    store = _open(url, {}, SystemClock(), SystemEntropy())
    if isinstance(store, FileStore):
        store.create()


def _open(url: str, s3: Mapping[str, str | None], clock: Clock, entropy: Entropy) -> Store:
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "file":
        return FileStore(_directory(url, rest), clock, entropy)
    if separator and scheme == "memory":
        return MemoryStore(rest)
    raise Invalid(f"{url!r} names no store", hint="use file:///DIR or s3://BUCKET/PREFIX")


def _directory(url: str, rest: str) -> str:
    """The directory of ``file:///dir`` (RFC 8089 without a host)."""
    directory = unquote_to_bytes(rest)
    if not directory.startswith(b"/"):
        raise Invalid(f"{url!r} names no absolute directory", hint=f"write three slashes: file:///{rest}")
    if b"\0" in directory:
        raise Invalid(f"{url!r} names no directory: it has a NUL")
    return directory.rstrip(b"/").decode(errors="surrogateescape") or "/"
