"""HTTP dates (RFC 9110 5.6.7): the three forms, GMT only."""

from __future__ import annotations

import calendar
import re
import time

_DAYS = rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_DAYS = rb"(?:Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)"
_MONTHS = {
    name: number
    for number, name in enumerate(
        (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"), 1
    )
}
_CLOCK = rb"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_FORMS = (
    re.compile(_DAYS + rb", (?P<day>\d\d) (?P<month>[A-Z][a-z]{2}) (?P<year>\d{4}) " + _CLOCK + rb" GMT"),
    re.compile(_LONG_DAYS + rb", (?P<day>\d\d)-(?P<month>[A-Z][a-z]{2})-(?P<year>\d\d) " + _CLOCK + rb" GMT"),
    re.compile(_DAYS + rb" (?P<month>[A-Z][a-z]{2}) (?P<day>[ \d]\d) " + _CLOCK + rb" (?P<year>\d{4})"),
)


def parse_date(value: bytes | None, now: float) -> int | None:
    """Seconds since 1970 of an HTTP date, or None when it is none.

    ``now`` (same unit) settles RFC 850's two-digit year: one that seems more than 50 years ahead is the past.
    """
    if value is None:
        return None
    for form in _FORMS:
        if match := form.fullmatch(value):
            break
    else:
        return None
    month = _MONTHS.get(match["month"])
    year, day = int(match["year"]), int(match["day"])
    hour, minute, second = int(match["hour"]), int(match["minute"]), int(match["second"])
    if len(match["year"]) == 2:
        this_year = time.gmtime(now).tm_year
        year += this_year // 100 * 100
        if year > this_year + 50:
            year -= 100
    if month is None or not 1 <= day <= calendar.monthrange(max(year, 1), month)[1]:
        return None
    if hour > 23 or minute > 59 or second > 60:
        return None
    return calendar.timegm((year, month, day, hour, minute, second))


def format_date(seconds: float) -> bytes:
    """IMF-fixdate. Not by strftime: that speaks the language of the locale."""
    moment = time.gmtime(seconds)
    day = (b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun")[moment.tm_wday]
    month = tuple(_MONTHS)[moment.tm_mon - 1]
    return b"%b, %02d %b %d %02d:%02d:%02d GMT" % (
        day, moment.tm_mday, month, moment.tm_year, moment.tm_hour, moment.tm_min, moment.tm_sec
    )  # fmt: skip
