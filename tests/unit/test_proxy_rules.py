"""The proxy's decisions by table; the clause is named where a standard decides."""

from __future__ import annotations

import ipaddress

import pytest

from proxy.core import balance, cache_status
from proxy.core.cache_control import parse_directives, request_directives, targeted_directives
from proxy.core.cache_key import matches, selector
from proxy.core.dates import format_date, parse_date
from proxy.core.freshness import age_of, assess, registered_lifetime
from proxy.core.health import FAILURES_MAX, Event, Health, State, step
from proxy.core.invalidate import invalidated_keys
from proxy.core.lease import Leases
from proxy.core.message import Field, Fields, Request
from proxy.core.networks import is_welcome, parse_networks
from proxy.core.ranges import Span, if_range_holds, select
from proxy.core.reuse import Use, may_answer_failure, plan
from proxy.core.route import RouteTable
from proxy.core.storing import vary_names, why_not_stored
from proxy.core.syntax import split_list
from proxy.core.validate import confirms, is_not_modified, updated_fields
from synclib.errors import Invalid

NOW = 1_700_000_000
DATE = format_date(NOW)
DAY = 86400


def fields(**values: str) -> Fields:
    return Fields((name.replace("_", "-").encode(), value.encode()) for name, value in values.items())


def request(method: str = "GET", target: str = "/a", **values: str) -> Request:
    return Request(method.encode(), target.encode(), b"a.example", 1, fields(**values), True)


def lifetime(status: int = 200, *extra: Field, **values: str) -> int:
    answer = fields(**{"date": DATE.decode(), **values}).plus(*extra)
    return assess(status, answer, wall=NOW, asked_at=0, received_at=0).lifetime


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ({}, 0),
        ({"cache_control": "max-age=60"}, 60),
        ({"cache_control": "MAX-AGE=60"}, 60),
        ({"cache_control": 'max-age="60"'}, 60),
        ({"cache_control": "max-age=60, max-age=10"}, 10),
        ({"cache_control": "max-age=abc"}, 0),
        ({"cache_control": "max-age=-1"}, 0),
        ({"cache_control": "max-age=1.5"}, 0),
        ({"cache_control": "max-age"}, 0),
        ({"cache_control": "max-age =60"}, 0),
        ({"cache_control": "max-age=99999999999999999"}, 1 << 31),
        ({"cache_control": 'ext="a, max-age=60"'}, 0),
        ({"cache_control": "max-age=60, s-maxage=5"}, 5),
        ({"cache_control": "s-maxage=50", "expires": format_date(NOW + 9).decode()}, 50),
        ({"cache_control": "max-age=7", "expires": format_date(NOW + 9).decode()}, 7),
        ({"expires": format_date(NOW + 9).decode()}, 9),
        ({"expires": format_date(NOW - 9).decode()}, 0),
        ({"expires": "0"}, 0),
        ({"expires": format_date(NOW + 9).decode(), "date": format_date(NOW - 5).decode()}, 14),
        ({"last_modified": format_date(NOW - 1000).decode()}, 100),
        ({"last_modified": format_date(NOW - 1000 * DAY).decode()}, DAY),
        ({"last_modified": format_date(NOW + 1000).decode()}, 0),
        ({"cache_control": "no-store", "cdn_cache_control": "max-age=30"}, 30),
        ({"cache_control": "max-age=60", "cdn_cache_control": "max-age=3O;"}, 60),
    ],
)
def test_lifetime_of_an_answer(values: dict[str, str], seconds: int) -> None:
    """RFC 9111 4.2.1, 4.2.2; RFC 9213."""
    assert lifetime(**values) == seconds


def test_several_expires_lines_are_stale() -> None:
    line = (b"expires", format_date(NOW + 99))
    assert lifetime(200, line, line) == 0


@pytest.mark.parametrize(("status", "seconds"), [(200, 100), (204, 100), (404, 100), (302, 0), (500, 0)])
def test_heuristics_are_for_some_statuses(status: int, seconds: int) -> None:
    assert lifetime(status, last_modified=format_date(NOW - 1000).decode()) == seconds


