"""Failures of EC2 and EBS direct as kinds, by a table of their error codes (EC2 API reference, "Error codes for the
Amazon EC2 API"; EBS direct APIs, "Errors"), then by status.

NotApplied: the service did nothing, so that trying again is safe. Unavailable: perhaps it did.
"""

from __future__ import annotations

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
)

from synclib.errors import BoxlinkError, Conflict, Full, Invalid, Missing, Unavailable, Unsupported
from synclib.store.outcome import NotApplied

Kind = tuple[type[BoxlinkError], str]

_CREDENTIALS = "check the credentials (aws sts get-caller-identity), and that they are for this account and region"
_RIGHTS = (
    "the credentials lack a right (docs/iam.md has the policy of each role), "
    "or it is not boxlink's (it lacks the tag boxlink:token), or not there any more"
)
_QUOTA = "delete what is no longer needed (boxlink snapshot prune), or ask AWS for a higher quota"
_CAPACITY = "another zone or type may have room; or try again later"
_TOKEN = "this token made something else before: what is asked for has changed since, so use another"
_STATE = "see its state (boxlink snapshot ls), wait, and try again"
_IN_USE = "detach it first; on its node, unmount it before"
_ZONE = "a volume is attached in its own zone: make one of the snapshot there"
_CLOCK = "set this machine's clock (NTP): signatures hold for 5 minutes"
_SLOWER = "the account asks too much at once: try again later, and see what else works with it"
_LATER = "the fault is AWS's (health.aws.amazon.com): try again later"
_LACKING = "is the endpoint AWS's own (AWS_ENDPOINT_URL)? It does not have this operation"
_UNKNOWN = "what AWS says tells which argument or setting it does not like; the same again will not help"
_REGION = "was it deleted, or is it in another region?"

_CODES: dict[str, Kind] = {
    "RequestLimitExceeded": (NotApplied, _SLOWER),
    "RequestThrottledException": (NotApplied, _SLOWER),
    "ThrottlingException": (NotApplied, _SLOWER),
    "Throttling": (NotApplied, _SLOWER),
    "EC2ThrottledException": (NotApplied, _SLOWER),
    "SnapshotCreationPerVolumeRateExceeded": (NotApplied, _SLOWER),
    "ServiceUnavailable": (Unavailable, _LATER),
    "Unavailable": (Unavailable, _LATER),
    "InternalError": (Unavailable, _LATER),
    "InternalFailure": (Unavailable, _LATER),
    "InternalServerException": (Unavailable, _LATER),
    "RequestTimeout": (Unavailable, _LATER),
    "UnauthorizedOperation": (Invalid, _RIGHTS),
    "AccessDenied": (Invalid, _RIGHTS),
    "AccessDeniedException": (Invalid, _RIGHTS),
    "AuthFailure": (Invalid, _CREDENTIALS),
    "InvalidClientTokenId": (Invalid, _CREDENTIALS),
    "UnrecognizedClientException": (Invalid, _CREDENTIALS),
    "SignatureDoesNotMatch": (Invalid, _CREDENTIALS),
    "InvalidSignatureException": (Invalid, _CREDENTIALS),
    "MissingAuthenticationToken": (Invalid, _CREDENTIALS),
    "ExpiredToken": (Invalid, _CREDENTIALS),
    "ExpiredTokenException": (Invalid, _CREDENTIALS),
    "RequestExpired": (Invalid, _CLOCK),
    "OptInRequired": (Invalid, "this account may not use this region or service yet"),
    "IdempotentParameterMismatch": (Conflict, _TOKEN),
    "ConflictException": (Conflict, _TOKEN),
    "IdempotentInstanceTerminated": (Conflict, "the instance of this token has ended; use another"),
    "VolumeInUse": (Conflict, _IN_USE),
    "IncorrectState": (Conflict, _STATE),
    "IncorrectInstanceState": (Conflict, _STATE),
    "InvalidSnapshot.InUse": (Conflict, "an image (AMI) stands on this snapshot: deregister it first"),
    "InvalidAttachment.NotFound": (Conflict, _STATE),
    "InvalidVolume.ZoneMismatch": (Invalid, _ZONE),
    "InsufficientInstanceCapacity": (Full, _CAPACITY),
    "InsufficientVolumeCapacity": (Full, _CAPACITY),
    "InsufficientCapacity": (Full, _CAPACITY),
    "InsufficientHostCapacity": (Full, _CAPACITY),
    "Unsupported": (Full, "this type is not offered in this zone; try another"),
    "VcpuLimitExceeded": (Full, "ask AWS for a higher quota, or end instances"),
    "InstanceLimitExceeded": (Full, "ask AWS for a higher quota, or end instances"),
    "AttachmentLimitExceeded": (Full, "this instance has as many volumes as its type can have"),
    "VolumeLimitExceeded": (Full, _QUOTA),
    "MaxIOPSLimitExceeded": (Full, _QUOTA),
    "SnapshotLimitExceeded": (Full, _QUOTA),
    "TagLimitExceeded": (Full, "a resource has at most 50 tags"),
    "ConcurrentSnapshotLimitExceeded": (Full, "wait until other snapshots are completed"),
    "ConcurrentLimitExceededException": (Full, "wait until other snapshots are completed, or delete abandoned ones"),
    "ServiceQuotaExceededException": (Full, _QUOTA),
}
_STATUSES: dict[int, Kind] = {
    401: (Invalid, _CREDENTIALS),
    403: (Invalid, _RIGHTS),
    404: (Missing, _REGION),
    409: (Conflict, _STATE),
    429: (NotApplied, _SLOWER),
    501: (Unsupported, _LACKING),
    503: (NotApplied, _SLOWER),
}
_CONFIGURATION = (
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
    CredentialRetrievalError,
)
_UNREACHED = "is the region right (AWS_REGION) and AWS reachable from here? then try again"


