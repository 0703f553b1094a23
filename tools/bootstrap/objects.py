"""The store as a first boot needs it: one object, whole and bounded, from ``file://`` or ``s3://``."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import unquote

from .failure import AlreadyThere, Failure, NotThere, Temporary
from .imds import Metadata
from .sigv4 import Credentials, quoted, signed_headers

T = TypeVar("T")

TRIES = 5
SMALL_S = 60.0
_PIECE_BYTES = 1 << 20


class Objects(Protocol):
    region: str  # empty where there is none

    def pieces(self, key: str, bytes_max: int, deadline: float) -> Iterator[bytes]:
        """An object's bytes; NotThere, Temporary or Failure."""

    def put_new(self, key: str, data: bytes) -> None:
        """Make an object where there is none; AlreadyThere, Temporary or Failure."""


def open_objects(url: str, metadata: Metadata) -> Objects:
    scheme, _, rest = url.partition("://")
    if scheme == "file":
        return FileObjects(unquote(rest))
    bucket, _, prefix = rest.partition("/")
    return S3Objects(bucket, prefix.strip("/"), metadata)


def get(objects: Objects, key: str, bytes_max: int) -> bytes:
    """A small object."""
    return _tried(lambda: b"".join(objects.pieces(key, bytes_max, time.monotonic() + SMALL_S)))


def download(objects: Objects, key: str, path: Path, sha256: str, bytes_max: int, deadline: float) -> None:
    """An object into a file, flushed. Failure where it is not the one that was promised."""

    def once() -> None:
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for piece in objects.pieces(key, bytes_max, deadline):
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != sha256:
            raise Temporary(f"{key} is not what was promised: its SHA-256 is another")

    try:
        _tried(once)
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}", "make room") from error


def _tried(call: Callable[[], T]) -> T:
    for number in range(TRIES):
        try:
            return call()
        except Temporary:
            if number == TRIES - 1:
                raise
            time.sleep(0.3 * 2**number)
    raise AssertionError("the last try raises")


class FileObjects:
    """A store in a directory (synclib/store/file_names.py): the keys of a release are their own paths there."""

    region = ""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def pieces(self, key: str, bytes_max: int, deadline: float) -> Iterator[bytes]:
        path = os.path.join(self._directory, key)
        try:
            with open(path, "rb") as file:
                got = 0
                while piece := file.read(_PIECE_BYTES):
                    got += len(piece)
                    if got > bytes_max:
                        raise Failure(f"{key}: it is longer than {bytes_max} bytes")
                    yield piece
        except (FileNotFoundError, NotADirectoryError):
            raise NotThere(f"{key}: there is none") from None
        except OSError as error:
            raise Failure(f"{key}: {error.strerror}", "see the rights of the store's directory") from None

    def put_new(self, key: str, data: bytes) -> None:
        path = Path(self._directory) / key
        if not os.path.isdir(self._directory):
            raise NotThere(f"{key}: there is no store", "is it mounted?")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # No key is written with this in its name: no listing shows it.
            temporary = path.with_name(f"{path.name}%{os.getpid()}")
            temporary.write_bytes(data)
            try:
                os.link(temporary, path)
            finally:
                temporary.unlink()
        except FileExistsError:
            raise AlreadyThere(f"{key}: there is one") from None
        except OSError as error:
            raise Failure(f"{key}: {error.strerror}", "see the rights of the store's directory") from None


class S3Objects:
    """A bucket, by the endpoint of the environment where it names one, else by AWS's own address for it."""

    def __init__(self, bucket: str, prefix: str, metadata: Metadata) -> None:
        environ = os.environ
        self._metadata = metadata
        self.region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or ""
        endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or ""
        if not self.region:
            self.region = "us-east-1" if endpoint else metadata.region()
        path = f"{prefix}/" if prefix else ""
        if endpoint or "." in bucket:
            # A dot in the name would not be covered by the certificate.
            self._base = endpoint.rstrip("/") or f"https://s3.{self.region}.amazonaws.com"
            self._path = f"/{bucket}/{path}"
        else:
            self._base = f"https://{bucket}.s3.{self.region}.amazonaws.com"
            self._path = f"/{path}"
        self._credentials: Credentials | None = None

    def pieces(self, key: str, bytes_max: int, deadline: float) -> Iterator[bytes]:
        from .http import answer, pieces

        path, headers = self._signed("GET", key)
        with answer("GET", self._base + path, headers, key, deadline) as response:
            yield from pieces(response, bytes_max, deadline, key)

    def put_new(self, key: str, data: bytes) -> None:
        from .http import answer

        path, headers = self._signed("PUT", key, data, {"if-none-match": "*"})
        with answer("PUT", self._base + path, headers, key, time.monotonic() + SMALL_S, data):
            pass

    def _signed(
        self, method: str, key: str, body: bytes = b"", further: Mapping[str, str] | None = None
    ) -> tuple[str, dict[str, str]]:
        """The path, and the headers."""
        path = quoted(self._path + key)
        host = self._base.partition("://")[2]
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        return path, signed_headers(host, path, self.region, self._who(), stamp, further, method, body)

    def _who(self) -> Credentials:
        if self._credentials is None:
            environ = os.environ
            keys = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
            if keys[0] and keys[1]:
                self._credentials = Credentials(keys[0], keys[1], environ.get("AWS_SESSION_TOKEN", ""))
            else:
                try:
                    self._credentials = Credentials(*self._metadata.credentials())
                except NotThere as error:
                    raise Failure("there are no credentials for the store", "give the instance a profile") from error
        return self._credentials