@pytest.mark.parametrize(
    ("age", "date_offset", "delay", "initial"),
    [
        (None, 0, 0, 0),
        ("10", 0, 3, 13),
        ("10, 99", 0, 0, 10),
        ("-5", 0, 0, 0),
        ("abc", 0, 0, 0),
        (None, -30, 2, 30),
        ("50", -30, 2, 52),
        (None, 30, 0, 0),
    ],
)
def test_age_when_an_answer_arrives(age: str | None, date_offset: int, delay: float, initial: float) -> None:
    """RFC 9111 4.2.3: the larger of apparent age and Age, the latter with the time that asking took."""
    answer = fields(date=format_date(NOW + date_offset).decode(), **({} if age is None else {"age": age}))
    freshness = assess(200, answer, wall=NOW, asked_at=100 - delay, received_at=100)
    assert freshness.initial_age == initial
    assert freshness.age(107) == initial + 7


def test_age_takes_the_first_of_several_lines() -> None:
    assert age_of(Fields(((b"age", b"7"), (b"age", b"9")))) == 7


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        (b"Sun, 06 Nov 1994 08:49:37 GMT", 784111777),
        (b"Sunday, 06-Nov-94 08:49:37 GMT", 784111777),
        (b"Sun Nov  6 08:49:37 1994", 784111777),
        (b"Sun, 06 Nov 1994 08:49:37 UTC", None),
        (b"Sun, 06 Nov 1994 08:49:37", None),
        (b"Sun, 06 nov 1994 08:49:37 GMT", None),
        (b"Sun, 6 Nov 1994 08:49:37 GMT", None),
        (b"Sun, 31 Feb 1994 08:49:37 GMT", None),
        (b"Sun, 06 Nov 1994 24:49:37 GMT", None),
        (b"0", None),
        (b"", None),
    ],
)
def test_dates_have_three_forms(text: bytes, moment: int | None) -> None:
    assert parse_date(text, NOW) == moment


def test_dates_of_the_far_years_and_back() -> None:
    assert parse_date(b"Sunday, 06-Nov-70 08:49:37 GMT", NOW) == parse_date(b"Thu, 06 Nov 2070 08:49:37 GMT", NOW)
    for moment in (0, NOW, NOW * 2):
        assert parse_date(format_date(moment), NOW) == moment


@pytest.mark.parametrize(
    ("asked", "status", "said", "why"),
    [
        ({}, 200, {"cache_control": "max-age=9"}, ""),
        ({}, 200, {"cache_control": "max-age=0", "etag": '"x"'}, ""),
        ({}, 200, {}, "no-lifetime"),
        ({}, 200, {"etag": '"x"'}, ""),
        ({"method": "POST"}, 200, {"cache_control": "max-age=9"}, "method"),
        ({"method": "HEAD"}, 200, {"cache_control": "max-age=9"}, "method"),
        ({"cache_control": "no-store"}, 200, {"cache_control": "max-age=9"}, "request-no-store"),
        ({}, 200, {"cache_control": "max-age=9, no-store"}, "no-store"),
        ({}, 200, {"cache_control": "max-age=9, NO-STORE"}, "no-store"),
        ({}, 200, {"cache_control": "max-age=9, no-store, must-understand"}, ""),
        ({}, 299, {"cache_control": "max-age=9, no-store, must-understand"}, "status"),
        ({}, 200, {"cache_control": "private, max-age=9"}, "private"),
        ({}, 200, {"cache_control": 'private="x-y", max-age=9'}, "private"),
        ({"authorization": "x"}, 200, {"cache_control": "max-age=9"}, "authorization"),
        ({"authorization": "x"}, 200, {"cache_control": "public, max-age=9"}, ""),
        ({"authorization": "x"}, 200, {"cache_control": "s-maxage=9"}, ""),
        ({"authorization": "x"}, 200, {"cache_control": "must-revalidate, max-age=9"}, ""),
        ({}, 200, {"cache_control": "max-age=9", "set_cookie": "a=b"}, "set-cookie"),
        ({}, 200, {"cache_control": "public, max-age=9", "set_cookie": "a=b"}, ""),
        ({}, 200, {"cache_control": "max-age=9", "vary": "*"}, "vary"),
        ({}, 200, {"cache_control": "max-age=9", "vary": "a, *"}, "vary"),
        ({}, 206, {"cache_control": "max-age=9"}, "status"),
        ({}, 304, {"cache_control": "max-age=9"}, "status"),
        ({}, 400, {"cache_control": "max-age=9"}, "status"),
        ({}, 431, {"cache_control": "max-age=9"}, "status"),
        ({}, 404, {"cache_control": "max-age=9"}, ""),
        ({}, 404, {"cache_control": "max-age=9", "boxlink_wall": "unknown"}, "unknown-wall"),
        ({}, 302, {"cache_control": "max-age=9"}, ""),
        ({}, 302, {"last_modified": format_date(NOW - 1000).decode()}, "status"),
        ({}, 503, {"cache_control": "max-age=9"}, ""),
        ({}, 200, {"cache_control": "no-store", "cdn_cache_control": "max-age=9"}, ""),
        ({}, 200, {"cache_control": "max-age=9", "cdn_cache_control": "private"}, "private"),
    ],
)
def test_what_a_shared_cache_may_keep(asked: dict[str, str], status: int, said: dict[str, str], why: str) -> None:
    """RFC 9111 3."""
    answer = fields(date=DATE.decode(), **said)
    freshness = assess(status, answer, wall=NOW, asked_at=0, received_at=0)
    assert why_not_stored(request(**asked), status, answer, freshness) == why


