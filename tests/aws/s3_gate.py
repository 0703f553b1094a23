"""What stands before a real S3 server: each request's signature, and its sender's policy, by method and path (service
authorization reference, S3). What a policy does not allow is answered with 403 and noted; all else goes on as it is."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, quote

from tests.aws.iam import Access
from tests.aws.least import Noted
from tests.aws.refusal import Refused
from tests.aws.server import serving
from tests.aws.signature import RawRequest, check_signature
from tests.aws.standin import Identity

_BODY_BYTES_MAX = 64 << 20
_OF_CONNECTION = {"connection", "transfer-encoding", "content-length", "date", "server"}

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Gate:
    """``asked``: (who, action) of what was allowed, ``noted``: each right that was needed for it. ``refused``: who
    asked for what no policy of theirs allows, or was not known. ``fails``: which requests S3 cannot answer."""

    endpoint: str
    upstream: str
    people: Sequence[Identity]
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    noted: Noted = field(default_factory=Noted)
    fails: Callable[[RawRequest], bool] = lambda request: False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, request: RawRequest) -> Answer:
        try:
            who = self._who(request)
            accesses = s3_rights(request)
            self._check(who, accesses)
            if self.fails(request):
                return 500, {}, b""
            found = self._passed_on(request)
            if found[0] == 404 and request.method == "GET":
                # That a key is not there is told only to who may list it (API reference, GetObject, "Permissions").
                self._check(who, [_listing(*_named(request))])
        except Refused as refused:
            with self._lock:
                self.refused.append(f"{request.method} {request.path}?{request.query}: {refused}")
            text = f"<Error><Code>{refused.code}</Code><Message>{refused.message}</Message></Error>"
            return 403, {"Content-Type": "application/xml"}, text.encode()
        with self._lock:
            self.asked.update((who.name, access.action) for access in accesses)
        return found

    def _who(self, request: RawRequest) -> Identity:
        signed = check_signature(request, {who.access_key: who.secret_key for who in self.people})
        who = next(who for who in self.people if who.access_key == signed.access_key)
        if signed.service != "s3" or signed.session_token != who.session_token:
            raise Refused("InvalidToken", f"{who.name}: not the session token of these keys, or not of S3")
        return who

    def _check(self, who: Identity, accesses: Sequence[Access]) -> None:
        refused = who.policy.refused(accesses)
        if refused is not None:
            raise Refused("AccessDenied", f"{who.name} may not {refused.action} {refused.resource} {refused.context}")
        self.noted.add(who.name, accesses)

    def _passed_on(self, request: RawRequest) -> Answer:
        host = self.upstream.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=60)
        target = quote(request.path, safe="/-_.~") + (f"?{request.query}" if request.query else "")
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        try:
            connection.request(request.method, target, request.body or None, {**headers, "Host": host})
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        kept = {name: value for name, value in response.getheaders() if name.lower() not in _OF_CONNECTION}
        return response.status, kept, body


def s3_rights(request: RawRequest) -> list[Access]:
    """What a request needs; Refused for one that none of ours should be."""
    bucket, key = _named(request)
    query = parse_qs(request.query, keep_blank_values=True)
    if not key:
        if request.method == "GET" and query.get("list-type") == ["2"]:
            return [_listing(bucket, query.get("prefix", [""])[0])]
        raise Refused("AccessDenied", "nobody asks this of a bucket")
    match request.method:
        case "GET":
            actions = ["s3:GetObject"]
        case "PUT" | "POST" if request.method == "PUT" or {"uploads", "uploadId"} & set(query):
            actions = ["s3:PutObject"]
        case "DELETE" if "uploadId" in query:
            actions = ["s3:AbortMultipartUpload"]
        case "DELETE":
            # A condition reads what it deletes (User Guide, "How to perform conditional deletes").
            is_conditional = "if-match" in {name.lower() for name in request.headers}
            actions = ["s3:DeleteObject", *(["s3:GetObject"] if is_conditional else [])]
        case _:
            raise Refused("AccessDenied", "nobody asks this of an object")
    return [Access(action, f"arn:aws:s3:::{bucket}/{key}") for action in actions]


def _named(request: RawRequest) -> tuple[str, str]:
    """(bucket, key) of a path-style request."""
    bucket, _, key = request.path.lstrip("/").partition("/")
    return bucket, key


def _listing(bucket: str, prefix: str) -> Access:
    return Access("s3:ListBucket", f"arn:aws:s3:::{bucket}", {"s3:prefix": prefix})


@contextmanager
def running_gate(upstream: str, people: Sequence[Identity]) -> Iterator[Gate]:
    """``upstream``: the S3 server's URL. ``people``: everybody whose keys count."""
    gate = Gate("", upstream, people)
    with serving(gate.answer, body_bytes_max=_BODY_BYTES_MAX) as gate.endpoint:
        yield gate
