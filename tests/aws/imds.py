"""The instance metadata service, version 2, of one instance: a token by PUT first, then what it may know by GET (EC2
User Guide, "Use the Instance Metadata Service to access instance metadata")."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from synclib.clock import Clock
from tests.aws.records import REGION, moment
from tests.aws.server import serving
from tests.aws.signature import RawRequest

TOKEN_S_MAX = 21_600
_TOKEN, _TTL = "x-aws-ec2-metadata-token", "x-aws-ec2-metadata-token-ttl-seconds"
_TEXT = {"Content-Type": "text/plain"}
_CREDENTIALS_LAST = timedelta(hours=6)

Answer = tuple[int, dict[str, str], bytes]
Keys = tuple[str, str, str]  # access key, secret key, session token


class Metadata:
    """``options``: MetadataOptions of RunInstances. ``values``: text by path below meta-data. ``role``: the name of the
    instance's role and what gives its keys, or none."""

    def __init__(
        self,
        clock: Clock,
        options: Mapping[str, Any],
        user_data: bytes,
        values: Mapping[str, str],
        role: tuple[str, Callable[[], Keys]] | None = None,
    ) -> None:
        self._clock = clock
        self._options = options
        self._user_data = user_data
        self._values = values
        self._role = role
        self._tokens: dict[str, float] = {}

    def answer(self, request: RawRequest) -> Answer:
        """(status, headers, body)."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        if self._options.get("HttpEndpoint", "enabled") != "enabled":
            return 403, _TEXT, b""
        if request.path == "/latest/api/token":
            return self._token(request.method, headers)
        if request.method != "GET":
            return 405, _TEXT, b""
        is_known = self._tokens.get(headers.get(_TOKEN, ""), float("-inf")) > self._clock.monotonic()
        # A token that is wrong is refused even where none is needed.
        if not is_known and (_TOKEN in headers or self._options.get("HttpTokens", "optional") == "required"):
            return 401, _TEXT, b""
        found = self._found(request.path)
        return (404, _TEXT, b"") if found is None else (200, _TEXT, found)

    def _token(self, method: str, headers: Mapping[str, str]) -> Answer:
        """Whoever comes through a proxy gets none."""
        seconds = headers.get(_TTL, "")
        if method != "PUT":
            return 405, _TEXT, b""
        if "x-forwarded-for" in headers:
            return 403, _TEXT, b""
        if not seconds.isdigit() or not 1 <= int(seconds) <= TOKEN_S_MAX:
            return 400, _TEXT, b""
        token = secrets.token_urlsafe(32)
        self._tokens[token] = self._clock.monotonic() + int(seconds)
        return 200, {**_TEXT, _TTL: seconds}, token.encode()

    def _found(self, path: str) -> bytes | None:
        if path == "/latest/user-data":
            return self._user_data or None
        root, credentials = "/latest/meta-data/", "/latest/meta-data/iam/security-credentials/"
        if path.startswith(credentials):
            return self._credentials(path.removeprefix(credentials))
        text = self._values.get(path.removeprefix(root)) if path.startswith(root) else None
        return None if text is None else text.encode()

    def _credentials(self, name: str) -> bytes | None:
        if self._role is None or name not in ("", self._role[0]):
            return None
        if not name:
            return self._role[0].encode()
        access_key, secret_key, token = self._role[1]()
        now = moment(self._clock.wall_ns())
        told = {
            "Code": "Success",
            "LastUpdated": _text(now),
            "Type": "AWS-HMAC",
            "AccessKeyId": access_key,
            "SecretAccessKey": secret_key,
            "Token": token,
            # The instance's programs know the machine's time, not the stand-in's.
            "Expiration": _text(max(now, datetime.now(UTC)) + _CREDENTIALS_LAST),
        }
        return json.dumps(told).encode()


@contextmanager
def metadata_service(metadata: Metadata) -> Iterator[str]:
    """Yields its address; AWS_EC2_METADATA_SERVICE_ENDPOINT leads programs there."""
    with serving(metadata.answer) as endpoint:
        yield endpoint


def place_of(instance_id: str, kind: str, zone: str, address: str, image_id: str) -> dict[str, str]:
    """What an instance can read of itself, by path."""
    return {
        "ami-id": image_id,
        "instance-id": instance_id,
        "instance-type": kind,
        "local-ipv4": address,
        "placement/availability-zone": zone,
        "placement/region": REGION,
    }


def _text(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")
