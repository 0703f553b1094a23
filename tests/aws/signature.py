"""Signature Version 4, checked: who asks is known by a signature, not by a name (AWS general reference, SigV4)."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote

from tests.aws.refusal import Refused

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/(?P<date>\d{8})/(?P<region>[^/]+)/(?P<service>[^/]+)/aws4_request, ?"
    r"SignedHeaders=(?P<headers>[a-z0-9;-]+), ?Signature=(?P<signature>[0-9a-f]{64})"
)


@dataclass(frozen=True)
class Signed:
    access_key: str
    region: str
    service: str
    session_token: str


@dataclass(frozen=True)
class RawRequest:
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


def check_signature(request: RawRequest, secrets: Mapping[str, str]) -> Signed:
    """Who signed a request, for which service; Refused where the signature is not theirs."""
    headers = {name.lower(): " ".join(value.split()) for name, value in request.headers.items()}
    found = _AUTHORIZATION.fullmatch(headers.get("authorization", ""))
    if found is None:
        raise Refused("MissingAuthenticationToken", "Request is missing Authentication Token", status=403)
    if found["key"] not in secrets:
        raise Refused("AuthFailure", "AWS was not able to validate the provided access credentials", status=401)
    names = found["headers"].split(";")
    if "host" not in names or any(name not in headers for name in names):
        raise Refused("SignatureDoesNotMatch", "'Host' or a named header is not there", status=403)
    body_digest = hashlib.sha256(request.body).hexdigest()
    said_digest = headers.get("x-amz-content-sha256", body_digest)
    if said_digest not in (body_digest, "UNSIGNED-PAYLOAD"):
        raise Refused("SignatureDoesNotMatch", "the body is not what was signed", status=403)
    pairs = sorted((quote(k, safe="-_.~"), quote(v, safe="-_.~")) for k, v in parse_qsl(request.query, True))
    canonical = "\n".join(
        [
            request.method,
            quote(request.path, safe="/-_.~"),
            "&".join(f"{key}={value}" for key, value in pairs),
            *(f"{name}:{headers[name]}" for name in names),
            "",
            found["headers"],
            said_digest,
        ]
    )
    scope = f"{found['date']}/{found['region']}/{found['service']}/aws4_request"
    to_sign = "\n".join(
        ["AWS4-HMAC-SHA256", headers.get("x-amz-date", ""), scope, hashlib.sha256(canonical.encode()).hexdigest()]
    )
    key = f"AWS4{secrets[found['key']]}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    if not hmac.compare_digest(hmac.digest(key, to_sign.encode(), "sha256").hex(), found["signature"]):
        raise Refused("SignatureDoesNotMatch", "The request signature does not match", status=403)
    if "x-amz-security-token" in headers and "x-amz-security-token" not in names:
        raise Refused("SignatureDoesNotMatch", "the session token is not signed", status=403)
    return Signed(found["key"], found["region"], found["service"], headers.get("x-amz-security-token", ""))
