"""An error is believed for as long as it took to learn it, and no longer than some seconds."""

from __future__ import annotations

import pytest

from synclib.errors import Corrupt, Unavailable
from synclib.lazy.failures import _KEPT_MAX, BELIEVED_S, SOON_S, Failures


def test_what_took_long_is_believed_for_as_long() -> None:
    failures = Failures()
    failures.add([(7, Unavailable("away"))], now_s=100, took_s=2)
    failures.check([6, 8], 100)
    for now in (100, 101.9):
        with pytest.raises(Unavailable, match="away"):
            failures.check([6, 7], now)
    failures.check([6, 7], 102)
    failures.check([7], 100)  # it was forgotten


def test_what_came_soon_is_not_believed() -> None:
    failures = Failures()
    failures.add([(7, Corrupt("damaged"))], now_s=100, took_s=SOON_S / 2)
    failures.check([7], 100)


def test_nothing_is_believed_for_long() -> None:
    failures = Failures()
    failures.add([(7, Unavailable("away"))], now_s=100, took_s=60)
    with pytest.raises(Unavailable):
        failures.check([7], 100 + BELIEVED_S - 0.1)
    failures.check([7], 100 + BELIEVED_S)


def test_what_is_kept_does_not_grow() -> None:
    failures = Failures()
    for number in range(3 * _KEPT_MAX):
        failures.add([(number, Unavailable("away"))], now_s=number, took_s=1)
    assert len(failures._errors) <= _KEPT_MAX + 1