@pytest.mark.parametrize(
    ("stored", "asked", "age", "use"),
    [
        (None, "", 0, Use.FETCH),
        (None, "only-if-cached", 0, Use.FAIL),
        ("max-age=60", "", 59, Use.HIT),
        ("max-age=60", "", 60, Use.VALIDATE),
        ("max-age=60", "only-if-cached", 60, Use.FAIL),
        ("max-age=60", "no-cache", 1, Use.VALIDATE),
        ("max-age=60", "max-age=5", 5, Use.HIT),
        ("max-age=60", "max-age=5", 6, Use.VALIDATE),
        ("max-age=60", "max-age=0", 1, Use.VALIDATE),
        ("max-age=60", "min-fresh=10", 49, Use.HIT),
        ("max-age=60", "min-fresh=10", 51, Use.VALIDATE),
        ("max-age=60", "max-stale", 999, Use.STALE_HIT),
        ("max-age=60", "max-stale=5", 65, Use.STALE_HIT),
        ("max-age=60", "max-stale=5", 66, Use.VALIDATE),
        ("max-age=60, must-revalidate", "max-stale", 61, Use.VALIDATE),
        ("max-age=60, proxy-revalidate", "max-stale", 61, Use.VALIDATE),
        ("s-maxage=60", "max-stale", 61, Use.VALIDATE),
        ("max-age=60, no-cache", "", 1, Use.VALIDATE),
        ("max-age=60, stale-while-revalidate=30", "", 89, Use.REFRESH),
        ("max-age=60, stale-while-revalidate=30", "", 90, Use.VALIDATE),
        ("max-age=60, stale-while-revalidate=30, must-revalidate", "", 61, Use.VALIDATE),
        ("max-age=60, stale-while-revalidate=30", "max-age=99", 61, Use.VALIDATE),
    ],
)
def test_whether_a_stored_answer_is_used(stored: str | None, asked: str, age: float, use: Use) -> None:
    """RFC 9111 4, 5.2.1; RFC 5861 3."""
    directives = parse_directives(fields(cache_control=asked))
    freshness = None
    if stored is not None:
        freshness = assess(200, fields(cache_control=stored), wall=NOW, asked_at=0, received_at=0)
    assert plan(freshness, directives, age) is use


@pytest.mark.parametrize(
    ("stored", "asked", "staleness", "unreachable", "broken"),
    [
        ("max-age=0", "", 9999, True, False),
        ("max-age=0, stale-if-error=60", "", 60, True, True),
        ("max-age=0, stale-if-error=60", "", 61, False, False),
        ("max-age=0", "stale-if-error=60", 30, True, True),
        ("max-age=0, must-revalidate", "stale-if-error=60", 1, False, False),
        ("no-cache", "", 1, False, False),
        ("max-age=0", "no-cache", 1, False, False),
    ],
)
def test_whether_a_stale_answer_stands_in(
    stored: str, asked: str, staleness: float, unreachable: bool, broken: bool
) -> None:
    """RFC 9111 4.2.4; RFC 5861 4."""
    freshness = assess(200, fields(cache_control=stored), wall=NOW, asked_at=0, received_at=0)
    directives = request_directives(fields(cache_control=asked))
    assert may_answer_failure(freshness, directives, staleness, is_unreachable=True) is unreachable
    assert may_answer_failure(freshness, directives, staleness, is_unreachable=False) is broken


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("max-age=60", {b"max-age"}),
        ("max-age=60, s-maxage=7;x=y , private", {b"max-age", b"s-maxage", b"private"}),
        ('a="x,y", b', {b"a", b"b"}),
        ("no-store=?0, max-age=1", {b"max-age"}),
        ("max-age=60,", None),
        ("Max-Age=60", None),
        ("max-age=", None),
        ("", None),
    ],
)
def test_targeted_directives_are_a_structured_dictionary(value: str, expected: set[bytes] | None) -> None:
    found = targeted_directives(fields(cdn_cache_control=value))
    names = (b"max-age", b"s-maxage", b"private", b"no-store", b"a", b"b")
    assert (None if found is None else {name for name in names if name in found}) == expected


