"""Which EC2 instance this is, from the instance metadata service, version 2 (EC2 User Guide, "Retrieve instance
metadata")."""

from __future__ import annotations

import re
import urllib.request
from http.client import HTTPException

from synclib.errors import Unavailable

ENDPOINT = "http://169.254.169.254"
_TIMEOUT_S = 2.0
_BYTES_MAX = 256
_TOKEN_S = "300"
_WORD = re.compile(r"[A-Za-z0-9-]{1,64}")


def instance_and_zone(endpoint: str) -> tuple[str, str]:
    """(id, availability zone). Unavailable where nobody answers, as on any other machine."""
    token = _ask(endpoint, "PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": _TOKEN_S})
    headers = {"X-aws-ec2-metadata-token": token}
    found = [
        _ask(endpoint, "GET", f"/latest/meta-data/{name}", headers)
        for name in ("instance-id", "placement/availability-zone")
    ]
    for word in found:
        if not _WORD.fullmatch(word):
            raise Unavailable(f"the instance metadata service says {word[:80]!r}")
    return found[0], found[1]


def _ask(endpoint: str, method: str, path: str, headers: dict[str, str]) -> str:
    # No proxy: the answer is of this very machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        request = urllib.request.Request(endpoint.rstrip("/") + path, method=method, headers=headers)
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            said: bytes = answer.read(_BYTES_MAX)
    except (OSError, ValueError, HTTPException) as error:
        raise Unavailable(
            f"the instance metadata service does not answer: {error}",
            hint="EBS volumes can be attached to EC2 instances alone",
        ) from error
    text = said.decode("ascii", "replace").strip()
    if not text.isprintable():
        raise Unavailable("the instance metadata service says what cannot be read")
    return text
