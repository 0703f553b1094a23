"""What only an S3 store meets: refusals, silence, lies; and what it costs."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from synclib.clock import ManualClock, SeededEntropy
from synclib.errors import (
    Ambiguous,
    BoxlinkError,
    Conflict,
    Corrupt,
    Full,
    Invalid,
    Missing,
    Unavailable,
    Unsupported,
)
from synclib.store import s3 as s3_module
from synclib.store.meter import Meter, MeteredStore
from synclib.store.open import open_store, prepare_store
from synclib.store.outcome import NotApplied
from synclib.store.retry import TRIES, RetryStore
from synclib.store.s3 import Deadlines, S3Store, put_requests
from tests.conformance.conftest import BUCKET
from tests.conformance.lying_server import Answer, Trickle, answer, lying, refusal

QUICK = Deadlines(connect_s=0.5, silence_s=0.5, request_s=1.0)


@pytest.fixture
def connect(aws_environment: None) -> Callable[[str], S3Store]:
    return lambda endpoint: S3Store(
        "bucket", "pre", endpoint=endpoint, region="us-east-1", profile=None, deadlines=QUICK
    )


Connect = Callable[[str], S3Store]


def range_answer(body: bytes, total: int, *, length: int | None = None) -> bytes:
    return answer("206 Partial Content", body, length=length, headers=f"Content-Range: bytes 0-9/{total}\r\n")


@pytest.mark.parametrize(
    ("what", "reply", "kind"),
    [
        ("a whole object for a range", answer("200 OK", bytes(100)), Unavailable),
        ("a short body", range_answer(b"12345", 100, length=10), Unavailable),
        ("another range", answer("206 X", bytes(10), headers="Content-Range: bytes 50-59/100\r\n"), Unavailable),
        ("a smaller range", answer("206 X", bytes(5), headers="Content-Range: bytes 0-4/5\r\n"), Corrupt),
        ("no range header", answer("206 X", bytes(10)), Unavailable),
        ("nothing", b"", Unavailable),
        ("no HTTP", b"hello\r\n\r\n", Unavailable),
        ("silence", None, Unavailable),
        ("half a header", b"HTTP/1.1 206 Partial", Unavailable),
        ("a refused range", refusal("416 Range Not Satisfiable", "InvalidRange"), Corrupt),
    ],
)
def test_ranges_are_right_or_an_error(connect: Connect, what: str, reply: bytes | None, kind: type) -> None:
    with lying(reply) as (endpoint, _), pytest.raises(BoxlinkError) as caught:
        connect(endpoint).get_ranges("a", [(0, 10)])
    assert type(caught.value) is kind, what


@pytest.mark.parametrize(
    ("what", "reply", "kind"),
    [
        ("a short body", answer("200 OK", b"12345", length=10), Unavailable),
        ("silence in the middle", None, Unavailable),
        ("a huge one", answer("200 OK", b"12345", length=1 << 40), Corrupt),
        ("no such bucket", refusal("404 Not Found", "NoSuchBucket"), Missing),
        ("nothing there", refusal("404 Not Found", "NoSuchKey"), Missing),
        ("a bad key id", refusal("404 Not Found", "XAdminUserNotFound"), Invalid),
        ("an old token", refusal("400 Bad Request", "ExpiredToken"), Invalid),
        ("a wrong clock", refusal("403 Forbidden", "RequestTimeTooSkewed"), Invalid),
        ("a bucket elsewhere", refusal("301 Moved Permanently", "PermanentRedirect"), Invalid),
        ("slow down", refusal("503 Slow Down", "SlowDown"), NotApplied),
        ("an inner error", refusal("500 Internal Server Error", "InternalError"), Unavailable),
        ("a gateway's error", answer("502 Bad Gateway", b"<html>"), Unavailable),
        ("no room", answer("507 Insufficient Storage"), Full),
        ("not known", refusal("501 Not Implemented", "NotImplemented"), Unsupported),
        ("a teapot", answer("418 I'm a teapot"), Invalid),
    ],
)
def test_whole_objects_are_right_or_an_error(connect: Connect, what: str, reply: bytes | None, kind: type) -> None:
    def stall(_: str) -> bytes | None:
        return None

    with lying(reply if reply is not None else stall) as (endpoint, _), pytest.raises(BoxlinkError) as caught:
        connect(endpoint).get("a", size_max=100)
    assert type(caught.value) is kind, what
    assert caught.value.key == "a"


def test_a_trickle_is_cut_off(connect: Connect) -> None:
    """Never silent for long, and never done: the deadline of the whole request ends it."""
    trickle = Trickle(answer("200 OK", bytes(1000)), 0.05)
    with lying(trickle) as (endpoint, _), pytest.raises(Unavailable):
        connect(endpoint).get("a", size_max=1000)
    assert 0 < trickle.sent < 1000


@pytest.mark.parametrize(
    ("what", "reply"),
    [
        ("more than the suffix", answer("206 X", bytes(50), headers="Content-Range: bytes 50-99/100\r\n")),
        (
            "a huge one",
            answer("206 X", b"1", length=1 << 40, headers=f"Content-Range: bytes 0-{(1 << 40) - 1}/{1 << 40}\r\n"),
        ),
        ("less than the suffix", answer("206 X", bytes(5), headers="Content-Range: bytes 95-99/100\r\n")),
        ("the beginning", answer("206 X", bytes(10), headers="Content-Range: bytes 0-9/100\r\n")),
        ("a whole object", answer("200 OK", bytes(100))),
    ],
)
def test_suffixes_are_right_or_an_error(connect: Connect, what: str, reply: bytes) -> None:
    with lying(reply) as (endpoint, _), pytest.raises(Unavailable):
        connect(endpoint).get_suffix("a", 10)


def test_hints(connect: Connect) -> None:
    for reply, words in (
        (refusal("403 Forbidden", "AccessDenied"), "may not list"),
        (answer("403 Forbidden"), "may not list"),
        (refusal("403 Forbidden", "SignatureDoesNotMatch"), "credentials"),
        (refusal("404 Not Found", "NoSuchBucket"), "--create-bucket"),
        (refusal("400 Bad Request", "AuthorizationHeaderMalformed"), "region"),
    ):
        with lying(reply) as (endpoint, _), pytest.raises(BoxlinkError) as caught:
            connect(endpoint).get("a", size_max=100)
        assert words in caught.value.hint


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"", Ambiguous),
        (None, Ambiguous),
        (refusal("500 Internal Server Error", "InternalError"), Ambiguous),
        (answer("504 Gateway Timeout"), Ambiguous),
        (refusal("503 Slow Down", "SlowDown"), NotApplied),
        (refusal("412 Precondition Failed", "PreconditionFailed"), Conflict),
        (refusal("404 Not Found", "NoSuchKey"), Conflict),
        (refusal("404 Not Found", "NoSuchBucket"), Missing),
        (refusal("403 Forbidden", "AccessDenied"), Invalid),
    ],
)
def test_a_lost_answer_to_a_condition_is_ambiguous(connect: Connect, reply: bytes | None, kind: type) -> None:
    for condition in ({"if_match": '"e"'}, {"if_absent": True}):
        with lying(reply) as (endpoint, requests), pytest.raises(BoxlinkError) as caught:
            connect(endpoint).put("a", b"1", **condition)  # type: ignore[arg-type]
        assert type(caught.value) is kind
        assert len(requests) == 1, "it was sent again"


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"", Ambiguous),
        (refusal("500 Internal Server Error", "InternalError"), Ambiguous),
        (refusal("412 Precondition Failed", "PreconditionFailed"), Conflict),
        (refusal("403 Forbidden", "AccessDenied"), Invalid),
    ],
)
def test_the_same_for_deletes_and_large_files(
    connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: bytes, kind: type
) -> None:
    monkeypatch.setattr(s3_module, "PUT_BYTES_MAX", 10)
    large = tmp_path / "large"
    large.write_bytes(bytes(1000))
    with lying(reply) as (endpoint, requests):
        store = connect(endpoint)
        for call in (
            lambda: store.put("a", large, if_match='"e"'),
            lambda: store.put("a", large, if_absent=True),
            lambda: store.delete("a", if_match='"e"'),
        ):
            with pytest.raises(BoxlinkError) as caught:
                call()
            assert type(caught.value) is kind
        assert len(requests) == 3, "one was sent again"


def test_a_contended_write_is_asked_again_and_then_is_a_conflict(connect: Connect) -> None:
    contended = refusal("409 Conflict", "ConditionalRequestConflict")
    with lying(contended, contended, answer("200 OK")) as (endpoint, requests):
        assert connect(endpoint).put("a", b"1", if_absent=True) == '"e"'
        assert len(requests) == 3
    with lying(contended) as (endpoint, requests), pytest.raises(Conflict):
        connect(endpoint).put("a", b"1", if_match='"e"')


def test_no_one_listens(connect: Connect) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        store = connect(f"http://127.0.0.1:{unused.getsockname()[1]}")
        for call in (
            lambda: store.get("a", size_max=1),
            lambda: store.put("a", b"1", if_absent=True),
            lambda: store.delete("a", if_match='"e"'),
            lambda: list(store.list("")),
        ):
            with pytest.raises(NotApplied):
                call()


def test_reads_are_retried_and_each_try_is_counted(connect: Connect) -> None:
    slow = refusal("503 Slow Down", "SlowDown")
    clock, meter = ManualClock(), Meter()
    with lying(slow, b"", answer("200 OK", b"hello")) as (endpoint, _):
        store = RetryStore(MeteredStore(connect(endpoint), meter), clock, SeededEntropy(1))
        fetched = store.get("a", size_max=100)
    assert fetched is not None
    assert fetched.data == b"hello"
    assert (meter.requests["get"], meter.bytes_down) == (3, 5)
    with lying(slow) as (endpoint, requests), pytest.raises(Unavailable):
        RetryStore(connect(endpoint), clock, SeededEntropy(1)).get("a", size_max=100)
    assert len(requests) == TRIES


def page(keys: list[str], *, is_truncated: bool) -> bytes:
    contents = "".join(
        f"<Contents><Key>{key}</Key><Size>1</Size><ETag>&quot;e&quot;</ETag>"
        "<LastModified>2026-11-24T08:00:00.000Z</LastModified></Contents>"
        for key in keys
    )
    more = "<NextContinuationToken>t</NextContinuationToken>" if is_truncated else ""
    return answer(
        "200 OK",
        f"<ListBucketResult><IsTruncated>{str(is_truncated).lower()}</IsTruncated>{contents}{more}</ListBucketResult>".encode(),
    )


KEYS = [f"m/{number:04}" for number in range(1500)]


def test_a_listing_comes_page_by_page_and_goes_on_where_it_broke_off(connect: Connect) -> None:
    full = [f"pre/{key}" for key in KEYS]
    first, second = page(full[:1000], is_truncated=True), page(full[1000:], is_truncated=False)
    broken = refusal("500 Internal Server Error", "InternalError")
    meter = Meter()
    with lying(first, broken, broken, second) as (endpoint, requests):
        store = RetryStore(MeteredStore(connect(endpoint), meter), ManualClock(), SeededEntropy(1))
        assert [info.key for info in store.list("m/")] == KEYS
    assert "continuation-token=t" in requests[1]
    assert "start-after=pre%2Fm%2F0999" in requests[3]
    assert len(requests) == 4


def test_a_listing_out_of_order_is_refused(connect: Connect) -> None:
    again = page([f"pre/{key}" for key in KEYS[:1000]], is_truncated=True)
    for reply in (page(["pre/b", "pre/a"], is_truncated=False), again):
        with lying(reply) as (endpoint, _), pytest.raises(Unsupported):
            list(connect(endpoint).list(""))


def test_a_prefix_starts_near_its_keys_and_ends_after_them(connect: Connect) -> None:
    keys = [f"pre/{key}" for key in KEYS[500:]]
    with lying(page(keys, is_truncated=True)) as (endpoint, requests):
        assert [info.key for info in connect(endpoint).list("m/07")] == KEYS[700:800]
    assert len(requests) == 1
    assert "start-after=pre%2Fm%2F0 " in requests[0]


def test_wrong_credentials(aws_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def must_be_signed(request: str) -> bytes:
        return refusal("403 Forbidden", "InvalidAccessKeyId") if "AWS4-HMAC-SHA256" in request else answer("200 OK")

    reply: Answer = must_be_signed
    with lying(reply) as (endpoint, _), pytest.raises(Invalid) as caught:
        S3Store("bucket", "", endpoint=endpoint, deadlines=QUICK).get("a", size_max=1)
    assert "credentials" in caught.value.hint
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    with pytest.raises(Invalid) as caught:
        S3Store("bucket", "")
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint
    with pytest.raises(Invalid):
        S3Store("bucket", "", profile="nobody")


def test_a_large_file_goes_in_parts(moto_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "PUT_BYTES_MAX", 1 << 20)
    monkeypatch.setattr(s3_module, "PART_BYTES", 5 << 20)
    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * (12 << 12))
    store, meter = open_store(f"s3://{BUCKET}/parts", {"endpoint": moto_endpoint, "region": "us-east-1"})
    etag = store.put("a", path)
    assert meter.requests["put"] == put_requests(12 << 20) == 2 + 3
    assert meter.bytes_up == 12 << 20
    assert store.get_suffix("a", 256).data == bytes(range(256))
    newer = store.put("a", path, if_match=etag)
    assert meter.requests["put"] == 6
    assert newer != etag
    with pytest.raises(Conflict):
        store.put("a", path, if_match=etag)
    assert store.get("a", size_max=12 << 20).data == path.read_bytes()  # type: ignore[union-attr]


def test_buckets_are_made_only_when_asked(moto_endpoint: str) -> None:
    settings = {"endpoint": moto_endpoint, "region": "us-east-1"}
    prepare_store("s3://made-by-init/p", settings)
    store, _ = open_store("s3://made-by-init/p", settings)
    with pytest.raises(Missing) as caught:
        store.put("a", b"1")
    assert "--create-bucket" in caught.value.hint
    for _ in range(2):
        prepare_store("s3://made-by-init/p", settings, create_bucket=True)
    store.put("a", b"1")
    assert [info.key for info in open_store("s3://made-by-init", settings)[0].list("")] == ["p/a"]


def use_after_fork(endpoint: str, said: object) -> None:
    try:
        S3Store(BUCKET, "", endpoint=endpoint, region="us-east-1").get("a", size_max=1)
    except RuntimeError as error:
        said.send(str(error))  # type: ignore[attr-defined]


def test_a_forked_process_is_told_rather_than_left_waiting(moto_endpoint: str) -> None:
    with pytest.raises(Missing):
        S3Store(BUCKET, "", endpoint=moto_endpoint, region="us-east-1").get("no", size_max=1)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=use_after_fork, args=(moto_endpoint, sender))
    process.start()
    assert receiver.poll(30)
    assert "spawn" in receiver.recv()
    process.join(30)
    assert process.exitcode == 0