@pytest.mark.parametrize(
    ("method", "status", "asked", "said", "added"),
    [
        ("GET", 200, {}, {}, True),
        ("HEAD", 200, {}, {}, True),
        ("GET", 206, {}, {}, True),
        ("POST", 200, {}, {}, False),
        ("GET", 204, {}, {}, False),
        ("GET", 301, {}, {}, False),
        ("GET", 404, {}, {}, False),
        ("GET", 200, {}, {"cache_control": ""}, False),
        ("GET", 200, {}, {"expires": "0"}, False),
        ("GET", 200, {}, {"vary": "accept"}, True),
        ("GET", 200, {}, {"vary": "*"}, False),
        ("GET", 200, {"authorization": "x"}, {}, False),
        ("GET", 200, {"cookie": "x"}, {}, True),
    ],
)
def test_the_registered_lifetime(
    method: str, status: int, asked: dict[str, str], said: dict[str, str], added: bool
) -> None:
    answer = registered_lifetime(request(method, **asked), status, fields(**said), 60)
    assert (answer.get(b"cache-control") == b"public, max-age=60, immutable") is added
    assert registered_lifetime(request(method, **asked), status, fields(**said), None) == fields(**said)


def test_vary_selects_by_normalised_values() -> None:
    assert vary_names(Fields(((b"vary", b"B, a"), (b"vary", b"A")))) == (b"a", b"b")
    chosen = selector((b"accept", b"x"), fields(accept="a,  b"))
    assert matches(chosen, fields(accept="a , b"))
    assert not matches(chosen, fields(accept="b, a"))
    assert not matches(chosen, fields(accept="a, b", x=""))


@pytest.mark.parametrize(
    ("asked", "matched"),
    [
        ({"if_none_match": '"a"'}, True),
        ({"if_none_match": 'W/"a"'}, True),
        ({"if_none_match": '"b", "a"'}, True),
        ({"if_none_match": "*"}, True),
        ({"if_none_match": '"b"'}, False),
        ({"if_none_match": '"b"', "if_modified_since": DATE.decode()}, False),
        ({"if_modified_since": DATE.decode()}, True),
        ({"if_modified_since": format_date(NOW - 100).decode()}, True),
        ({"if_modified_since": format_date(NOW - 101).decode()}, False),
        ({"if_modified_since": "soon"}, False),
        ({}, False),
    ],
)
def test_conditions_against_a_stored_answer(asked: dict[str, str], matched: bool) -> None:
    """RFC 9110 13.2.2, RFC 9111 4.3.2."""
    stored = fields(etag='"a"', last_modified=format_date(NOW - 100).decode(), date=DATE.decode())
    assert is_not_modified(request(**asked), stored, NOW) is matched


def test_a_304_replaces_fields_but_not_what_describes_the_body() -> None:
    """RFC 9111 3.2, 4.3.4."""
    stored = fields(etag='"a"', x="old", y="kept", content_encoding="gzip", age="5")
    newer = fields(etag='"a"', x="new", content_encoding="br", content_range="x")
    assert confirms(stored, newer)
    assert updated_fields(stored, newer) == fields(y="kept", content_encoding="gzip", etag='"a"', x="new")
    assert not confirms(stored, fields(etag='"b"'))
    assert not confirms(fields(), fields(etag='"b"'))
    assert confirms(stored, fields())
    assert not confirms(fields(last_modified="x"), fields(last_modified="y"))


@pytest.mark.parametrize(
    ("wanted", "span"),
    [
        (b"bytes=0-0", (0, 1)),
        (b"bytes=5-", (5, 10)),
        (b"bytes=-3", (7, 10)),
        (b"bytes=-99", (0, 10)),
        (b"bytes=8-99", (8, 10)),
        (b"BYTES=0-0", (0, 1)),
        (b"bytes=10-", "unsatisfiable"),
        (b"bytes=-0", "unsatisfiable"),
        (b"bytes=3-2", None),
        (b"bytes=-", None),
        (b"bytes=0-1,3-4", None),
        (b"bytes=a-b", None),
        (b"lines=0-1", None),
        (None, None),
    ],
)
def test_ranges_of_ten_bytes(wanted: bytes | None, span: tuple[int, int] | str | None) -> None:
    """RFC 9110 14.1.2."""
    found = select(wanted, 10)
    if span == "unsatisfiable":
        assert found is not None
        assert not found.is_satisfiable
        assert found.content_range == b"bytes */10"
    else:
        assert found == (None if span is None else Span(*span, 10))


