"""Every failure of AWS has a kind, and says what a person can do about it."""

from __future__ import annotations

import botocore.exceptions
import pytest
from botocore.exceptions import ClientError

from synclib.errors import BoxlinkError, Conflict, Invalid, Missing, Unavailable, Unsupported
from synclib.store.outcome import NotApplied
from synclib.volume import aws_errors
from synclib.volume.aws_errors import translate

# The least that a hint must be: a few words, and not what stands in the message already.
_HINT_CHARACTERS_MIN = 20


def answered(code: str, status: int, message: str = "what AWS says") -> BoxlinkError:
    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate(ClientError(response, "CreateVolume"), "create vol-1")


def check(error: BoxlinkError, kind: type[BoxlinkError]) -> None:
    assert type(error) is kind, error
    assert error.message.startswith("create vol-1: ")
    assert len(error.hint) >= _HINT_CHARACTERS_MIN, error
    assert error.hint not in error.message


@pytest.mark.parametrize("code", sorted(aws_errors._CODES))
def test_each_code_that_is_known_says_what_to_do(code: str) -> None:
    kind, hint = aws_errors._CODES[code]
    error = answered(code, 400)
    check(error, kind)
    assert error.hint == hint
    assert code in error.message
    assert "what AWS says" in error.message


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Invalid),
        (401, Invalid),
        (403, Invalid),
        (404, Missing),
        (409, Conflict),
        (418, Invalid),
        (429, NotApplied),
        (500, Unavailable),
        (501, Unsupported),
        (502, Unavailable),
        (503, NotApplied),
        (599, Unavailable),
        (0, Invalid),
    ],
)
@pytest.mark.parametrize("code", ["NobodyKnowsThis", ""])
def test_what_nobody_knows_goes_by_its_status_and_says_something_all_the_same(
    code: str, status: int, kind: type[BoxlinkError]
) -> None:
    check(answered(code, status), kind)


@pytest.mark.parametrize("code", ["InvalidVolume.NotFound", "InvalidSnapshot.NotFound", "ResourceNotFoundException"])
def test_what_is_not_there_is_missing_whatever_the_status(code: str) -> None:
    check(answered(code, 400), Missing)


def _made(name: str) -> Exception:
    """One of botocore's exceptions, with whatever its text wants."""
    kind = getattr(botocore.exceptions, name)
    words = ("error", "endpoint_url", "profile", "provider", "cred_var", "error_msg", "report", "msg", "reason")
    return kind(**dict.fromkeys(words, "a word"))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NoCredentialsError", Invalid),
        ("PartialCredentialsError", Invalid),
        ("CredentialRetrievalError", Invalid),
        ("ProfileNotFound", Invalid),
        ("TokenRetrievalError", Invalid),
        ("NoRegionError", Invalid),
        ("ParamValidationError", Invalid),
        ("EndpointConnectionError", NotApplied),
        ("ConnectTimeoutError", NotApplied),
        ("ReadTimeoutError", Unavailable),
        ("ConnectionClosedError", Unavailable),
        ("HTTPClientError", Unavailable),
    ],
)
def test_what_never_got_an_answer_says_what_to_do(name: str, kind: type[BoxlinkError]) -> None:
    check(translate(_made(name), "create vol-1"), kind)
