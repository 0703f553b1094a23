"""``s3://bucket/prefix``: Amazon S3 and servers that speak like it.

Bytes go through obstore, which needs a fifth of boto3's CPU a request (docs/decisions/0003-obstore.md); credentials,
conditional deletes, large conditional writes and buckets through boto3. Neither retries: that is retry.py's part, so
that a conditional write whose answer was lost is never sent again as if it were new.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, cast

import obstore
from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import GenericError, NotModifiedError
from obstore.store import S3Store as Client

from synclib.errors import Conflict, Corrupt, Invalid, Unavailable, Unsupported
from synclib.store.base import Body, Buffer, Fetched, ObjectInfo
from synclib.store.keys import check_key, is_key
from synclib.store.s3_errors import reply_of, translate, translated

PUT_BYTES_MAX = 64 << 20  # what one PUT may hold in memory; larger files go in parts
PART_BYTES = 16 << 20
QUICK_BYTES = 1 << 20
SINGLE_PUT_BYTES_MAX = 5 << 30  # S3's limit
PAGE_KEYS = 1000  # S3's page, so that no page is fetched before it is needed
_PARTS_IN_FLIGHT = 4
_CONTENDED_TRIES = 4
# boto3 renews credentials that have less than 10 minutes left, so none is used after its end.
_CREDENTIALS_TTL = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds: to connect; to the first byte of an answer and from byte to byte; for a whole request.

    HTTP clients count sending a body as waiting for the answer, so ``silence_s`` holds for small bodies only; large
    ones have ``request_s``.
    """

    connect_s: float = 5.0
    silence_s: float = 20.0
    request_s: float = 300.0


def _environment_keys() -> dict[str, str]:
    """The keys that boto3's chain of credentials looks for first; empty where there are none (boto3 documentation,
    "Credentials", environment variables)."""
    access, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not access or not secret:
        return {}
    keys = {"access_key_id": access, "secret_access_key": secret}
    token = os.environ.get("AWS_SESSION_TOKEN")
    return {**keys, "session_token": token} if token else keys


