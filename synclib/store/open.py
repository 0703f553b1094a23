"""The one place that turns a URL into a store, with retry and metering around it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from synclib.clock import Clock, Entropy, SystemClock, SystemEntropy
from synclib.errors import Invalid
from synclib.store.file import FileStore
from synclib.store.keys import check_key
from synclib.store.memory import MemoryStore
from synclib.store.meter import Meter, MeteredStore
from synclib.store.retry import RetryStore

if TYPE_CHECKING:
    from synclib.store.base import Store
    from synclib.store.s3 import S3Store

# General purpose buckets' naming rules; the servers know the finer ones.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def open_store(
    url: str, s3: Mapping[str, str | None], *, clock: Clock | None = None, entropy: Entropy | None = None
) -> tuple[Store, Meter]:
    """The store at ``url``; ``s3`` may hold ``endpoint``, ``region`` and ``profile``.

    Worker processes call this themselves: a store does not cross a fork (base.py).
    """
    clock, entropy = clock or SystemClock(), entropy or SystemEntropy()
    meter = Meter()
    real = _open(url, s3, clock, entropy)
    if isinstance(real, FileStore | MemoryStore):
        metered = MeteredStore(real, meter)
    else:
        from synclib.store.s3 import put_requests

        metered = MeteredStore(real, meter, put_requests)
    # Metering is inside, so that every try is counted.
    return RetryStore(metered, clock, entropy), meter


def directory_of(url: str) -> str | None:
    """The directory of a ``file://`` store; None for any other, or what is no URL."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme != "file":
        return None
    try:
        return _directory(url, rest)
    except Invalid:
        return None


def prepare_store(url: str, s3: Mapping[str, str | None], *, create_bucket: bool = False) -> None:
    """Make what a store stands in: the directory of ``file://``; the bucket of ``s3://``, when asked to.

    No error when it is there.
    """
    real = _open(url, s3, SystemClock(), SystemEntropy())
    if isinstance(real, FileStore):
        real.create()
    elif create_bucket and not isinstance(real, MemoryStore):
        real.create_bucket()


def _open(url: str, s3: Mapping[str, str | None], clock: Clock, entropy: Entropy) -> FileStore | MemoryStore | S3Store:
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "file":
        return FileStore(_directory(url, rest), clock, entropy)
    if separator and scheme == "s3":
        return _open_s3(url, rest, s3)
    if separator and scheme == "memory":
        return MemoryStore(rest)
    raise Invalid(f"{url!r} names no store", hint="use file:///DIR or s3://BUCKET/PREFIX")


def _directory(url: str, rest: str) -> str:
    """The directory of ``file:///dir`` (RFC 8089 without a host)."""
    directory = unquote_to_bytes(os.fsencode(rest))  # a name of a file need not be text
    if not directory.startswith(b"/"):
        raise Invalid(f"{url!r} names no absolute directory", hint=f"write three slashes: file:///{rest}")
    if b"\0" in directory:
        raise Invalid(f"{url!r} names no directory: it has a NUL")
    return directory.rstrip(b"/").decode(errors="surrogateescape") or "/"


def _open_s3(url: str, rest: str, s3: Mapping[str, str | None]) -> S3Store:
    # A quarter of a second that file:// need not pay.
    from synclib.store.s3 import S3Store

    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    if not _BUCKET.fullmatch(bucket):
        raise Invalid(f"{url!r} names no bucket", hint="use s3://BUCKET/PREFIX; a bucket's name is in lower case")
    if prefix:
        check_key(prefix)
    return S3Store(bucket, prefix, endpoint=s3.get("endpoint"), region=s3.get("region"), profile=s3.get("profile"))