def test_if_range_needs_a_strong_validator() -> None:
    """RFC 9110 13.1.5."""
    old, modified = format_date(NOW - 99), format_date(NOW - 60)
    stored = Fields(((b"etag", b'"a"'), (b"last-modified", modified), (b"date", DATE)))
    assert if_range_holds(None, stored, NOW)
    assert if_range_holds(b'"a"', stored, NOW)
    assert if_range_holds(modified, stored, NOW)
    assert not if_range_holds(b'W/"a"', stored, NOW)
    assert not if_range_holds(old, stored, NOW)
    assert not if_range_holds(modified, Fields(((b"last-modified", modified), (b"date", modified))), NOW)


@pytest.mark.parametrize(
    ("method", "status", "said", "keys"),
    [
        ("GET", 200, {"location": "/b"}, []),
        ("OPTIONS", 200, {}, []),
        ("POST", 200, {}, [b"a.example /x/a"]),
        ("FROB", 201, {"location": "b"}, [b"a.example /x/a", b"a.example /x/b"]),
        ("PUT", 303, {"content_location": "http://A.example:80/c?d#e"}, [b"a.example /x/a", b"a.example /c?d"]),
        ("PUT", 200, {"location": "http://other.example/c"}, [b"a.example /x/a"]),
        ("PUT", 200, {"location": "https://a.example/c"}, [b"a.example /x/a"]),
        ("PUT", 200, {"location": "http://[bad"}, [b"a.example /x/a"]),
        ("DELETE", 404, {}, []),
        ("DELETE", 500, {}, []),
    ],
)
def test_what_an_unsafe_request_makes_out_of_date(
    method: str, status: int, said: dict[str, str], keys: list[bytes]
) -> None:
    """RFC 9111 4.4."""
    assert invalidated_keys(request(method, "/x/a"), status, fields(**said)) == keys


def test_lists_leave_quoted_commas_alone() -> None:
    assert split_list(b'a, "b, \\" c" ,, d') == [b"a", b'"b, \\" c"', b"d"]
    assert split_list(b'a, "b') == [b"a", b'"b']


def test_routes_prefer_the_exact_then_the_longest() -> None:
    table = RouteTable(
        {"all": ["/*"], "tiles": ["/tiles/*", "/tiles/*"], "deep": ["/tiles/a/*"], "one": ["/tiles/a/1"]}
    )
    assert list(table.pools(b"/tiles/a/1")) == [["one"], ["deep"], ["tiles"], ["all"]]
    assert list(table.pools(b"/tiles/a")) == [["tiles"], ["all"]]
    assert list(table.pools(b"/tiles")) == [["all"]]
    assert list(RouteTable({"x": ["/a"]}).pools(b"/a/")) == []


def test_a_backend_that_leaves_moves_only_its_share() -> None:
    def seed(name: str) -> int:
        return hash(("seed", name)) & 0xFFFF

    names = [f"backend-{number}" for number in range(5)]
    paths = [b"/%d" % number for number in range(500)]
    before = {path: balance.choose(path, names, seed, lambda _: 0) for path in paths}
    after = {path: balance.choose(path, names[1:], seed, lambda _: 0) for path in paths}
    assert all(after[path] == before[path] for path in paths if before[path] != names[0])
    assert len(set(before.values())) == 5


def test_a_busy_backend_is_spared() -> None:
    loads = {"a": 10, "b": 0, "c": 0}
    for path in (b"/1", b"/2", b"/3", b"/4", b"/5", b"/6"):
        assert balance.choose(path, list(loads), len, loads.__getitem__) != "a"