def put_requests(size: int) -> int:
    """How many requests a write of a file of ``size`` bytes takes."""
    return 1 if size <= PUT_BYTES_MAX else 2 + -(-size // PART_BYTES)


class S3Store:
    """The objects of ``bucket`` whose keys begin with ``prefix`` and ``/``."""

    # obstore has one set of threads a process, and a fork leaves them behind: whoever then asks waits for ever,
    # even by a client made after the fork. So the process that first used it is remembered, once for all stores.
    _process: ClassVar[int | None] = None

    def __init__(
        self,
        bucket: str,
        prefix: str,
        *,
        endpoint: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        deadlines: Deadlines = Deadlines(),
    ) -> None:
        self.bucket = bucket
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._root = f"{prefix}/" if prefix else ""
        self._endpoint = endpoint
        self._deadlines = deadlines
        self._client_lock = threading.Lock()
        self._admin_client: Any = None
        self._profile = profile
        self._region = region or ""
        self._keys = _environment_keys() if profile is None and (region or endpoint) else {}
        if not self._keys:
            self._region = self._session.region_name or ""
        self._region = self._region or "us-east-1"
        self._quick = self._open(deadlines.silence_s)

    @functools.cached_property
    def _bulk(self) -> Client:
        """For answers that may be long in coming. Made when it is needed: each client takes some 10 ms."""
        return self._open(self._deadlines.request_s)

    @functools.cached_property
    def _session(self) -> Any:
        """boto3's session, with credentials. Imported when it is needed: it takes a quarter of a second."""
        import boto3

        try:
            session = boto3.Session(profile_name=self._profile, region_name=self._region or None)
            credentials = session.get_credentials()
        except (BotoCoreError, ClientError) as error:
            raise translate(error, "") from error
        if credentials is None:
            raise Invalid(
                "there are no AWS credentials",
                hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role",
            )
        return session

    def _credential_provider(self) -> Any:
        """None where the environment holds keys: those do not change."""
        if self._keys:
            return None
        from obstore.auth.boto3 import Boto3CredentialProvider

        return Boto3CredentialProvider(self._session, ttl=_CREDENTIALS_TTL)

    def _open(self, silence_s: float) -> Client:
        config: dict[str, Any] = {"region": self._region, "disable_bulk_delete": True, **self._keys}
        if self._endpoint is not None:
            config["endpoint"] = self._endpoint
        else:
            config["virtual_hosted_style_request"] = "." not in self.bucket
        return Client(
            self.bucket,
            config=cast(Any, config),
            client_options={
                "allow_http": self._endpoint is not None and self._endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=self._deadlines.connect_s),
                "read_timeout": timedelta(seconds=silence_s),
                "timeout": timedelta(seconds=self._deadlines.request_s),
            },
            retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=self._deadlines.request_s)},
            credential_provider=self._credential_provider(),
        )

    @property
    def _client(self) -> Any:
        """boto3's client: made when it is first needed, for it takes a third of a second."""
        with self._client_lock:
            if self._admin_client is None:
                from botocore.config import Config

                self._admin_client = self._session.client(
                    "s3",
                    region_name=self._region,
                    endpoint_url=self._endpoint,
                    config=Config(
                        connect_timeout=self._deadlines.connect_s,
                        read_timeout=self._deadlines.silence_s,
                        retries={"total_max_attempts": 1},
                        request_checksum_calculation="when_required",
                        response_checksum_validation="when_required",
                        s3={"addressing_style": "path" if self._endpoint else "auto"},
                    ),
                )
            return self._admin_client

    def _objects(self, sent_bytes: int = 0) -> Client:
        """The client for a request whose body has ``sent_bytes``."""
        if S3Store._process is None:
            S3Store._process = os.getpid()
        if S3Store._process != os.getpid():
            raise RuntimeError("S3 was used before this process was forked: start workers by spawn or forkserver")
        return self._quick if sent_bytes <= QUICK_BYTES else self._bulk

    def _full(self, key: str) -> str:
        return self._root + check_key(key)

    def create_bucket(self) -> None:
        """Make the bucket; no error when it is there and ours."""
        location = {} if self._region == "us-east-1" else {"LocationConstraint": self._region}
        try:
            arguments = {"CreateBucketConfiguration": location} if location else {}
            self._client.create_bucket(Bucket=self.bucket, **arguments)
        except ClientError as error:
            if reply_of(error).code != "BucketAlreadyOwnedByYou":
                raise translate(error, "") from error
        except BotoCoreError as error:
            raise translate(error, "") from error

    def get(self, key: str, *, size_max: int, if_none_match: str | None = None) -> Fetched | None:
        full = self._full(key)
        with translated(key):
            try:
                options: Any = {} if if_none_match is None else {"if_none_match": if_none_match}
                result = obstore.get(self._objects(), full, options=options)
            except NotModifiedError:
                return None
            size = result.meta["size"]
            if size > size_max:
                raise Corrupt(f"it has {size} bytes, {size_max} is the most that is expected", key=key)
            data = bytes(result.bytes())
        return Fetched(_whole(data, size, key), _etag(result.meta["e_tag"], key), size)

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        full = self._full(key)
        for start, stop in ranges:
            if not 0 <= start < stop:
                raise Corrupt(f"bytes {start} to {stop} are in no object", key=key)
        if not ranges:
            return []
        starts, stops = [start for start, _ in ranges], [stop for _, stop in ranges]
        with translated(key):
            found = obstore.get_ranges(self._objects(), full, starts=starts, ends=stops, coalesce=0)
        # A copy would cost more than the transfer: docs/decisions/0003-obstore.md.
        data: list[Buffer] = [memoryview(part) for part in found]
        for (start, stop), part in zip(ranges, data, strict=True):
            if len(part) != stop - start:
                raise Corrupt(f"bytes {start} to {stop} are not in it: {len(part)} came", key=key)
        return data

    def get_suffix(self, key: str, length: int) -> Fetched:
        full = self._full(key)
        with translated(key):
            try:
                result = obstore.get(self._objects(), full, options={"range": {"suffix": length}})
                data = bytes(result.bytes())
            except GenericError as error:
                return self._empty(key, full, error)
        size = result.meta["size"]
        return Fetched(_whole(data, min(length, size), key), _etag(result.meta["e_tag"], key), size)

    def _empty(self, key: str, full: str, error: GenericError) -> Fetched:
        """An empty object has no last bytes: servers answer 416, or 200 with nothing."""
        reply = reply_of(error)
        if reply.status == 416 or "non-partial response" in reply.text:
            found = obstore.head(self._objects(), full)
            if found["size"] == 0:
                return Fetched(b"", _etag(found["e_tag"], key), 0)
        raise translate(error, key) from error

    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        full = self._full(key)
        is_conditional = if_absent or if_match is not None
        if not isinstance(body, Path):
            return self._put(key, full, bytes(body), if_absent, if_match)
        size = os.stat(body).st_size
        if size <= PUT_BYTES_MAX:
            return self._put(key, full, body.read_bytes(), if_absent, if_match)
        if is_conditional:
            return self._put_streamed(key, full, body, size, if_absent, if_match)
        with translated(key):
            result = obstore.put(
                self._objects(size),
                full,
                body,
                use_multipart=True,
                chunk_size=PART_BYTES,
                max_concurrency=_PARTS_IN_FLIGHT,
            )
        return _etag(result["e_tag"], key)

    def _put(self, key: str, full: str, data: bytes, if_absent: bool, if_match: str | None) -> str:
        is_conditional = if_absent or if_match is not None
        mode: Any = "create" if if_absent else "overwrite" if if_match is None else {"e_tag": if_match}
        for tries_left in reversed(range(_CONTENDED_TRIES)):
            try:
                with translated(key, is_conditional=is_conditional):
                    result = obstore.put(self._objects(len(data)), full, data, mode=mode, use_multipart=False)
                return _etag(result["e_tag"], key)
            except Conflict as conflict:
                # 409: it was not decided because others were writing; nothing was done, so ask again.
                cause = conflict.__cause__
                if not tries_left or not isinstance(cause, Exception) or reply_of(cause).status != 409:
                    raise
        raise AssertionError("the last try returns or raises")

    def _put_streamed(self, key: str, full: str, body: Path, size: int, if_absent: bool, if_match: str | None) -> str:
        """A large file under a condition: one PUT by boto3, which streams it; obstore would hold it in memory."""
        if size > SINGLE_PUT_BYTES_MAX:
            raise Unsupported(f"S3 takes no conditional write of {size} bytes", key=key)
        condition = {"IfNoneMatch": "*"} if if_absent else {"IfMatch": if_match}
        with open(body, "rb") as source, translated(key, is_conditional=True):
            answer = self._client.put_object(Bucket=self.bucket, Key=full, Body=source, **condition)
        return _etag(answer.get("ETag"), key)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        full = self._full(key)
        if if_match is None:
            with translated(key):
                obstore.delete(self._objects(), full)
            return
        try:
            self._client.delete_object(Bucket=self.bucket, Key=full, IfMatch=if_match)
        except (ClientError, BotoCoreError) as error:
            if reply_of(error).code != "NoSuchKey":
                raise translate(error, key, is_conditional=True) from error

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """S3 lists in byte order; a server that does not is refused, for a listing could not be resumed."""
        directory = prefix.rpartition("/")[0]
        if directory and not is_key(directory):
            return
        within = self._full(directory) if directory else self._root.rstrip("/")
        start = _start(prefix, after)
        last = b""
        with translated(prefix):
            offset = self._root + start if start else None
            for page in obstore.list(self._objects(), within or None, offset=offset, chunk_size=PAGE_KEYS):
                for found in page:
                    key = found["path"].removeprefix(self._root)
                    encoded = key.encode()
                    if encoded <= last and found["size"] == 0:
                        continue  # a console's folder, `name/`, which obstore gives as `name`
                    if encoded <= last:
                        raise Unsupported("the server's listing is not in order", key=key)
                    last = encoded
                    if key.startswith(prefix):
                        if encoded > after.encode():
                            yield ObjectInfo(key, found["size"], _etag(found["e_tag"], key))
                    elif encoded > prefix.encode():
                        return


def _start(prefix: str, after: str) -> str:
    """A key that all keys of the listing are greater than, so that S3 begins near the first; or nothing.

    obstore's listings know whole directories only, so the rest of a prefix is told as a key just before it.
    """
    name = prefix.rpartition("/")[2]
    starts = [start for start in (prefix[:-1] if len(name) > 1 else "", after.rstrip("/")) if is_key(start)]
    return max(starts, key=str.encode, default="")


def _whole(data: bytes, size: int, key: str) -> bytes:
    if len(data) != size:
        raise Unavailable(f"{len(data)} bytes came where {size} were said", key=key)
    return data


def _etag(etag: str | None, key: str) -> str:
    if not etag:
        raise Unsupported("the server gives no etag", key=key)
    return etag