def code_of(error: Exception) -> str:
    """The service's word for what is wrong; empty when it did not answer."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def reason_of(error: Exception) -> str:
    """EBS direct's second word, e.g. INVALID_BLOCK_TOKEN."""
    return str(error.response.get("Reason", "")) if isinstance(error, ClientError) else ""


def message_of(error: Exception) -> str:
    """What the service says to people: one line, of bounded length."""
    text = str(error.response.get("Error", {}).get("Message", "")) if isinstance(error, ClientError) else str(error)
    return " ".join(text.split())[:300]


def translate(error: Exception, what: str) -> BoxlinkError:
    """The kind of a failure of boto3; ``what`` says what was being done, e.g. "attach vol-1"."""
    if isinstance(error, _CONFIGURATION):
        return Invalid(f"{what}: no usable credentials: {message_of(error)}", hint=_CREDENTIALS)
    if isinstance(error, NoRegionError):
        return Invalid(f"{what}: no region is set", hint="set AWS_REGION, or region in boxlink.toml")
    if isinstance(error, ParamValidationError):
        return Invalid(f"{what}: {message_of(error)}", hint=_UNKNOWN)
    if isinstance(error, BotoCoreError):
        was_sent = not isinstance(error, EndpointConnectionError | ConnectTimeoutError)
        text = f"{what}: AWS did not answer: {message_of(error)}"
        return (Unavailable if was_sent else NotApplied)(text, hint=_UNREACHED)
    status = 0
    if isinstance(error, ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    kind, hint = _kind(code_of(error), status)
    words = " ".join(word for word in (code_of(error), reason_of(error)) if word) or str(status)
    return kind(f"{what}: AWS answered {words}: {message_of(error)}", hint=hint)


def _kind(code: str, status: int) -> Kind:
    if code in _CODES:
        return _CODES[code]
    if code.endswith("NotFound") or code == "ResourceNotFoundException":
        return Missing, _REGION
    if status in _STATUSES:
        return _STATUSES[status]
    if status >= 500:
        return Unavailable, _LATER
    return Invalid, _UNKNOWN
