"""What people read of a mount's hydration."""

from __future__ import annotations

import pytest

from tools.hydration_text import duration_text, hydration_text

HALF: dict[str, object] = {
    "hydration": "rest",
    "hydrated_percent": 50.0,
    "hydrated_bytes": 500_000_000,
    "hydrated_total_bytes": 1_000_000_000,
    "hydration_eta_s": 61.4,
    "hydration_failed": 0,
    "requests": {"get": 1200, "put": 1, "list": 2, "delete": 0},
    "usd": 0.00048,
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "500.0 MB of 1.0 GB checked (50.0 %), 61 s left; 1,203 requests, $0.000480"),
        ({"hydration_eta_s": None}, "500.0 MB of 1.0 GB checked (50.0 %); 1,203 requests, $0.000480"),
        (
            {"hydration": "waits: limit", "hydration_eta_s": None},
            "500.0 MB of 1.0 GB checked (50.0 %), waits: limit; 1,203 requests, $0.000480",
        ),
        (
            {"hydration_failed": 3},
            "500.0 MB of 1.0 GB checked (50.0 %), 61 s left, 3 pieces cannot be had; 1,203 requests, $0.000480",
        ),
        (
            {"hydration": "done", "hydrated_percent": 100.0, "hydrated_bytes": 1_000_000_000, "hydration_eta_s": 0.0},
            "1.0 GB of 1.0 GB checked: whole; 1,203 requests, $0.000480",
        ),
    ],
)
def test_a_line(change: dict[str, object], said: str) -> None:
    assert hydration_text({**HALF, **change}) == said


def test_how_long() -> None:
    assert [duration_text(seconds) for seconds in (0.2, 99, 100, 5999, 6000, 86400)] == [
        "0 s", "99 s", "2 min", "100 min", "1.7 h", "24.0 h",
    ]  # fmt: skip