@pytest.mark.parametrize(
    ("events", "state", "takes"),
    [
        ([], State.ACTIVE, True),
        ([Event.ANNOUNCED_DRAINING], State.DRAINING, False),
        ([Event.ANNOUNCED_DRAINING, Event.ANNOUNCED_ACTIVE], State.ACTIVE, True),
        ([Event.WITHDRAWN], State.GONE, False),
        ([Event.WITHDRAWN, Event.ANSWERED], State.GONE, False),
        ([Event.WITHDRAWN, Event.ANNOUNCED_ACTIVE], State.ACTIVE, True),
        ([Event.FAILED] * (FAILURES_MAX - 1), State.ACTIVE, True),
        ([Event.FAILED] * FAILURES_MAX, State.ACTIVE, False),
        ([Event.FAILED] * 2 + [Event.ANSWERED] + [Event.FAILED] * 2, State.ACTIVE, True),
        ([Event.FAILED] * 9 + [Event.ANSWERED], State.ACTIVE, True),
        ([Event.FAILED] * FAILURES_MAX + [Event.ANNOUNCED_ACTIVE], State.ACTIVE, False),
        ([Event.FAILED] * FAILURES_MAX + [Event.WITHDRAWN, Event.ANNOUNCED_ACTIVE], State.ACTIVE, True),
    ],
)
def test_the_life_of_a_backend(events: list[Event], state: State, takes: bool) -> None:
    health = Health()
    for number, event in enumerate(events):
        health = step(health, float(number), event)
    assert (health.state, health.takes_requests) == (state, takes)


def test_a_lease_counts_only_time_in_which_the_store_could_be_read() -> None:
    leases = Leases()
    leases.observe({"a": "1", "b": "1"}, 0, 0)
    leases.observe({"a": "2", "b": "1"}, 10, 12)
    assert not leases.has_lapsed("b", 10)
    leases.observe({"a": "2", "b": "1"}, 13, 13)
    assert leases.has_lapsed("b", 10)
    assert not leases.has_lapsed("a", 10)
    leases.suspend()
    leases.observe({"a": "2", "b": "1"}, 900, 950)
    assert not leases.has_lapsed("b", 10)
    leases.observe({"a": "3", "b": "1"}, 961, 961)
    assert (leases.has_lapsed("a", 10), leases.has_lapsed("b", 10)) == (False, True)
    leases.observe({"a": "3"}, 962, 962)
    assert not leases.has_lapsed("b", 10)


@pytest.mark.parametrize(
    ("allow", "store", "address", "welcome"),
    [
        ([], "s3://b", "10.1.2.3", True),
        ([], "s3://b", "172.31.0.1", True),
        ([], "s3://b", "192.168.1.1", True),
        ([], "s3://b", "fd12::1", True),
        ([], "s3://b", "8.8.8.8", False),
        ([], "s3://b", "127.0.0.1", False),
        ([], "s3://b", "::1", False),
        ([], "file:///s", "127.0.0.1", True),
        ([], "file:///s", "::1", True),
        ([], "s3://b", "169.254.169.254", False),
        (["0.0.0.0/0"], "s3://b", "169.254.169.254", False),
        (["0.0.0.0/0"], "s3://b", "127.0.0.1", False),
        (["0.0.0.0/0"], "s3://b", "8.8.8.8", True),
        (["0.0.0.0/0"], "s3://b", "224.0.0.1", False),
        (["0.0.0.0/0"], "s3://b", "0.0.0.0", False),
        (["::/0"], "s3://b", "fe80::1", False),
        (["::/0"], "s3://b", "fd00:ec2::254", False),
        (["0.0.0.0/0", "::/0"], "s3://b", "::ffff:127.0.0.1", False),
        (["127.0.0.0/8"], "s3://b", "127.0.0.1", True),
        (["10.0.0.0/24"], "s3://b", "10.0.1.1", False),
        (["10.0.0.0/24"], "file:///s", "127.0.0.1", False),
    ],
)
def test_where_backends_may_live(allow: list[str], store: str, address: str, welcome: bool) -> None:
    assert is_welcome(ipaddress.ip_address(address), parse_networks(allow, store)) is welcome


@pytest.mark.parametrize("text", ["10.0.0.1/8", "ten", "10.0.0.0/33", ""])
def test_networks_that_are_none(text: str) -> None:
    with pytest.raises(Invalid):
        parse_networks([text], "s3://b")


def test_cache_status_is_a_structured_list_member() -> None:
    """RFC 9211 2."""
    assert cache_status.hit(-3.2) == b"boxlink; hit; ttl=-3"
    assert (
        cache_status.forwarded(b"stale", status=200, stored=True, collapsed=True, ttl=9.9, detail=b"x")
        == b"boxlink; fwd=stale; fwd-status=200; ttl=9; stored; collapsed; detail=x"
    )
