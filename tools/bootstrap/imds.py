"""The instance metadata service, version 2: a token is asked for first, which a fooled web server cannot do.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
"""

from __future__ import annotations

import json
import os
import time

from .failure import Failure, NotThere, Temporary

ADDRESS = "http://169.254.169.254"
_BYTES_MAX = 64 << 10
_TOKEN_S = 21600
_TIMEOUT_S = 5.0
_TRIES = 5


class Metadata:
    """``is_v1``: ask without a token, as only version 1 allows."""

    def __init__(self, *, is_v1: bool = False) -> None:
        self._address = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", ADDRESS).rstrip("/")
        self._is_v1 = is_v1
        self._token = ""

    def user_data(self, bytes_max: int) -> bytes:
        return self._get("/latest/user-data", bytes_max)

    def region(self) -> str:
        return self._get("/latest/meta-data/placement/region", 256).decode("ascii", "replace").strip()

    def credentials(self) -> tuple[str, str, str]:
        """(access key, secret key, session token) of the instance's role; NotThere where it has none."""
        base = "/latest/meta-data/iam/security-credentials/"
        role = self._get(base, 4096).decode("ascii", "replace").split("\n")[0].strip()
        try:
            found = json.loads(self._get(base + role, _BYTES_MAX))
            keys = found["AccessKeyId"], found["SecretAccessKey"], found["Token"]
        except (ValueError, KeyError, TypeError):
            raise Failure("the instance's role has no credentials that can be read") from None
        if not all(isinstance(key, str) and key.isprintable() for key in keys):
            raise Failure("the instance's role has no credentials that can be read")
        return keys

    def _get(self, path: str, bytes_max: int) -> bytes:
        what = f"instance metadata {path}"
        for number in range(_TRIES):
            try:
                headers = {} if self._is_v1 else {"X-aws-ec2-metadata-token": self._a_token()}
                return self._ask("GET", path, headers, what, bytes_max)
            except Temporary:
                if number == _TRIES - 1:
                    raise
                time.sleep(0.2 * 2**number)
        raise AssertionError("the last try raises")

    def _a_token(self) -> str:
        if not self._token:
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}
            try:
                said = self._ask("PUT", "/latest/api/token", headers, "instance metadata token", 4096)
            except (NotThere, Temporary):
                raise
            except Failure as error:
                raise Failure(
                    "the instance metadata service gives no token", "version 1 is refused; --imds v1 takes it"
                ) from error
            text = said.decode("ascii", "replace")
            if not text or not text.isprintable():
                raise Failure("the instance metadata service gives no token that can be used")
            self._token = text
        return self._token

    def _ask(self, method: str, path: str, headers: dict[str, str], what: str, bytes_max: int) -> bytes:
        # Half of what this program takes to import; it may have a file to read and need nobody.
        from .http import answer, pieces

        deadline = time.monotonic() + _TIMEOUT_S
        with answer(method, self._address + path, headers, what, deadline) as response:
            return b"".join(pieces(response, bytes_max, deadline, what))
