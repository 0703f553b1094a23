"""S3's failures as kinds, by a table: first the error code (API reference, "Error responses"), then the status.

obstore and boto3 report the same answer in different clothes; :func:`reply_of` undresses both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
)
from obstore.exceptions import BaseError, InvalidPathError, UnauthenticatedError

from synclib.errors import Ambiguous, BoxlinkError, Conflict, Corrupt, Full, Invalid, Missing, Unavailable, Unsupported
from synclib.store.outcome import NotApplied

_CREDENTIALS = "check the credentials (aws sts get-caller-identity), and that they are for this endpoint"
_RIGHTS = (
    "the credentials lack a right (docs/stores.md), or there is no such object: "
    "S3 answers 403 for a missing key to those who may not list the bucket"
)
_BUCKET = "check the name, or make it: boxlink init --create-bucket"
_REGION = "set the bucket's region: AWS_REGION, or region in boxlink.toml"
_CLOCK = "set this machine's clock (NTP): signatures hold for 15 minutes"
_NAMES = "this server keeps objects as files: no object may stand where others have their directory"

_CODES: dict[str, tuple[type[BoxlinkError], str]] = {
    "NoSuchKey": (Missing, ""),
    "NoSuchBucket": (Missing, _BUCKET),
    "PreconditionFailed": (Conflict, ""),
    "ConditionalRequestConflict": (Conflict, ""),
    "InvalidRange": (Corrupt, ""),
    "SlowDown": (NotApplied, ""),
    "ServiceUnavailable": (NotApplied, ""),
    "TooManyRequests": (NotApplied, ""),
    "RequestTimeout": (Unavailable, ""),
    "OperationAborted": (Unavailable, ""),
    "IncompleteBody": (NotApplied, ""),
    "InternalError": (Unavailable, ""),
    "AccessDenied": (Invalid, _RIGHTS),
    "AllAccessDisabled": (Invalid, _RIGHTS),
    "InvalidAccessKeyId": (Invalid, _CREDENTIALS),
    "SignatureDoesNotMatch": (Invalid, _CREDENTIALS),
    "ExpiredToken": (Invalid, _CREDENTIALS),
    "InvalidToken": (Invalid, _CREDENTIALS),
    "TokenRefreshRequired": (Invalid, _CREDENTIALS),
    "XAdminUserNotFound": (Invalid, _CREDENTIALS),
    "RequestTimeTooSkewed": (Invalid, _CLOCK),
    "PermanentRedirect": (Invalid, _REGION),
    "AuthorizationHeaderMalformed": (Invalid, _REGION),
    "IllegalLocationConstraintException": (Invalid, _REGION),
    "ExistingObjectIsDirectory": (Invalid, _NAMES),
    "ObjectParentIsFile": (Invalid, _NAMES),
    "EntityTooLarge": (Unsupported, ""),
    "NotImplemented": (Unsupported, ""),
    "QuotaExceeded": (Full, "raise the quota, or free space"),
    "XMinioStorageFull": (Full, "free space"),
}
_STATUSES: dict[int, tuple[type[BoxlinkError], str]] = {
    400: (Invalid, ""),
    401: (Invalid, _CREDENTIALS),
    403: (Invalid, _RIGHTS),
    404: (Missing, ""),
    408: (Unavailable, ""),
    409: (Unavailable, ""),
    412: (Conflict, ""),
    416: (Corrupt, ""),
    429: (NotApplied, ""),
    501: (Unsupported, ""),
    507: (Full, "free space"),
}

_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9.]{1,64})</Code>")
_NEVER_SENT = re.compile(r"HttpError \{\s+kind: Connect\b")
_REDIRECTED = "redirect without LOCATION"
_CONFIGURATION = (NoCredentialsError, PartialCredentialsError, ProfileNotFound, TokenRetrievalError)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered; status 0 when it did not."""

    status: int
    code: str
    text: str
    was_sent: bool = True


def reply_of(error: Exception) -> Reply:
    if isinstance(error, ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return Reply(status, str(error.response.get("Error", {}).get("Code", "")), str(error))
    text = str(error)
    first_line = text.partition("\n")[0][:300]
    if isinstance(error, BotoCoreError):
        was_sent = not isinstance(error, EndpointConnectionError | ConnectTimeoutError)
        return Reply(0, "", first_line, was_sent)
    status_found, code_found = _STATUS.search(text), _CODE.search(text)
    status = int(status_found[1]) if status_found else 0
    code = code_found[1] if code_found and status else ""
    return Reply(status, code, first_line, _NEVER_SENT.search(text) is None)


_UNREACHED = "is the endpoint right (AWS_ENDPOINT_URL) and reachable from here? then try again"


def translate(error: Exception, key: str, *, is_conditional: bool = False) -> BoxlinkError:
    """The kind of a failure of obstore or boto3.

    A conditional write is Ambiguous unless the answer, or its never having been sent, says that nothing was done.
    """
    if isinstance(error, (*_CONFIGURATION, CredentialRetrievalError, UnauthenticatedError)):
        return Invalid(f"no usable credentials: {str(error)[:300]}", key=key, hint=_CREDENTIALS)
    if isinstance(error, InvalidPathError):
        return Invalid(
            "the bucket holds an object whose key is no key here", key=key, hint=str(error).partition("\n")[0]
        )
    reply = reply_of(error)
    if _REDIRECTED in reply.text:
        return Invalid("the bucket is in another region", key=key, hint=_REGION)
    kind, hint = _kind(reply)
    if is_conditional and kind is Missing and not hint:
        kind = Conflict  # If-Match on a key that is gone
    if is_conditional and kind is Unavailable:
        kind = Conflict if reply.status == 409 else Ambiguous
    return kind(_message(kind, reply), key=key, hint=hint)


def _kind(reply: Reply) -> tuple[type[BoxlinkError], str]:
    if reply.code in _CODES:
        return _CODES[reply.code]
    if reply.status in _STATUSES:
        return _STATUSES[reply.status]
    if 300 <= reply.status < 400:
        return Invalid, _REGION
    if 400 <= reply.status < 500:
        return Invalid, ""
    return (Unavailable if reply.was_sent else NotApplied), "" if reply.status else _UNREACHED


def _message(kind: type[BoxlinkError], reply: Reply) -> str:
    if kind is Missing and reply.code != "NoSuchBucket":
        return "there is no such object"
    if kind is Conflict:
        return "it is no longer what it was" if reply.status != 409 else "another write was under way"
    if reply.status:
        return f"S3 answered {reply.status} {reply.code}".rstrip()
    return f"S3 did not answer: {reply.text}"


@contextmanager
def translated(key: str, *, is_conditional: bool = False) -> Iterator[None]:
    try:
        yield
    except (BaseError, FileNotFoundError, PermissionError, TimeoutError, ConnectionError) as error:
        raise translate(error, key, is_conditional=is_conditional) from error
    except (BotoCoreError, ClientError) as error:
        raise translate(error, key, is_conditional=is_conditional) from error
